//! Runs clients that each wait for their answer before they ask again, and keeps how long each answer took.
//!
//! The same for the raw disk, the queue and the REST service, so that what this costs is in all of them.

use crate::supervisor::{Policy, Supervisor};
use anyhow::Context;
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Asks for one thing at a time.
pub(super) trait Client: Send + 'static {
    /// Ask for the `n`th thing, from 0, and wait until it is acknowledged.
    fn ask(&mut self, n: u64) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// What came of it.
pub(super) struct Driven<C> {
    /// The clients, in no order, each with the number of its acknowledgements.
    pub(super) clients: Vec<(C, u64)>,
    /// From the start to the last acknowledgement.
    pub(super) took: Duration,
    /// How long each acknowledgement took.
    pub(super) latencies: Latencies,
}

impl<C> Driven<C> {
    /// Acknowledgements in all.
    pub(super) fn acknowledged(&self) -> u64 {
        self.clients.iter().map(|(_, n)| n).sum()
    }

    /// Acknowledgements in a second.
    #[expect(clippy::cast_precision_loss, reason = "a rate for a reader")]
    pub(super) fn rate(&self) -> f64 {
        self.acknowledged() as f64 / self.took.as_secs_f64()
    }
}

/// When clients stop asking; what was asked by then is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    /// So long after the start.
    Over(Duration),
    /// Each has asked so often.
    Asked(u64),
}

/// Let all of them ask at once.
///
/// # Errors
/// The first that a client met, or that they were stopped with their supervisor.
pub(super) async fn drive<C: Client>(supervisor: &Supervisor, clients: Vec<C>, until: Until) -> anyhow::Result<Driven<C>> {
    let count = clients.len();
    let (done, mut ended) = mpsc::channel(count.max(1));
    let began = Instant::now();
    for mut client in clients {
        let done = done.clone();
        supervisor.spawn("bench client", Policy::Ordinary, async move {
            let mut latencies = Vec::new();
            let mut failed = Ok(());
            let mut n = 0;
            let mut before = Instant::now();
            let goes_on = |n: u64, now: Instant| match until {
                Until::Over(length) => now - began < length,
                Until::Asked(count) => n < count,
            };
            while failed.is_ok() && goes_on(n, before) {
                failed = client.ask(n).await;
                let now = Instant::now();
                latencies.push(micros(now - before));
                before = now;
                n += 1;
            }
            let _ = done.send(failed.map(|()| (client, n, latencies, before))).await;
        });
    }
    drop(done);
    let (mut clients, mut all, mut last) = (Vec::with_capacity(count), Vec::new(), began);
    while clients.len() < count {
        let (client, n, latencies, at) = ended.recv().await.context("what is measured has stopped; see the log")??;
        clients.push((client, n));
        all.extend(latencies);
        last = last.max(at);
    }
    Ok(Driven {
        clients,
        took: last - began,
        latencies: Latencies::new(all),
    })
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// Times, sorted, microseconds.
pub(super) struct Latencies(Vec<u32>);

impl Latencies {
    pub(super) fn new(mut micros: Vec<u32>) -> Self {
        micros.sort_unstable();
        Self(micros)
    }

    /// The time within which so many of a thousand were done, milliseconds; `NaN` of none.
    pub(super) fn permille(&self, permille: usize) -> f64 {
        let at = (self.0.len() * permille).div_ceil(1000).max(1) - 1;
        self.0.get(at).map_or(f64::NAN, |micros| f64::from(*micros) / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_time_that_was_measured() {
        let latencies = Latencies::new((1..=1000).rev().map(|ms| ms * 1000).collect());
        assert_eq!([500, 990, 999].map(|p| latencies.permille(p)), [500.0, 990.0, 999.0]);
        assert_eq!(Latencies::new(vec![7000]).permille(999), 7.0);
        assert!(Latencies::new(Vec::new()).permille(500).is_nan());
    }

    struct Failing(u64);

    impl Client for Failing {
        async fn ask(&mut self, n: u64) -> anyhow::Result<()> {
            anyhow::ensure!(n < self.0, "no more");
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_client_that_fails_fails_the_run() {
        let long = Duration::from_secs(3600);
        let failed = drive(&Supervisor::new(), vec![Failing(3)], Until::Over(long)).await;
        assert_eq!(failed.err().map(|error| error.to_string()), Some("no more".to_owned()));
        let none = drive(&Supervisor::new(), vec![Failing(3)], Until::Over(Duration::ZERO))
            .await
            .unwrap();
        assert_eq!(none.acknowledged(), 0);
        let two = drive(&Supervisor::new(), vec![Failing(3), Failing(3)], Until::Asked(2))
            .await
            .unwrap();
        assert_eq!(two.acknowledged(), 4);
    }
}
