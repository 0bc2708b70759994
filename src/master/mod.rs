//! The party master: REST in front, the coordinator on one side, the cluster on the other, one durable log in the middle.
//!
//! [`serve`] puts the parts together; [`rest`] is the door of users, `subscriber` the door of the federation, `runner` and `submitter`
//! carry out what the machine asks for. All of them speak to the machine through `engine::Handle` only.

mod call;
mod contacts;
mod follower;
pub mod index;
mod leases;
pub mod logs;
pub mod peers;
mod reporter;
pub mod rest;
mod retention;
mod runner;
mod sending;
mod settings;
mod small_tasks;
mod submitter;
mod subscriber;
mod timers;
mod turns;
pub mod waiting;
mod watch;
mod working;

use crate::config::MasterOptions;
use crate::engine::Handle;
use crate::engine::backup::Source;
use crate::engine::clock::{Clock, SystemClock};
use crate::engine::open::open;
use crate::engine::recover::RecoveryReport;
use crate::job_types::exec::Shim;
use crate::job_types::{Options as JobTypeOptions, Python, Registry};
use crate::machine::content::{Content, PayloadRef};
use crate::machine::ids::{PartyId, Timestamp};
use crate::machine::master::{Effect, Key, Master, Record, Rules};
use crate::store::Error as StoreError;
use crate::store::payload::pieces::Pieces;
use crate::store::payload::{Payloads, Pinned};
use crate::supervisor::{Policy, Supervisor};
use crate::telemetry::say;
use crate::wire::connect::{Backoff, MESSAGE_MAX, Probe};
use crate::wire::metered::channel;
use crate::wire::pieces;
use crate::wire::serve::bind;
use anyhow::Context;
use bytes::Bytes;
use contacts::{Contacts, Peer};
use index::Index;
use logs::Logs;
use settings::Settings;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use waiting::Waiting;
use working::Working;

/// The longest party id: a job id is made of it, a stamp and a number, and must stay below the limit of ids.
const PARTY_MAX: usize = 128;
/// The longest payload, bytes: a message of the wire and a little more.
const PAYLOAD_MAX: u64 = MESSAGE_MAX as u64 + 1024 * 1024;

/// What every part of the master shares: one for each role, since every request and every step of a job has it.
pub type Shared = Arc<SharedParts>;

/// See [`Shared`].
pub struct SharedParts {
    /// This party.
    pub party: PartyId,
    /// The door to the machine.
    pub handle: Handle<Master>,
    /// Content too large for records.
    pub payloads: Arc<Payloads>,
    /// What an online backup is made from.
    pub backup: Source,
    /// The job types of this party.
    pub registry: Arc<Registry>,
    /// Spawns.
    pub supervisor: Supervisor,
    /// Identity of the data directory, hexadecimal.
    pub instance: String,
    /// Directory for compiling.
    pub work_dir: PathBuf,
    /// Directory of the log.
    pub log_dir: PathBuf,
    /// When this process began to serve.
    pub started_at: Timestamp,
    /// What the start found.
    pub recovery: Arc<RecoveryReport>,
    /// How the subscription stands.
    pub subscription: Subscription,
    /// Whether the peers answer.
    pub contacts: Contacts,
    /// What waits here.
    pub waiting: Waiting,
    /// Who works for which job.
    pub working: Working,
    /// Which jobs there are.
    pub index: Arc<Index>,
    /// What tasks printed.
    pub logs: Logs,
}

/// How the subscription at the coordinator stands, for readiness and status. Volatile; cheap to clone.
#[derive(Clone, Default)]
pub struct Subscription(Arc<tokio::sync::watch::Sender<SubscriptionState>>);

/// See [`Subscription`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionState {
    /// Offers reach this party, as far as it can know.
    pub connected: bool,
    /// The coordinator has been asked, and does not let this party in.
    pub refused: bool,
    /// Why not, or what the last trouble was.
    pub trouble: Option<String>,
}

impl Subscription {
    /// As it stands.
    pub fn get(&self) -> SubscriptionState {
        self.0.borrow().clone()
    }

    fn set(&self, state: SubscriptionState) {
        self.0.send_replace(state);
    }

    /// Resolves while offers reach this party.
    async fn connected(&self) {
        let _ = self.0.subscribe().wait_for(|state| state.connected).await;
    }

    /// Resolves once the coordinator has taken this party, or refused it.
    async fn decided(&self) {
        // The sender is in `self`.
        let _ = self.0.subscribe().wait_for(|state| state.connected || state.refused).await;
    }
}

