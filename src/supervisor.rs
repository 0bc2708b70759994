//! The only spawner: every task and thread of a role has a name and a policy, and ends with the role.
//!
//! Made once per role by `cli`, handed down. A role ends in one of two ways: a signal (exit 0), or the end of something essential
//! (exit non-zero, with the reason). Order at the end: doors stop taking, then the process leaves; nothing needs a farewell, since
//! whatever was acknowledged is durable already.

use crate::metrics::Metrics;
use futures_util::FutureExt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::thread::{Scope, ScopedJoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What the end of a task means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The role cannot go on without it: its end, or a panic in it, stops the process with an error.
    Essential,
    /// It may end; a panic in it stops the process with an error: what it was to do would else be done by nobody before a restart.
    Passing,
    /// It may end; a panic in it is logged.
    Ordinary,
}

/// Spawns and ends the tasks of one role, and has its metrics. Cheap to clone.
#[derive(Clone)]
pub struct Supervisor {
    metrics: Metrics,
    stop: CancellationToken,
    tracker: TaskTracker,
    failure: Arc<Mutex<Option<anyhow::Error>>>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl Supervisor {
    /// A supervisor with nothing to watch yet.
    pub fn new() -> Self {
        Self {
            metrics: Metrics::new(),
            stop: CancellationToken::new(),
            tracker: TaskTracker::new(),
            failure: Arc::new(Mutex::new(None)),
        }
    }

    /// What this role measures.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Run a future under a name until it ends or the role stops.
    pub fn spawn<F>(&self, name: &'static str, policy: Policy, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let supervisor = self.clone();
        // In a box, or its memory would be there three times: as the argument, in the block below, and in its `select`. After a panic it is
        // dropped, so nobody sees what it left half done.
        let future = AssertUnwindSafe(Box::pin(future)).catch_unwind();
        #[expect(clippy::disallowed_methods, reason = "the one spawner")]
        self.tracker.spawn(async move {
            let ended_by_itself = tokio::select! {
                ended = future => Some(ended),
                () = supervisor.stop.cancelled() => None,
            };
            match ended_by_itself {
                Some(Ok(())) if policy == Policy::Essential && !supervisor.is_stopped() => {
                    supervisor.fatal(anyhow::anyhow!("{name} ended"));
                }
                Some(Ok(())) | None => {}
                Some(Err(_)) if policy != Policy::Ordinary => supervisor.fatal(anyhow::anyhow!("{name} panicked")),
                // What it said was printed where it panicked.
                Some(Err(_)) => tracing::error!(task = name, "task panicked"),
            }
        });
    }

    /// Run a future that watches [`Supervisor::stopped`] itself, and has at most the two seconds of [`Supervisor::run`] to end after that; a
    /// panic in it is logged.
    pub fn finish<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        #[expect(clippy::disallowed_methods, reason = "the one spawner")]
        let work = tokio::spawn(future);
        #[expect(clippy::disallowed_methods, reason = "the one spawner")]
        self.tracker.spawn(async move {
            if let Err(error) = work.await {
                tracing::error!(task = name, %error, "task panicked");
            }
        });
    }

    /// Run a future until it ends, which it must know itself, and nobody waits for it: a stop of the role does not end it, a panic in it does end the role.
    pub fn outlast<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let supervisor = self.clone();
        let future = AssertUnwindSafe(Box::pin(future)).catch_unwind();
        #[expect(clippy::disallowed_methods, reason = "the one spawner")]
        tokio::spawn(async move {
            if future.await.is_err() {
                supervisor.fatal(anyhow::anyhow!("{name} panicked"));
            }
        });
    }

    /// Run a blocking function on a thread of its own. Its end by itself means nothing; a panic stops the role.
    ///
    /// # Errors
    /// The operating system gives no more threads.
    pub fn thread<F>(&self, name: &'static str, body: F) -> std::io::Result<()>
    where
        F: FnOnce() + Send + 'static,
    {
        let supervisor = self.clone();
        #[expect(clippy::disallowed_methods, reason = "the one spawner")]
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err() {
                supervisor.fatal(anyhow::anyhow!("{name} panicked"));
            }
        })?;
        Ok(())
    }

    /// Run a blocking function on a thread that ends with the scope of its caller, who waits for it and meets its panic there.
    ///
    /// # Errors
    /// The operating system gives no more threads.
    pub fn beside<'scope, T, F>(scope: &'scope Scope<'scope, '_>, name: &str, body: F) -> std::io::Result<ScopedJoinHandle<'scope, T>>
    where
        T: Send + 'scope,
        F: FnOnce() -> T + Send + 'scope,
    {
        std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, body)
    }

    /// Run a blocking function on the pool and wait for it.
    ///
    /// # Errors
    /// The function panicked.
    pub async fn blocking<T, F>(body: F) -> anyhow::Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        #[expect(clippy::disallowed_methods, reason = "the one spawner")]
        let work = tokio::task::spawn_blocking(body);
        work.await.map_err(|error| anyhow::anyhow!("a blocking task failed: {error}"))
    }

    /// Stop the role because it cannot go on. The first reason wins.
    pub fn fatal(&self, error: anyhow::Error) {
        tracing::error!(error = format!("{error:#}"), "stopping");
        let mut failure = self.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        failure.get_or_insert(error);
        self.stop.cancel();
    }

    /// Stop the role in good order.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Resolves when the role is to stop; doors hand it to their servers.
    pub fn stopped(&self) -> tokio_util::sync::WaitForCancellationFutureOwned {
        self.stop.clone().cancelled_owned()
    }

    /// True once the role is to stop.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Wait for SIGINT, SIGTERM, [`Supervisor::stop`] or a failure, then for the tasks to end (at most two seconds).
    ///
    /// # Errors
    /// The reason of the failure that stopped the role.
    pub async fn run(self) -> anyhow::Result<()> {
        tokio::select! {
            () = signalled() => tracing::info!("asked to stop"),
            () = self.stop.cancelled() => {}
        }
        self.stop.cancel();
        self.tracker.close();
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), self.tracker.wait()).await;
        let failure = self.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        failure.map_or(Ok(()), Err)
    }
}

async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        (interrupt, terminate) => {
            tracing::warn!(?interrupt, ?terminate, "cannot listen for signals");
            std::future::pending::<()>().await;
        }
    }
}
