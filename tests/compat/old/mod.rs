//! Peers as FedVision 0.1 made them, with its faults: a coordinator, a cluster manager, a worker and a master.
//!
//! Written for the tests of this directory from what the originals were seen to do; each fault is in the doc comment of what has it. They know
//! nothing of `fedbroker.v1`, and end like a killed process: without a word to anybody.

pub mod coordinator;
pub mod front;
pub mod manager;
pub mod master;
pub mod worker;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

/// Beyond what anything here takes on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A runtime of its own stands for the process: to drop it cuts every connection and every call where it stands.
pub struct Process(Option<Runtime>);

impl Process {
    pub fn new() -> Self {
        Self(Some(Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()))
    }

    pub fn spawn<F>(&self, life: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.0.as_ref().expect("it runs").spawn(life)
    }

    /// Make something that belongs to a runtime.
    fn inside<T>(&self, make: impl FnOnce() -> T) -> T {
        let _entered = self.0.as_ref().expect("it runs").enter();
        make()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A listener where the one that was killed a moment ago had its own.
pub async fn listen(address: &str) -> (TcpListener, SocketAddr) {
    let begun = Instant::now();
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                let address = listener.local_addr().unwrap();
                return (listener, address);
            }
            Err(error) => assert!(begun.elapsed() < DEADLINE, "{address}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Look until it holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < DEADLINE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Wait for something that must come.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
