//! The cluster manager: gives tasks to workers, and keeps what it has promised over any crash.
//!
//! Started by `cli` with [`serve`]. The decisions are in `machine::cluster`, the durability in `engine`; here are the doors (`fedvision`,
//! `fedbroker`), the streams behind them (`worker_stream` with `dispatch`, `watch`, `logs`), what is known only while it runs (`hub`), and the executor
//! (`effects`). None of them may change state but by a command.

mod convert;
mod dispatch;
mod effects;
mod fedbroker;
mod fedvision;
mod forget;
mod hub;
mod logs;
mod parts;
mod submits;
mod watch;
mod worker_stream;

use crate::config::ClusterManagerOptions;
use crate::engine::clock::{Clock, SystemClock};
use crate::engine::open::{Opened, open};
use crate::engine::retention::{self, Keep};
use crate::machine::cluster::{Cluster, Command, Rules};
use crate::observe;
use crate::supervisor::{Policy, Supervisor};
use crate::telemetry::say;
use crate::wire::connect::MESSAGE_MAX;
use crate::wire::fedbroker::v1::cluster_server::ClusterServer;
use crate::wire::fedbroker::v1::peer_server::PeerServer;
use crate::wire::fedvision::framework::cluster::cluster_manager_server::ClusterManagerServer;
use crate::wire::serve::{PeerService, bind, incoming, metered_server};
use anyhow::Context;
use parts::{Shared, SharedParts};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// The name of this role, on the command line and in its data directory.
const ROLE: &str = "cluster-manager";

/// The shortest silence that counts as loss, whatever the grace time: both kinds of worker speak once a second at best, and a loaded
/// machine may make two of those late.
const SILENCE_MIN: Duration = Duration::from_secs(3);

/// What a cluster manager runs by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it keeps its state.
    pub data_dir: PathBuf,
    /// The rules of its machine.
    pub rules: Rules,
    /// How long a worker's stream may be silent before the connection counts as lost.
    pub silence: Duration,
    /// What is kept of tasks that have ended.
    pub keep: Keep,
}

impl Settings {
    /// As the command line says.
    pub fn from_options(options: &ClusterManagerOptions) -> Self {
        let grace = Duration::from_secs(options.worker_grace.max(1));
        let rules = Rules {
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
            max_attempts: options.task_attempts.max(1),
            ..Rules::default()
        };
        Self {
            data_dir: options.data_dir.clone(),
            rules,
            silence: grace.max(SILENCE_MIN),
            keep: Keep::new(options.keep_ended_days, options.keep_ended),
        }
    }
}

/// Run the role until the supervisor stops it. Prints `cluster-manager ready on <addr>` when it serves.
///
/// # Errors
/// The port or the data directory cannot be had, or the store fails.
pub async fn serve(options: ClusterManagerOptions, supervisor: Supervisor) -> anyhow::Result<()> {
    let (listener, address) = bind(&options.host, options.port).await?;
    observe::start(ROLE, &options.host, options.metrics_port, &supervisor).await?;
    start(Settings::from_options(&options), listener, &supervisor).await?;
    say(&format!("{ROLE} ready on {address}"));
    supervisor.run().await
}

/// Recover and begin to serve on a listener; returns once calls are answered.
///
/// # Errors
/// As [`serve`].
pub async fn start(settings: Settings, listener: TcpListener, supervisor: &Supervisor) -> anyhow::Result<SocketAddr> {
    let address = listener.local_addr().context("cannot tell the address of the listener")?;
    let metrics = supervisor.metrics().clone();
    metrics.begin(ROLE, SystemClock.now().0);
    let (dir, machine) = (settings.data_dir.clone(), Cluster::new(settings.rules.clone()));
    let opened = Supervisor::blocking(move || open(&dir, ROLE, None, machine, MESSAGE_MAX as u64, &metrics)).await??;
    let Opened {
        engine,
        payloads,
        instance,
        ..
    } = opened;
    let shared = Arc::new(SharedParts {
        handle: engine.handle(),
        payloads,
        hub: Arc::default(),
        logs: Arc::default(),
        supervisor: supervisor.clone(),
        silence: settings.silence,
        heartbeat: worker_stream::heartbeat(settings.silence),
    });
    let (later, timers) = mpsc::unbounded_channel();
    engine.start(supervisor, effects::sink(shared.hub.clone(), later))?;
    shared.handle.send(Command::Started).await.context("cannot record the start")?;
    supervisor.spawn(
        "timers",
        Policy::Essential,
        effects::run(shared.clone(), Arc::new(SystemClock), timers),
    );
    let keeping = retention::run(shared.handle.clone(), Arc::new(SystemClock), settings.keep, forget::kind());
    supervisor.spawn("retention", Policy::Ordinary, keeping);
    listen(listener, shared, instance);
    Ok(address)
}

