//! `fedbroker store restore`: a data directory of a backup, and the whole truth about what is lost with it.

use super::role::{Role, Task, with_machine};
use super::{DAMAGED, Output};
use crate::cli::store::progress::Progress;
use crate::cli::store::specimen::size_of;
use crate::engine::backup::manifest::Manifest;
use crate::engine::backup::restore::{fresh, in_place};
use crate::engine::backup::verify::verify;
use crate::machine::Logged;
use crate::machine::ids::JobId;
use crate::migrations::CURRENT;
use crate::store::directory::{Directory, FREE_FLOOR};
use crate::store::sled_store::salvage::{Salvage, salvage};
use crate::store::{Head, Seq, codec};
use crate::telemetry::say;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The epoch rises by so much when the epochs given since the backup cannot be known: more starts than a directory sees in its life.
const EPOCH_LEAP: u64 = 1_000_000;
/// A new log takes up to so many times the bytes of its values.
const LOG_FACTOR: u64 = 3;

/// `fedbroker store restore`
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Into a new or empty directory, or with --replace in place of the log of an existing one. The replaced log is kept beside the
new one until you remove it. What came after the backup is lost; it is said exactly.

Examples:
  fedbroker store restore --from /backups/master-p1 --data-dir fedbroker-data/master-p1 --replace --dry-run
  fedbroker store restore --from /backups/master-p1 --data-dir fedbroker-data/master-p1 --replace"
)]
pub(super) struct RestoreOptions {
    /// The backup
    #[arg(long)]
    from: PathBuf,
    /// The data directory to be
    #[arg(long)]
    data_dir: PathBuf,
    /// Replace the log of the data directory that is there
    #[arg(long)]
    replace: bool,
    /// Prove the backup, say what would be lost, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How to print what is lost
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Restore.
///
/// # Errors
/// The backup is damaged, the directory is held or another one's, or there is no room. Nothing has changed then.
pub(super) fn run(options: &RestoreOptions) -> anyhow::Result<ExitCode> {
    let dir = std::path::absolute(&options.data_dir)?;
    let there = dir.join("FORMAT").try_exists()?;
    let directory = if there { Some(Directory::inspect(&dir)?) } else { None };
    refuse_wrong_place(&dir, directory.is_some(), options.replace)?;
    let Some(manifest) = proved(&options.from)? else {
        return Ok(ExitCode::from(DAMAGED));
    };
    let loss = match &directory {
        Some(directory) => {
            refuse_other(directory, &manifest)?;
            with_machine(
                &manifest.origin.role,
                Search {
                    directory,
                    manifest: &manifest,
                },
            )?
        }
        None => Loss::unknown(&manifest),
    };
    loss.print(options.output)?;
    if options.dry_run {
        eprintln!("nothing was changed");
        return Ok(ExitCode::SUCCESS);
    }
    refuse_full(&dir, directory.as_ref(), &options.from)?;
    let epoch = loss.next_epoch;
    let progress = Progress::bytes("restoring", size_of(&options.from));
    let mut heard = |bytes| progress.more(bytes);
    match &directory {
        Some(directory) => {
            let (head, kept) = in_place(&options.from, &manifest, directory, epoch, &mut heard)?;
            drop(progress);
            eprintln!("{} is restored to commit {}", dir.display(), head.batch);
            eprintln!(
                "the log before that is kept in {}; remove it when you need it no more",
                kept.display()
            );
        }
        None => {
            let head = fresh(&options.from, &manifest, &dir, epoch, &mut heard)?;
            drop(progress);
            eprintln!("{} is made, at commit {}", dir.display(), head.batch);
        }
    }
    eprintln!("next: fedbroker store check --data-dir {}, then start the role", dir.display());
    Ok(ExitCode::SUCCESS)
}

fn refuse_wrong_place(dir: &Path, is_data_dir: bool, replace: bool) -> anyhow::Result<()> {
    let is_empty = !dir.try_exists()? || std::fs::read_dir(dir)?.next().is_none();
    anyhow::ensure!(
        is_data_dir || is_empty,
        "{} is not empty and has no FORMAT: either it is no data directory or its FORMAT is lost; move it away and restore again",
        dir.display()
    );
    anyhow::ensure!(
        !is_data_dir || replace,
        "{} is a data directory; --replace puts the backup in place of its log, which is kept beside it",
        dir.display()
    );
    Ok(())
}

/// The manifest of a backup that is whole.
fn proved(backup: &Path) -> anyhow::Result<Option<Manifest>> {
    let progress = Progress::bytes("proving the backup", size_of(backup));
    let verdict = verify(backup, &mut |bytes| progress.more(bytes))?;
    drop(progress);
    for line in &verdict.damage {
        eprintln!("fedbroker: {}: {line}", backup.display());
    }
    if !verdict.damage.is_empty() {
        eprintln!("the backup is damaged; nothing was changed. next: another backup");
        return Ok(None);
    }
    let (found, release) = (verdict.manifest.origin.format, &verdict.manifest.origin.release);
    anyhow::ensure!(
        found == CURRENT,
        "the backup has stored-format version {found}, this release works with {CURRENT}; restore it with fedbroker {release}"
    );
    Ok(Some(verdict.manifest))
}

fn refuse_other(directory: &Directory, manifest: &Manifest) -> anyhow::Result<()> {
    let instance = format!("{:032x}", u128::from_be_bytes(directory.instance()));
    let (is, was) = ((directory.role(), instance), (&manifest.origin.role, &manifest.origin.instance));
    anyhow::ensure!(
        (&is.0, &is.1) == was,
        "the backup is of the {} with instance {}, and {} belongs to the {} with instance {}; restore into a new directory",
        was.0,
        was.1,
        directory.path().display(),
        is.0,
        is.1
    );
    Ok(())
}

fn refuse_full(dir: &Path, directory: Option<&Directory>, backup: &Path) -> anyhow::Result<()> {
    let log = std::fs::metadata(backup.join("log"))?.len();
    let payloads = if directory.is_some() {
        0
    } else {
        size_of(&backup.join("payloads"))
    };
    let needed = LOG_FACTOR * log + payloads + FREE_FLOOR;
    let there = dir.ancestors().find(|path| path.is_dir()).unwrap_or(dir);
    let stat = rustix::fs::statvfs(there)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    anyhow::ensure!(
        free >= needed,
        "{} has {free} bytes free, and the restore may take {needed}; make room first",
        there.display()
    );
    Ok(())
}

/// What is lost with a restore.
#[derive(Debug, Serialize)]
struct Loss {
    /// The last commit that is not lost.
    backup_commit: u64,
    backup_made: String,
    /// The last commit confirmed for certain, from the file beside the damaged log.
    confirmed_commit: Option<u64>,
    /// The last commit anything was found of.
    found_commit: Option<u64>,
    /// First and last lost event, as far as it is known.
    events: Option<(Seq, Seq)>,
    events_found: u64,
    /// Jobs that came after the backup: they will not be there.
    jobs_came: Vec<String>,
    /// Jobs that changed after it: they will be as they were.
    jobs_changed: Vec<String>,
    /// Whether these are all jobs, and if not why.
    complete: bool,
    why_incomplete: Option<String>,
    #[serde(skip)]
    next_epoch: u64,
}

struct Search<'a> {
    directory: &'a Directory,
    manifest: &'a Manifest,
}

