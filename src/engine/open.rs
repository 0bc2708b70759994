//! From a data directory to a recovered engine, the same for every role.
//!
//! Called once by each role at its start, after it has its port. Blocks; knows nothing of what the role does with it.

use super::backup::Source;
use super::clock::{SystemClock, new_instance};
use super::{Engine, Parts};
use crate::machine::Machine;
use crate::store::Error;
use crate::store::directory::Directory;
use crate::store::payload::Payloads;
use crate::store::sled_store::SledStore;
use crate::store::space::Space;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A recovered engine with what a role needs beside it. The store holds the directory's lock.
pub struct Opened<M: Machine> {
    /// Not begun yet.
    pub engine: Engine<M>,
    /// Content too large for records.
    pub payloads: Arc<Payloads>,
    /// What an online backup is made from.
    pub backup: Source,
    /// Identity of the data directory, hexadecimal.
    pub instance: String,
    /// Directory for what may be lost.
    pub work_dir: PathBuf,
}

/// Open the role's data directory, made if it is not there, read the live records back into the machine, and log what was found. `owner`
/// is the id of the party, where the role has one.
///
/// # Errors
/// The directory is held, of another role, owner or newer format, or damaged.
pub fn open<M: Machine>(dir: &Path, role: &'static str, owner: Option<&str>, machine: M, payload_max: u64) -> Result<Opened<M>, Error> {
    let directory = Directory::open(dir, role, new_instance())?;
    if let Some(owner) = owner {
        directory.claim(owner)?;
    }
    let store = Arc::new(SledStore::open(&directory)?);
    let space = Space::of(directory.path());
    let payloads = Arc::new(Payloads::open_within(&directory.payload_dir(), payload_max, space.clone())?);
    let engine = Engine::recover(Parts {
        machine,
        store: store.clone(),
        payloads: payloads.clone(),
        clock: Arc::new(SystemClock),
        space,
    })
    .map_err(|error| error.within(directory.path()))?;
    let report = &engine.report;
    tracing::info!(
        role,
        found = report.summary(),
        epoch = report.epoch,
        next_seq = report.next_seq,
        payloads = report.payloads,
        took_ms = u64::try_from(report.took.as_millis()).unwrap_or(u64::MAX),
        "recovered"
    );
    Ok(Opened {
        engine,
        backup: Source::new(&directory, store, payloads.clone()),
        payloads,
        instance: format!("{:032x}", u128::from_be_bytes(directory.instance())),
        work_dir: directory.work_dir(),
    })
}
