//! Does what the store has to do beside commits, on a thread of its own, so that commits need not wait for it.
//!
//! Started by `Engine::start`, woken by the loop. A failure stops the store, and so the role.

use crate::store::{Error, Store};
use crate::supervisor::Supervisor;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

/// Wakes the thread, which ends when this is dropped.
pub(super) struct Settler(SyncSender<()>);

impl Settler {
    pub(super) fn start(supervisor: &Supervisor, store: Arc<dyn Store>) -> std::io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let role = supervisor.clone();
        supervisor.thread("settling", move || {
            while woken.recv().is_ok() {
                match store.settle() {
                    // A store that failed meanwhile says so itself, and one on a full disk with its next commit.
                    Ok(()) | Err(Error::Poisoned) => {}
                    Err(error) if error.is_full() => {}
                    Err(error) => role.fatal(anyhow::Error::new(error).context("the store could not be settled")),
                }
            }
        })?;
        Ok(Self(wake))
    }

    /// If there is work. One that is at work already will look again.
    pub(super) fn wake(&self, store: &dyn Store) {
        if store.is_behind() {
            let _ = self.0.try_send(());
        }
    }
}