impl SharedParts {
    /// Make bytes, which come in pieces, fit for a record: few of them inline, many in a durable file that the pin keeps until the record refers to it.
    /// They cannot be asked for again: a full disk or too many open files are waited out.
    ///
    /// # Errors
    /// The bytes can never be kept.
    pub async fn keep_patiently(&self, pieces: Vec<Bytes>) -> anyhow::Result<(Content, Option<Pinned>)> {
        if Content::fits(pieces::len(&pieces)) {
            // No disk, no thread.
            return Ok(self.payloads.keep(&pieces)?);
        }
        let mut backoff = Backoff::new();
        loop {
            let (payloads, pieces) = (self.payloads.clone(), pieces.clone());
            let kept = Supervisor::blocking(move || payloads.keep(&pieces)).await?;
            match kept.map_err(anyhow::Error::new) {
                Err(error) if is_passing(&error) => tracing::error!(error = format!("{error:#}"), "cannot keep content, trying again"),
                kept => return kept,
            }
            backoff.wait().await;
        }
    }

    /// The bytes of a record's content. What may pass (too many open files) is waited out.
    ///
    /// # Errors
    /// The file is damaged or gone.
    pub async fn load(&self, content: &Content) -> anyhow::Result<Vec<u8>> {
        match content {
            Content::Inline(bytes) => Ok(bytes.clone()),
            Content::Stored(payload) => self.read_patiently(*payload, Payloads::load_stored).await,
        }
    }

    /// The bytes of a payload file, one piece at a time. What may pass is waited out until there is a first one.
    ///
    /// # Errors
    /// The file is damaged at first sight, or gone.
    pub async fn open(&self, payload: PayloadRef) -> anyhow::Result<Pieces> {
        self.read_patiently(payload, Payloads::pieces).await
    }

    async fn read_patiently<T: Send + 'static>(
        &self,
        payload: PayloadRef,
        read: fn(&Payloads, &PayloadRef) -> Result<Option<T>, StoreError>,
    ) -> anyhow::Result<T> {
        let mut backoff = Backoff::new();
        loop {
            let payloads = self.payloads.clone();
            let read = Supervisor::blocking(move || read(&payloads, &payload)).await?;
            match read
                .map_err(anyhow::Error::new)
                .and_then(|read| read.context("the content was released meanwhile"))
            {
                Err(error) if is_passing(&error) => tracing::error!(error = format!("{error:#}"), "cannot read content, trying again"),
                read => return read,
            }
            backoff.wait().await;
        }
    }

    /// A durable record. A store that cannot be read is the end of the role ([`crate::engine::reader::Reader`] sees to it).
    pub async fn record(&self, key: Key) -> Option<Record> {
        match self.handle.reader().fetch(key).await {
            Ok(Ok(record)) => record,
            Ok(Err(error)) => {
                tracing::error!(%error, "a record cannot be read");
                None
            }
            Err(panicked) => {
                self.supervisor.fatal(panicked);
                None
            }
        }
    }
}

/// True for an error that another try may not meet.
fn is_passing(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<StoreError>(), Some(StoreError::Io { source, .. }) if source.kind() != std::io::ErrorKind::NotFound)
}

/// Run a master until the supervisor stops.
///
/// # Errors
/// The options, the port or the data directory are no good.
pub async fn serve(options: MasterOptions, supervisor: Supervisor) -> anyhow::Result<()> {
    let metrics = supervisor.metrics().clone();
    let started_at = SystemClock.now();
    metrics.begin("master", started_at.0);
    let settings = Settings::read(options.config.as_deref())?;
    let party = PartyId::parse(options.party_id.clone()).context("--party-id")?;
    anyhow::ensure!(party.as_str().len() <= PARTY_MAX, "--party-id: at most {PARTY_MAX} bytes");
    let coordinator = channel(&options.coordinator_address, subscriber::PEER, &metrics).context("--coordinator-address")?;
    let cluster = channel(&options.cluster_address, submitter::PEER, &metrics).context("--cluster-address")?;
    let shim = Shim::this_program()?;
    let registry = registry(&options, &settings, shim.clone())?;
    settings.check_types(&subscribed_types(&options))?;
    let (listener, address) = bind(&options.rest_host, options.submitter_port).await.context("--submitter-port")?;

    let rules = Rules {
        party: party.clone(),
        accept: settings.accept.clone(),
        propose_again: settings.propose_again,
        submit_tries: settings.submit_tries,
    };
    let dir = options.data_dir.clone().unwrap_or_else(|| default_data_dir(&party));
    let owner = party.clone();
    let mut opened =
        Supervisor::blocking(move || open(&dir, "master", Some(owner.as_str()), Master::new(rules), PAYLOAD_MAX, &metrics)).await??;
    let lock = opened.work_dir.join("running");
    Supervisor::blocking(move || shim.guard(&lock))
        .await?
        .context("the lock of what is compiled")?;
    let index = Arc::new(Index::default());
    opened.engine.project(index.feed());
    let home = index::Home {
        reader: opened.engine.handle().reader().clone(),
        path: opened.log_dir.join("index"),
        instance: opened.instance.clone(),
        head: opened.engine.report.next_seq - 1,
    };
    let shared = Arc::new(SharedParts {
        party,
        handle: opened.engine.handle(),
        payloads: opened.payloads,
        backup: opened.backup,
        registry: Arc::new(registry),
        supervisor: supervisor.clone(),
        instance: opened.instance,
        work_dir: opened.work_dir,
        log_dir: opened.log_dir,
        started_at,
        recovery: Arc::new(opened.engine.report.clone()),
        subscription: Subscription::default(),
        contacts: Contacts {
            coordinator: Peer::new(&options.coordinator_address, coordinator.clone()),
            cluster: Peer::new(&options.cluster_address, cluster.clone()),
        },
        waiting: Waiting::default(),
        working: Working::default(),
        index: index.clone(),
        logs: Logs::new(cluster.clone()),
    });

    let (effects, queue) = mpsc::unbounded_channel();
    let probe = Probe::new(coordinator.clone(), "master");
    let executors = Executors {
        timers: timers::Timers::start(shared.handle.clone(), &supervisor),
        runner: runner::Runner::new(shared.clone(), coordinator.clone(), &settings),
        follower: follower::Follower::start(&shared, coordinator.clone(), probe.clone()),
        reporter: reporter::Reporter::start(&shared, coordinator.clone(), probe.clone()),
        submitter: submitter::Submitter::new(shared.clone(), cluster, options.cluster_address.clone(), &settings),
        subscriber: subscriber::Subscriber::new(shared.clone(), (coordinator, probe), subscribed_types(&options), &settings.patience),
    };
    executors.start(queue);
    opened
        .engine
        .start(&supervisor, Box::new(move |effect| drop(effects.send(effect))))?;

    index.start(&supervisor, home);
    let sweeping = retention::run(shared.clone(), settings.retention.clone());
    supervisor.spawn("retention", Policy::Essential, sweeping);
    supervisor.spawn("rest", Policy::Essential, rest::serve(listener, rest::Door::new(shared)));
    say(&format!("master ready on {address}"));
    supervisor.stopped().await;
    Ok(())
}

