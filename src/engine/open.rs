//! From a data directory to a recovered engine, the same for every role.
//!
//! Called once by each role at its start, after it has its port. Blocks; knows nothing of what the role does with it.

use super::backup::Source;
use super::clock::{SystemClock, new_instance};
use super::{Engine, Parts, recover};
use crate::machine::Machine;
use crate::metrics::{Figures, Metrics};
use crate::store::directory::Directory;
use crate::store::payload::Payloads;
use crate::store::sled_store::SledStore;
use crate::store::space::Space;
use crate::store::{Error, Store};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

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
    /// The directory of the log that counts; what is derived from the log may be kept in it.
    pub log_dir: PathBuf,
    /// Directory for what may be lost.
    pub work_dir: PathBuf,
}

/// Open the role's data directory, made if it is not there, read the live records back into the machine, and log what was found. `owner`
/// is the id of the party, where the role has one.
///
/// # Errors
/// The directory is held, of another role, owner or newer format, or damaged.
pub fn open<M: Machine>(
    dir: &Path,
    role: &'static str,
    owner: Option<&str>,
    mut machine: M,
    payload_max: u64,
    metrics: &Metrics,
) -> Result<Opened<M>, Error> {
    let began = Instant::now();
    let directory = Directory::open(dir, role, new_instance())?;
    if let Some(owner) = owner {
        directory.claim(owner)?;
    }
    let (store, found) = recover::while_opened(&mut machine, |each| SledStore::open_with(&directory, each))?;
    let store = Arc::new(store);
    let space = Space::of(directory.path());
    store.measure(metrics.engine().barrier());
    show(metrics, &directory, &store, &space);
    let payloads = Arc::new(Payloads::open_within(&directory.payload_dir(), payload_max, space.clone())?);
    let parts = Parts {
        machine,
        store: store.clone(),
        payloads: payloads.clone(),
        clock: Arc::new(SystemClock),
        space,
    };
    let engine = found
        .and_then(|found| Engine::recovered(parts, found, began))
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
    metrics.engine().recovered(began.elapsed());
    Ok(Opened {
        engine,
        backup: Source::new(&directory, store, payloads.clone()),
        payloads,
        instance: format!("{:032x}", u128::from_be_bytes(directory.instance())),
        log_dir: directory.log_dir(),
        work_dir: directory.work_dir(),
    })
}

/// Let the metrics show how the store stands whenever somebody looks, for as long as there is a store.
fn show(metrics: &Metrics, directory: &Directory, store: &Arc<SledStore>, space: &Arc<Space>) {
    let (store, space, log) = (Arc::downgrade(store), space.clone(), directory.log_dir());
    let engine = metrics.engine().clone();
    metrics.probe(move || {
        if let Some(store) = store.upgrade() {
            engine.store(Figures {
                log_bytes: taken_by(&log).unwrap_or_default(),
                free_bytes: space.look().free,
                next_seq: store.head().next_seq,
            });
        }
    });
}

/// Disk space the files below a directory take, bytes. Those that go away meanwhile count as nothing. Blocks.
///
/// # Errors
/// The directory cannot be read.
pub fn taken_by(dir: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(found) if found.is_dir() => bytes += taken_by(&entry.path()).unwrap_or_default(),
            Ok(found) => bytes += found.blocks() * 512,
            Err(_) => {}
        }
    }
    Ok(bytes)
}
