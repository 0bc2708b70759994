//! The thread that an engine has beside the one that commits.

use fedbroker::store::Store;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Settles until it is dropped.
pub struct Settler {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Settler {
    pub fn start(store: Arc<dyn Store>) -> Settler {
        let done = Arc::<AtomicBool>::default();
        let stop = done.clone();
        #[expect(clippy::disallowed_methods, reason = "there is no supervisor here")]
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if store.is_behind() {
                    store.settle().unwrap();
                }
                thread::sleep(Duration::from_micros(200));
            }
        });
        Settler {
            done,
            thread: Some(thread),
        }
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}