/// Masters of several parties may run on one machine with the flags of FedVision 0.1, which knows no data directory.
fn default_data_dir(party: &PartyId) -> PathBuf {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let name: String = party
        .as_str()
        .chars()
        .map(|c| if plain(c) { c.to_string() } else { format!("%{:x}", u32::from(c)) })
        .collect();
    Path::new("fedbroker-data").join(format!("master-{name}"))
}

fn subscribed_types(options: &MasterOptions) -> Vec<String> {
    options
        .job_types
        .iter()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

fn registry(options: &MasterOptions, settings: &Settings, shim: Shim) -> anyhow::Result<Registry> {
    if let Some(dir) = &options.programs_dir {
        anyhow::ensure!(dir.is_dir(), "--programs-dir: {} is not a directory", dir.display());
    }
    let names = subscribed_types(options);
    Ok(Registry::new(JobTypeOptions {
        enabled: Some(names),
        programs_dir: options.programs_dir.clone(),
        data_dir: None,
        python: Python {
            command: options.python.clone(),
            timeout: Duration::from_secs(settings.paddle_fl.compile_timeout.into()),
        },
        shim,
        who: format!("master {}", options.party_id),
    })?)
}

/// Where a job is compiled.
fn compile_dir(shared: &Shared, number: u64) -> PathBuf {
    shared.work_dir.join("compile").join(number.to_string())
}

/// Those who carry out effects.
struct Executors {
    runner: runner::Runner,
    follower: follower::Follower,
    reporter: reporter::Reporter,
    submitter: Arc<submitter::Submitter>,
    subscriber: subscriber::Subscriber,
    timers: timers::Timers,
}

impl Executors {
    /// Hand each effect to its executor as it comes.
    fn start(self, mut queue: mpsc::UnboundedReceiver<Effect>) {
        let supervisor = self.runner.shared().supervisor.clone();
        self.subscriber.start();
        supervisor.spawn("effects", Policy::Essential, async move {
            while let Some(effect) = queue.recv().await {
                match effect {
                    Effect::Prepare { job, step } => self.runner.prepare(job, step),
                    Effect::Propose {
                        job,
                        step,
                        legacy_call,
                        tries,
                    } => self.runner.propose(job, step, legacy_call, tries),
                    Effect::Fetch { proposal } => self.subscriber.fetch(proposal),
                    Effect::Follow { job, after } => self.follower.follow(job, after),
                    Effect::Report { proposal, number } => self.reporter.report(proposal, number),
                    Effect::Withdraw { job } => self.reporter.withdraw(job),
                    Effect::AcquireLease { .. }
                    | Effect::ReleaseLease { .. }
                    | Effect::Submit { .. }
                    | Effect::Watch { .. }
                    | Effect::Cancel { .. }
                    | Effect::Forget { .. } => self.submitter.take(effect),
                    Effect::WakeAt { job, step, at } => self.timers.wake(job, step, at),
                    Effect::DeadlineAt { job, at } => self.timers.deadline(job, at),
                    Effect::GiveUp { job, ended } => {
                        self.runner.shared().working.give_up(&job);
                        self.submitter.give_up(&job);
                        if ended {
                            self.timers.disarm(job);
                        }
                    }
                }
            }
        });
    }
}
