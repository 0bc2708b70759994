//! Makes a data directory with so many live and finished records: what `recover` starts on, and `fedbroker bench make-store` for anybody.
//!
//! Every event and record comes from the machine's own decisions: commands go in, effects come back and are answered as an executor would,
//! only many commands share a commit and nobody waits for it. Nothing here builds a record by hand.

use super::made::{self, BEGIN, Group, PARTY};
use super::progress::Progress;
use super::tasks::{ROLE, attach, submission};
use crate::engine::clock::{Clock, SystemClock, new_instance};
use crate::engine::reader::{ENDED, LIVE, record_key};
use crate::machine::cluster::{self, Cluster};
use crate::machine::content::Content;
use crate::machine::ids::{PartyId, ProposalId, TaskId, TaskKey, Timestamp, TypeName, WorkerId};
use crate::machine::master::records::{Failure, Lease};
use crate::machine::master::rule::ProposalAcceptRule;
use crate::machine::master::spec::{Provenance, Spec};
use crate::machine::master::{self, JOBS_MAX, Master};
use crate::machine::outcome::{End, Outcome};
use crate::machine::plan::Plan;
use crate::machine::{Input, Machine, Out};
use crate::store::directory::Directory;
use crate::store::sled_store::SledStore;
use crate::store::{COST_MAX, Commit, Head, Store, codec, write_cost};
use crate::supervisor::Supervisor;
use crate::telemetry::say;
use anyhow::Context;
use clap::{Args, ValueEnum};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// A commit is made at this cost, in which a changed record counts as one of 1 KiB, about twice what those made here take.
const FULL: usize = COST_MAX / 2;

/// `fedbroker bench make-store`
#[derive(Args, Clone, Debug)]
pub(super) struct MakeStoreOptions {
    /// A new directory
    #[arg(long)]
    dir: PathBuf,
    /// Whose directory
    #[arg(long, value_enum, default_value_t = Role::Master)]
    role: Role,
    /// Jobs of a master, or tasks of a cluster manager, that have ended
    #[arg(long, default_value_t = 0)]
    finished: u64,
    /// Jobs or tasks that are under way
    #[arg(long, default_value_t = 0)]
    live: u64,
}

/// Whose records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    /// Jobs and their tasks
    Master,
    /// Tasks that wait for a worker
    ClusterManager,
}

/// Make it.
///
/// # Errors
/// The directory has a store already, or cannot be written.
pub(super) fn run(options: &MakeStoreOptions) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let head = make(options.role, &options.dir, options.live, options.finished)?;
    say(&format!(
        "{} live, {} finished, {} events in {} commits, {:.1} s; {}",
        options.live,
        options.finished,
        head.next_seq - 1,
        head.batch,
        began.elapsed().as_secs_f64(),
        match options.role {
            Role::Master => format!("start a master on it with --party-id {PARTY}"),
            Role::ClusterManager => "start a cluster-manager on it".to_owned(),
        }
    ));
    Ok(ExitCode::SUCCESS)
}

/// A directory of this role.
///
/// # Errors
/// See [`run`].
fn make(role: Role, dir: &Path, live: u64, finished: u64) -> anyhow::Result<Head> {
    match role {
        Role::Master => jobs(dir, live, finished),
        Role::ClusterManager => tasks(dir, live, finished),
    }
}

/// [`make`], where there is none yet.
///
/// # Errors
/// See [`run`].
pub(super) async fn make_once(role: Role, dir: &Path, live: u64, finished: u64) -> anyhow::Result<()> {
    if !dir.join("FORMAT").exists() {
        let dir = dir.to_owned();
        Supervisor::blocking(move || make(role, &dir, live, finished)).await??;
    }
    Ok(())
}