impl Task for Search<'_> {
    type Output = Loss;

    fn run<M: Role>(self) -> Loss {
        let backup = Head::from(self.manifest.head);
        // Whether a job came after the backup, or only changed.
        let mut jobs: BTreeMap<JobId, bool> = BTreeMap::new();
        let length = |bytes: &[u8]| codec::decode_prefix::<Logged<M::Event>>(bytes).map(|(_, len)| len);
        let found = salvage(self.directory, backup, &length, &mut |_, body| {
            let Ok(logged) = codec::decode::<Logged<M::Event>>(body) else {
                return;
            };
            if let Some(job) = M::job_of_event(&logged.event) {
                *jobs.entry(job).or_default() |= M::begins_job(&logged.event);
            }
        });
        let of = |came: bool| {
            jobs.iter()
                .filter(move |(_, is)| **is == came)
                .map(|(job, _)| job.to_string())
                .collect()
        };
        Loss::new(self.manifest, &found, of(true), of(false))
    }
}

impl Loss {
    /// Of a directory that is not there.
    fn unknown(manifest: &Manifest) -> Loss {
        let nothing = Salvage::default();
        let mut loss = Loss::new(manifest, &nothing, Vec::new(), Vec::new());
        loss.complete = false;
        loss.why_incomplete = Some("there is no damaged directory to look at: whatever came after the backup is lost".to_owned());
        loss
    }

