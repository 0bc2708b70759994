//! Proves, while the role serves, what its start did not: the history, and the payload files that only ended records refer to.
//!
//! Started by `Engine::start`. Slow on purpose: it must never be felt by those who wait for a commit. What it finds stops the role, like
//! damage found at a start.

use crate::machine::content::PayloadRef;
use crate::store::payload::Payloads;
use crate::store::{Error, Store};
use crate::supervisor::Supervisor;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// After each piece of work it rests this many times as long as the piece took.
const REST: u32 = 3;

pub(super) fn start(
    supervisor: &Supervisor,
    store: Arc<dyn Store>,
    payloads: Arc<Payloads>,
    unproved: Vec<PayloadRef>,
) -> std::io::Result<()> {
    if store.history().done && unproved.is_empty() {
        return Ok(());
    }
    let stop = supervisor.clone();
    supervisor.thread("proof of the history", move || {
        match prove(&*store, &payloads, &unproved, &stop) {
            // A store that failed meanwhile says so itself, and one on a full disk is read only until a restart.
            Ok(()) | Err(Error::Poisoned) => {}
            Err(error) if error.is_full() => {}
            Err(error) => stop.fatal(error.into()),
        }
    })
}

fn prove(store: &dyn Store, payloads: &Payloads, unproved: &[PayloadRef], supervisor: &Supervisor) -> Result<(), Error> {
    let began = Instant::now();
    while !paced(|| store.prove_history())?.done {
        if supervisor.is_stopped() {
            return Ok(());
        }
    }
    for payload in unproved {
        if supervisor.is_stopped() {
            return Ok(());
        }
        // Without a pin the last record that referred to it may be gone, and the file with it.
        if let Some(_pin) = payloads.pin(payload) {
            paced(|| payloads.prove(payload))?;
        }
    }
    tracing::info!(
        values = store.history().checked,
        payloads = unproved.len(),
        took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "the history is whole"
    );
    Ok(())
}

fn paced<T>(work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = work();
    // A machine that slept in between does not make it rest for as long.
    std::thread::sleep((began.elapsed() * REST).min(Duration::from_secs(60)));
    result
}