/// A master's directory: finished jobs as `made` says, each with its task, and proposals of others; then live jobs in the states in which jobs wait.
fn jobs(dir: &Path, live: u64, finished: u64) -> anyhow::Result<Head> {
    anyhow::ensure!(live <= JOBS_MAX as u64, "--live: a master has at most {JOBS_MAX} jobs under way");
    let machine = Master::new(master::Rules {
        party: PartyId::parse(PARTY)?,
        accept: ProposalAcceptRule {
            job_types: vec!["dummy".to_owned()],
            ..ProposalAcceptRule::default()
        },
        propose_again: false,
        submit_tries: 10,
    });
    let mut maker = Maker::new(dir, "master", Some(PARTY), machine)?;
    let progress = Progress::new(finished + live);
    for n in 0..finished + live {
        // A live job gets this many answers: it waits for its compile step, for the manager to take its task, or for its task's end.
        let mut answers = if n < finished { u64::MAX } else { n % 3 };
        let config = format!(r#"{{"worker_num":0,"sleep_ms":{}}}"#, n % 1000);
        let plan = Plan {
            endpoints: 0,
            workers: 0,
            wait_s: 0,
        };
        let mut spec = Spec::plain(
            TypeName::parse(made::job_type(n))?,
            Content::Inline(config.into_bytes()),
            None,
            plan,
        );
        spec.labels = made::labels(n);
        let mut next = vec![master::Command::Submit {
            spec,
            provenance: Provenance::unknown(),
            fingerprint: [0; 32],
        }];
        if n < finished && Group::PROPOSED.has(n) {
            next.push(offer(n)?);
        }
        while let Some(command) = next.pop() {
            for effect in maker.send(command)? {
                if answers > 0 {
                    answers -= 1;
                    next.extend(answer(effect, Group::FAILED.has(n))?);
                }
            }
        }
        maker.commit_if_full()?;
        maker.now = made::accepted_at(n + 1);
        progress.at(n);
    }
    maker.finish("job ", live)
}

/// Another party's proposal, announced when the nth job comes.
fn offer(n: u64) -> anyhow::Result<master::Command> {
    let stamp = SystemClock.stamp(made::accepted_at(n));
    Ok(master::Command::Offered {
        proposal: ProposalId::parse(format!("other-{stamp}-{}-coo_1", n + 1))?,
        job_type: TypeName::parse(if Group::MISSED.has(n) { "dummy" } else { "program" })?,
    })
}

/// What an executor of the master would come back with.
fn answer(effect: master::Effect, fails: bool) -> anyhow::Result<Option<master::Command>> {
    use master::{Command as C, Effect as E};
    Ok(match effect {
        E::AcquireLease { job, step, .. } => Some(C::Leased {
            job,
            step,
            result: Lease::parse("bench-worker", &[]),
        }),
        E::Prepare { job, step } => {
            let local = vec![master::LocalTask {
                task: TaskId::parse("aggregator")?,
                task_type: TypeName::parse("dummy_aggregator")?,
                content: Content::Inline(format!("task of {job}").into_bytes()),
            }];
            let result = Ok::<_, Failure>(master::Packed { proposal: None, local });
            Some(C::Prepared { job, step, result })
        }
        E::Submit { key, tries } => {
            let answer = master::SubmitAnswer::Taken;
            Some(C::Submitted { key, tries, answer })
        }
        E::Watch { key } => {
            let mut outcome = Outcome::without_process(End::Succeeded, "");
            if fails {
                outcome = Outcome::without_process(End::Failed, "asked to fail");
                outcome.exit_code = Some(1);
                outcome.stderr_tail = "Traceback (most recent call last):\nValueError: asked to fail\n".to_owned();
            }
            outcome.worker = Some(WorkerId::parse("bench-worker")?);
            outcome.attempt = 1;
            Some(C::TaskEnded { key, outcome })
        }
        E::ReleaseLease { job } => Some(C::LeaseReleased { job }),
        E::Fetch { proposal } => {
            let result = Err("another party was chosen".to_owned());
            Some(C::Fetched { proposal, result })
        }
        E::Cancel { .. }
        | E::Propose { .. }
        | E::WakeAt { .. }
        | E::DeadlineAt { .. }
        | E::GiveUp { .. }
        | E::Forget { .. }
        | E::Follow { .. }
        | E::Report { .. }
        | E::Withdraw { .. } => None,
    })
}

/// A cluster manager's directory: tasks that have ended, on a worker that was lost afterwards; then tasks that wait.
///
/// # Errors
/// See [`run`].
pub(super) fn tasks(dir: &Path, live: u64, finished: u64) -> anyhow::Result<Head> {
    use cluster::Command as C;
    let mut maker = Maker::new(dir, ROLE, None, Cluster::new(cluster::Rules::default()))?;
    let worker = WorkerId::parse("bench-worker")?;
    let progress = Progress::new(finished + live);
    maker.send(C::Attach(attach(worker.clone())))?;
    for n in 0..finished + live {
        if n == finished {
            let worker = worker.clone();
            maker.send(C::ConnectionLost {
                worker: worker.clone(),
                session: 1,
            })?;
            maker.send(C::WorkerLost { worker, session: 1 })?;
        }
        let key = TaskKey::parse(format!("bench-20260101000000-{n}"), "aggregator")?;
        for effect in maker.send(C::Submit(submission(key, 200)))? {
            if let cluster::Effect::Dispatch { worker, key, attempt, .. } = effect {
                maker.send(C::Report {
                    worker,
                    key,
                    attempt: Some(attempt),
                    outcome: Outcome::without_process(End::Succeeded, ""),
                })?;
            }
        }
        maker.commit_if_full()?;
        maker.now = maker.now.plus_ms(1000);
        progress.at(n);
    }
    maker.finish("task ", live)
}

/// Copy a data directory that nobody has.
///
/// # Errors
/// A file cannot be read or written.
pub(super) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            let copied = fs::copy(entry.path(), &target).and_then(|_| fs::File::open(&target)?.sync_all());
            copied.with_context(|| format!("cannot write {}", target.display()))?;
        }
    }
    Ok(())
}