    fn new(manifest: &Manifest, found: &Salvage, jobs_came: Vec<String>, jobs_changed: Vec<String>) -> Loss {
        let backup = Head::from(manifest.head);
        let newest = found.newest.max(found.confirmed.unwrap_or(0));
        // The head of the newest commit says how many events there were; without it only those that were found are known.
        let whole_head = found.head.filter(|head| head.batch >= newest);
        let last = match whole_head {
            Some(head) => Some(head.next_seq - 1),
            None => found.events.last().copied(),
        };
        let last = last.filter(|last| *last >= backup.next_seq);
        let (lost, events_found) = (last.map_or(0, |last| last + 1 - backup.next_seq), found.events.len() as u64);
        let why = if newest <= backup.batch && found.confirmed.is_some() {
            None
        } else if found.confirmed.is_none() {
            Some("the high-water file cannot be read, so the last commits may be gone without a trace".to_owned())
        } else if whole_head.is_none() {
            Some(format!(
                "nothing of the head of commit {newest} was found, so nobody knows how many events there were"
            ))
        } else if events_found < lost {
            Some(format!(
                "{} of the {lost} lost events were not found in the damaged log",
                lost - events_found
            ))
        } else {
            None
        };
        let known_epoch = whole_head.map(|head| head.epoch);
        Loss {
            backup_commit: backup.batch,
            backup_made: manifest.origin.created_at.clone(),
            confirmed_commit: found.confirmed,
            found_commit: (found.newest > 0).then_some(found.newest),
            events: last.map(|last| (backup.next_seq, last)),
            events_found,
            jobs_came,
            jobs_changed,
            complete: why.is_none(),
            why_incomplete: why,
            next_epoch: known_epoch.unwrap_or(backup.epoch + EPOCH_LEAP).max(backup.epoch) + 1,
        }
    }

    fn print(&self, output: Output) -> anyhow::Result<()> {
        if output == Output::Json {
            say(&serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        say(&format!("backup: commit {}, made {}", self.backup_commit, self.backup_made));
        let newest = self.confirmed_commit.max(self.found_commit);
        match newest {
            Some(newest) if newest > self.backup_commit => {
                say(&format!("lost: commits {} to {newest}", self.backup_commit + 1));
            }
            Some(_) => say("lost: nothing, no commit came after the backup"),
            None => say("lost: every commit after the backup, how many is not known"),
        }
        if let (Some(confirmed), Some(found)) = (self.confirmed_commit, self.found_commit)
            && found > confirmed
        {
            say(&format!(
                "  of them {} to {found} may not have been confirmed to anybody",
                confirmed.max(self.backup_commit) + 1
            ));
        }
        if let Some((first, last)) = self.events {
            say(&format!("  events {first} to {last}, {} of them found", self.events_found));
        }
        for (jobs, what) in [
            (&self.jobs_came, "came after the backup, will not be there"),
            (&self.jobs_changed, "changed after the backup"),
        ] {
            for job in jobs {
                say(&format!("  job {job} {what}"));
            }
        }
        match &self.why_incomplete {
            None => say("these are all jobs that the lost commits were about"),
            Some(why) => say(&format!("there may be more jobs than these: {why}")),
        }
        Ok(())
    }
}
