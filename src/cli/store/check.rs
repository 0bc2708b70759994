//! `fedbroker store check`: is everything there that was committed, and do the records follow from the events?

use super::progress::{Progress, size};
use super::role::{Role, Task, with_machine};
use super::specimen::Specimen;
use super::{DAMAGED, DataDir};
use crate::engine::reader::{ENDED, LIVE};
use crate::engine::replay::{Comparison, LINGER, compare, count_payloads};
use crate::machine::Machine;
use crate::machine::content::PayloadRef;
use crate::store::directory::Directory;
use crate::store::payload::Payloads;
use crate::store::sled_store::SledStore;
use crate::store::{Error, Store, codec};
use crate::telemetry::say;
use clap::Args;
use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;

/// `fedbroker store check`
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Exit code 0: whole. 65: damaged; what is wrong is on stderr, and which command comes next.

Example:
  fedbroker store check --data-dir fedbroker-data/master-p1"
)]
pub(super) struct CheckOptions {
    #[command(flatten)]
    dir: DataDir,
    /// Write the lost or unreadable high-water file anew if the log is whole. It cannot be told any more then whether the log is an old
    /// one that somebody put there. One that can be read is never written over
    #[arg(long)]
    rebuild_high_water: bool,
}

/// Check.
///
/// # Errors
/// The directory cannot be had, or [`Error::Damaged`].
pub(super) fn run(options: &CheckOptions) -> anyhow::Result<ExitCode> {
    if options.rebuild_high_water {
        rebuild(options)?;
    }
    let specimen = Specimen::take(&options.dir.data_dir, options.dir.scratch.as_deref())?;
    let store = match specimen.open() {
        Ok(store) => store,
        Err(error @ Error::Damaged { .. }) => {
            eprintln!("fedbroker: {error}");
            eprintln!("{}", next_step(&error, &specimen.directory));
            return Ok(ExitCode::from(DAMAGED));
        }
        Err(error) => return Err(error.into()),
    };
    let found = with_machine(
        &specimen.directory.role(),
        Check {
            store: &store,
            directory: &specimen.directory,
        },
    )?
    .map_err(|error| specimen.as_of_original(error))?;
    Ok(report(&store, &specimen.directory, &found))
}

fn rebuild(options: &CheckOptions) -> anyhow::Result<()> {
    let directory = Directory::inspect(&options.dir.data_dir)?;
    if !SledStore::rebuild_high_water(&directory)? {
        eprintln!(
            "{} can be read and fits the log; it stays as it is",
            directory.high_water_path().display()
        );
        return Ok(());
    }
    eprintln!(
        "{} is written anew from a store that is whole in itself. Whether the store is the newest there was cannot be told any more: \
         if it was copied here or rolled back, commits are missing and nothing shows it",
        directory.high_water_path().display()
    );
    Ok(())
}

fn next_step(error: &Error, directory: &Directory) -> String {
    let dir = directory.path().display();
    match error {
        Error::Damaged { file, .. } if *file == directory.high_water_path() => format!(
            "next: fedbroker store check --rebuild-high-water --data-dir {dir}, if the store was not copied or rolled back; \
             else fedbroker store restore"
        ),
        _ => format!(
            "next: fedbroker store restore --from BACKUP --data-dir {dir} --replace, which says before it changes anything what is \
             lost (--dry-run)"
        ),
    }
}

struct Check<'a> {
    store: &'a SledStore,
    directory: &'a Directory,
}

struct Found {
    comparison: Comparison,
    payloads: BTreeMap<PayloadRef, u32>,
    damage: Vec<String>,
    /// Payload files nobody refers to.
    idle: u64,
}