/// A machine on a store that nobody serves from.
struct Maker<M: Machine> {
    machine: M,
    store: SledStore,
    _directory: Directory,
    now: Timestamp,
    events: Vec<Vec<u8>>,
    cost: usize,
    changed: std::collections::BTreeSet<M::Key>,
}

impl<M: Machine> Maker<M> {
    fn new(dir: &Path, role: &'static str, owner: Option<&str>, machine: M) -> anyhow::Result<Self> {
        anyhow::ensure!(
            !dir.join("FORMAT").exists(),
            "--dir: {} is a data directory already; name a new one",
            dir.display()
        );
        let directory = Directory::open(dir, role, new_instance())?;
        if let Some(owner) = owner {
            directory.claim(owner)?;
        }
        Ok(Self {
            machine,
            store: SledStore::open(&directory)?,
            _directory: directory,
            now: BEGIN,
            events: Vec::new(),
            cost: 0,
            changed: std::collections::BTreeSet::new(),
        })
    }

    /// Let the machine decide; gives the effects.
    fn send(&mut self, command: M::Command) -> anyhow::Result<Vec<M::Effect>> {
        let input = Input {
            now: self.now,
            stamp: SystemClock.stamp(self.now),
            random: 0,
            recalled: Vec::new(),
        };
        let mut out = Out::new(self.store.head().next_seq + self.events.len() as u64);
        self.machine.decide(command, &input, &mut out)?;
        anyhow::ensure!(out.changes.held.is_empty(), "a record made here refers to a payload file");
        for event in &out.events {
            let bytes = codec::encode(event);
            self.cost += write_cost(bytes.len());
            self.events.push(bytes);
        }
        let known = self.changed.len();
        // Not `append`, which walks both sets.
        self.changed.extend(out.changes.keys);
        self.cost += (self.changed.len() - known) * write_cost(1024);
        Ok(out.effects)
    }

    fn commit_if_full(&mut self) -> anyhow::Result<()> {
        if self.cost < FULL { Ok(()) } else { self.commit() }
    }

    fn commit(&mut self) -> anyhow::Result<()> {
        self.cost = 0;
        let head = self.store.head();
        let mut commit = Commit {
            epoch: head.epoch,
            expected: head.next_seq,
            events: std::mem::take(&mut self.events),
            changes: Vec::new(),
            trim_to: None,
        };
        for key in std::mem::take(&mut self.changed) {
            let bytes = M::key_bytes(&key);
            let record = self.machine.record(&key);
            let (live, ended) = match &record {
                Some(record) if M::is_live(record) => (Some(codec::encode(record)), None),
                Some(record) => (None, Some(codec::encode(record))),
                None => (None, None),
            };
            let forget = ended.is_some();
            commit.changes.push((record_key(LIVE, &bytes), live));
            commit.changes.push((record_key(ENDED, &bytes), ended));
            if forget {
                self.machine.forget(&key);
            }
        }
        self.store.commit(&commit)?;
        Ok(())
    }

    /// The last commit; the machine must then hold as many live records of this kind, by its own count.
    fn finish(mut self, kind: &str, live: u64) -> anyhow::Result<Head> {
        self.commit()?;
        let census = self.machine.census();
        let there: u64 = census.iter().filter(|(what, _)| what.starts_with(kind)).map(|(_, n)| n).sum();
        anyhow::ensure!(
            there == live,
            "{there} {kind}records are live and not {live}: the maker does not answer as the machine expects"
        );
        Ok(self.store.head())
    }
}