fn listen(listener: TcpListener, shared: Shared, instance: String) {
    let supervisor = shared.supervisor.clone();
    let fedvision = ClusterManagerServer::new(fedvision::FedVision(shared.clone()))
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let fedbroker = ClusterServer::new(fedbroker::Fedbroker(shared))
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let peer = PeerServer::new(PeerService { role: ROLE, instance });
    let router = metered_server(supervisor.metrics())
        .add_service(fedvision)
        .add_service(fedbroker)
        .add_service(peer);
    let (stopped, fatal) = (supervisor.stopped(), supervisor.clone());
    supervisor.spawn("cluster doors", Policy::Essential, async move {
        if let Err(error) = router.serve_with_incoming_shutdown(incoming(listener), stopped).await {
            fatal.fatal(anyhow::Error::new(error).context("the cluster manager's doors failed"));
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::machine::cluster::records::{CANCEL_REASON_MAX, ENDPOINTS_MAX, Lease, LeaseId, LeaseState, Task, TaskState};
    use crate::machine::cluster::{Event, Record, STEP_MAX};
    use crate::machine::content::{Content, INLINE_MAX};
    use crate::machine::ids::{ID_MAX, JobId, TaskKey, Timestamp, TypeName, WorkerId};
    use crate::machine::outcome::{End, Outcome, REASON_MAX, STDERR_TAIL_MAX};
    use crate::store::{COST_MAX, Commit, codec};
    use std::sync::Arc;

    fn id() -> String {
        "x".repeat(ID_MAX)
    }

    fn longest_outcome() -> Outcome {
        let mut outcome = Outcome::without_process(End::Failed, "r".repeat(REASON_MAX));
        outcome.exit_code = Some(i32::MIN);
        outcome.stderr_tail = "e".repeat(STDERR_TAIL_MAX);
        outcome.worker = Some(WorkerId::parse(id()).unwrap());
        outcome.attempt = u32::MAX;
        outcome
    }

    fn longest_task(state: TaskState, content: Content) -> Task {
        Task {
            task_type: TypeName::parse(id()).unwrap(),
            content,
            fingerprint: [255; 32],
            assignee: Some(WorkerId::parse(id()).unwrap()),
            state,
            stopping: Some("c".repeat(CANCEL_REASON_MAX)),
            attempts: u32::MAX,
            max_attempts: u32::MAX,
            number: u64::MAX,
            queued_at: Timestamp(u64::MAX),
            changed_at: Timestamp(u64::MAX),
            lease: Some(LeaseId::Job(JobId::parse(id()).unwrap())),
        }
    }

    #[test]
    fn the_largest_records_and_the_largest_command_fit_the_store() {
        let worker = WorkerId::parse(id()).unwrap();
        let key = TaskKey::parse(id(), id()).unwrap();
        let assigned = TaskState::Assigned {
            worker: worker.clone(),
            attempt: u32::MAX,
        };
        let running = Record::Task(Arc::new(longest_task(assigned, Content::Inline(vec![255; INLINE_MAX]))));
        let ended = Record::Task(Arc::new(longest_task(TaskState::Ended(longest_outcome()), Content::default())));
        let lease = Record::Lease(Lease {
            worker: worker.clone(),
            ports: vec![u16::MAX; usize::from(ENDPOINTS_MAX)],
            granted_at: Timestamp(u64::MAX),
            state: LeaseState::Held { bound: Some(key.clone()) },
        });
        let sizes = [&running, &ended, &lease].map(|record| codec::encode(record).len());
        assert!(sizes.iter().all(|size| *size < 3 * 1024), "{sizes:?}");

        let at = Timestamp(u64::MAX);
        let outcome = longest_outcome();
        let lost = codec::encode(&Event::TaskEnded {
            key: key.clone(),
            outcome,
            at,
        });
        let placed = codec::encode(&Event::TaskAssigned { key, worker, at });
        let name = vec![0; 2 * ID_MAX + 3];
        let records = [
            (name.clone(), None),
            (name.clone(), Some(codec::encode(&ended))),
            (name, Some(codec::encode(&running))),
        ];
        let step = Commit {
            events: vec![lost, placed],
            changes: records.to_vec(),
            ..Commit::default()
        };
        assert!(step.cost() * STEP_MAX < COST_MAX / 3, "{}", step.cost());
    }
}