impl Task for Check<'_> {
    type Output = Result<Found, Error>;

    fn run<M: Role>(self) -> Result<Found, Error> {
        let progress = Progress::values("replaying events", self.store.head().next_seq.saturating_sub(1));
        let comparison = compare(M::empty(), self.store, LINGER, &mut |seq| progress.at(seq))?;
        drop(progress);
        let (payloads, differences) = count_payloads::<M>(self.store)?;
        let mut damage = comparison.differences.named.clone();
        damage.extend(differences.named);
        let more = comparison.differences.count + differences.count - damage.len() as u64;
        if more > 0 {
            damage.push(format!("{more} more differences"));
        }
        let bad = bad_payloads(self.directory, &payloads)?;
        damage.extend(name_users::<M>(self.store, &bad)?);
        let idle = idle_payloads(self.directory, &payloads);
        Ok(Found {
            comparison,
            payloads,
            damage,
            idle,
        })
    }
}

/// Payload files that are not what records refer to, and what is wrong with each.
fn bad_payloads(directory: &Directory, wanted: &BTreeMap<PayloadRef, u32>) -> Result<HashMap<PayloadRef, String>, Error> {
    let progress = Progress::bytes("reading payload files", wanted.keys().map(|payload| payload.len).sum());
    let mut bad = HashMap::new();
    for payload in wanted.keys() {
        if let Err(what) = Payloads::check(&directory.payload_dir(), payload)? {
            bad.insert(*payload, what);
        }
        progress.more(payload.len);
    }
    Ok(bad)
}

/// One line for each record that refers to a bad file.
fn name_users<M: Machine>(store: &SledStore, bad: &HashMap<PayloadRef, String>) -> Result<Vec<String>, Error> {
    let mut lines = Vec::new();
    if bad.is_empty() {
        return Ok(lines);
    }
    for kind in [LIVE, ENDED] {
        crate::engine::reader::pages(store, &[kind], |key, value| {
            let record: M::Record = codec::decode(value).map_err(|error| Error::Damaged {
                file: "store".into(),
                what: format!("record {}: {error}", key.escape_ascii()),
            })?;
            let users = M::payloads(&record).into_iter().filter_map(|payload| bad.get(&payload));
            lines.extend(users.map(|what| format!("{what}; record {} refers to it", key.escape_ascii())));
            Ok(true)
        })?;
    }
    Ok(lines)
}

fn idle_payloads(directory: &Directory, wanted: &BTreeMap<PayloadRef, u32>) -> u64 {
    let known: std::collections::HashSet<String> = wanted.keys().map(PayloadRef::hex).collect();
    let dirs = std::fs::read_dir(directory.payload_dir()).into_iter().flatten().flatten();
    let files = dirs.flat_map(|dir| std::fs::read_dir(dir.path()).into_iter().flatten().flatten());
    files.filter(|file| !known.contains(&*file.file_name().to_string_lossy())).count() as u64
}

fn report(store: &SledStore, directory: &Directory, found: &Found) -> ExitCode {
    for line in &found.damage {
        eprintln!("fedbroker: {line}");
    }
    if let Some(first) = found.comparison.trimmed {
        eprintln!("the log begins with event {first}, so its events cannot be replayed; records and payload files were checked");
    }
    if found.idle > 0 {
        eprintln!(
            "{} payload files belong to no record; the next start of the role removes them",
            found.idle
        );
    }
    let head = store.head();
    let verdict = if found.damage.is_empty() { "whole" } else { "damaged" };
    let bytes = found.payloads.keys().map(|payload| payload.len).sum();
    say(&format!(
        "{verdict}: {} at commit {}, {} events replayed, {} live and {} ended records, {} payload files ({})",
        directory.role(),
        head.batch,
        found.comparison.events,
        found.comparison.live,
        found.comparison.ended,
        found.payloads.len(),
        size(bytes)
    ));
    if found.damage.is_empty() {
        return ExitCode::SUCCESS;
    }
    let nowhere = Error::Damaged {
        file: directory.path().to_owned(),
        what: String::new(),
    };
    eprintln!("{}", next_step(&nowhere, directory));
    ExitCode::from(DAMAGED)
}
