//! One measurement: so many producers against one system for so many seconds, each with one operation outstanding, then the proof that
//! every acknowledged item is there, or was delivered, exactly once.
//!
//! Called by `main` for each system in turn. Knows no system.

use crate::item::Item;
use anyhow::{Context, bail, ensure};
use std::collections::HashSet;
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// What producers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Workload {
    /// Put an item in the queue and wait until that is acknowledged.
    Enqueue,
    /// The whole life of an item: put into the queue, taken by a consumer, finished; each step acknowledged before the next.
    Life,
}

impl Workload {
    /// As on the command line and in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enqueue => "enqueue",
            Self::Life => "life",
        }
    }
}

/// How it is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What producers do.
    pub workload: Workload,
    /// How many of them.
    pub producers: u32,
    /// Not counted at the begin.
    pub warm_up: Duration,
    /// What is counted.
    pub window: Duration,
}

/// One connection that sends one item at a time.
pub trait Producer: Send + 'static {
    /// Put an item in the queue; returns when the system has acknowledged it.
    fn enqueue(&mut self, item: Item) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Put an item in the queue, take one (this or another), finish that; returns it when that is acknowledged.
    fn live(&mut self, item: Item) -> impl Future<Output = anyhow::Result<Item>> + Send;
}

/// A queue that runs and is empty.
pub trait System: Sized {
    /// Its client.
    type Producer: Producer;
    /// A connection for the producer of this number.
    async fn producer(&self, number: u32) -> anyhow::Result<Self::Producer>;
    /// All items that are in the queue or with a consumer, once all producers have ended.
    async fn left(self, workload: Workload) -> anyhow::Result<Vec<Item>>;
}

/// What came out.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Operations that were acknowledged within the window, per second: items enqueued, or lives ended.
    pub ops_per_s: f64,
    /// Median of their latencies, microseconds.
    pub p50_us: f64,
    /// Exceeded by one of a hundred.
    pub p99_us: f64,
    /// Exceeded by one of a thousand.
    pub p999_us: f64,
}

#[derive(Default)]
struct Tally {
    /// Items this producer has sent, all acknowledged.
    sent: u32,
    /// Items it saw the end of.
    ended: Vec<Item>,
    latencies: Vec<u32>,
}

/// Measure, then prove the delivery.
///
/// # Errors
/// An operation failed, or an acknowledged item is missing, there twice, or was never sent.
pub async fn measure<S: System>(system: S, plan: Plan) -> anyhow::Result<Figures> {
    let mut producers = Vec::new();
    for number in 0..plan.producers {
        producers.push(system.producer(number).await.context("cannot connect a producer")?);
    }
    let begin = Instant::now();
    let mut running = JoinSet::new();
    for (number, producer) in (0..).zip(producers) {
        running.spawn(async move { (number, produce(producer, number, plan, begin).await) });
    }
    let (mut sent, mut ended, mut latencies) = (HashSet::new(), Vec::new(), Vec::new());
    while let Some(tally) = running.join_next().await {
        let (producer, tally) = tally.context("a producer panicked")?;
        let tally = tally.with_context(|| format!("producer {producer}"))?;
        sent.extend((0..tally.sent).map(|number| Item { producer, number }));
        ended.extend(tally.ended);
        latencies.extend(tally.latencies);
    }
    let left = system.left(plan.workload).await.context("cannot read back what is in the queue")?;
    match plan.workload {
        Workload::Enqueue => same(&sent, left).context("what was acknowledged is not what is in the queue")?,
        Workload::Life => {
            ensure!(left.is_empty(), "{} items are left in the queue", left.len());
            same(&sent, ended).context("what was acknowledged is not what was finished")?;
        }
    }
    figures(latencies, plan.window)
}

async fn produce<P: Producer>(mut producer: P, number: u32, plan: Plan, begin: Instant) -> anyhow::Result<Tally> {
    let from = begin + plan.warm_up;
    let to = from + plan.window;
    let mut tally = Tally::default();
    let mut sending = Instant::now();
    while sending < to {
        let item = Item {
            producer: number,
            number: tally.sent,
        };
        match plan.workload {
            Workload::Enqueue => producer.enqueue(item).await?,
            Workload::Life => tally.ended.push(producer.live(item).await?),
        }
        tally.sent += 1;
        let now = Instant::now();
        if now >= from && now < to {
            tally.latencies.push(u32::try_from((now - sending).as_micros()).unwrap_or(u32::MAX));
        }
        sending = now;
    }
    Ok(tally)
}

/// Each of them once and nothing else.
fn same(sent: &HashSet<Item>, found: Vec<Item>) -> anyhow::Result<()> {
    let mut seen = HashSet::with_capacity(found.len());
    for item in found {
        ensure!(sent.contains(&item), "{item:?} was not acknowledged");
        ensure!(seen.insert(item), "{item:?} is there twice");
    }
    if let Some(missing) = sent.difference(&seen).next() {
        bail!("{} items are missing, one of them {missing:?}", sent.len() - seen.len());
    }
    Ok(())
}

fn figures(mut latencies: Vec<u32>, window: Duration) -> anyhow::Result<Figures> {
    ensure!(!latencies.is_empty(), "no operation ended within the window");
    latencies.sort_unstable();
    let part = |thousandths: usize| f64::from(latencies[(latencies.len() - 1) * thousandths / 1000]);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 operations")]
    let ops_per_s = latencies.len() as f64 / window.as_secs_f64();
    Ok(Figures {
        ops_per_s,
        p50_us: part(500),
        p99_us: part(990),
        p999_us: part(999),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(numbers: &[u32]) -> Vec<Item> {
        numbers
            .iter()
            .map(|number| Item {
                producer: 1,
                number: *number,
            })
            .collect()
    }

    #[test]
    fn a_missing_a_doubled_and_an_unknown_item_are_found() {
        let sent: HashSet<Item> = items(&[0, 1, 2]).into_iter().collect();
        assert!(same(&sent, items(&[2, 0, 1])).is_ok());
        assert!(same(&sent, items(&[0, 1])).unwrap_err().to_string().contains("missing"));
        assert!(same(&sent, items(&[0, 1, 2, 2])).unwrap_err().to_string().contains("twice"));
        assert!(
            same(&sent, items(&[0, 1, 2, 3]))
                .unwrap_err()
                .to_string()
                .contains("not acknowledged")
        );
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_latencies() {
        let figures = figures((1..=1001).rev().collect(), Duration::from_secs(2)).unwrap();
        let expected = Figures {
            ops_per_s: 500.5,
            p50_us: 501.0,
            p99_us: 991.0,
            p999_us: 1000.0,
        };
        assert_eq!(figures, expected);
    }
}
