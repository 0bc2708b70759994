//! Does what the store has to do beside commits, on a thread of its own, so that commits need not wait for it.
//!
//! Started by `Engine::start`, woken by the loop. A failure stops the store, and the loop is told, which ends as after a commit that failed.

use super::Message;
use crate::machine::Machine;
use crate::store::Store;
use crate::supervisor::Supervisor;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use tokio::sync::mpsc::WeakSender;

/// Wakes the thread, which ends when this is dropped.
pub(super) struct Settler(SyncSender<()>);

impl Settler {
    pub(super) fn start<M: Machine>(
        supervisor: &Supervisor,
        store: Arc<dyn Store>,
        queue: WeakSender<Message<M>>,
    ) -> std::io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        supervisor.thread("settling", move || {
            while woken.recv().is_ok() {
                if let Err(error) = store.settle() {
                    // Without a queue the loop is about to end, and without a place in it a commit is about to fail.
                    if let Some(queue) = queue.upgrade() {
                        let _ = queue.try_send(Message::Failed(error));
                    }
                    return;
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
