//! The cluster worker: runs tasks for one cluster manager, ours or FedVision 0.1's.
//!
//! Called by `cli`. It keeps nothing durable: what it knows it tells the manager again at each attach, and a new process is a new
//! instance. Tasks go on while the manager is away; when this process ends, in whatever way, its tasks end with all their processes.

mod attach;
mod directory;
mod enroll;
mod incoming;
mod log_file;
mod logs;
mod sweep;
mod table;
mod tasks;

use crate::config::WorkerOptions;
use crate::engine::clock::{Clock, SystemClock, new_instance};
use crate::job_types::exec::Shim;
use crate::job_types::{Options, Python, Registry};
use crate::machine::ids::{JobId, WorkerId};
use crate::metrics::Metrics;
use crate::observe;
use crate::supervisor::{Policy, Supervisor};
use crate::telemetry::say;
use crate::wire::connect::{Backoff, PeerKind, hello};
use crate::wire::{connect, metered};
use anyhow::{Context, bail, ensure};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use sweep::{Keep, Sweeper};
use tasks::Tasks;

const ROLE: &str = "cluster-worker";
/// The role it is connected to, in metrics.
const PEER: &str = "cluster-manager";
/// The longest `--paddle-timeout`, seconds: a year.
const PADDLE_TIMEOUT_MAX_S: u64 = 366 * 24 * 3600;

/// One worker process, as its connections see it.
struct Worker {
    options: WorkerOptions,
    /// Random per process.
    instance: String,
    tasks: Arc<Tasks>,
    sweeper: Arc<Sweeper>,
    supervisor: Supervisor,
    announced: AtomicBool,
    metrics: Metrics,
}

/// How a connection ended.
struct Ending {
    attached: bool,
    reason: String,
}

impl Ending {
    fn not_attached(reason: impl Into<String>) -> Self {
        Self {
            attached: false,
            reason: reason.into(),
        }
    }

    fn lost(reason: String) -> Self {
        Self { attached: true, reason }
    }
}

impl Worker {
    /// The manager has taken this worker.
    fn attached(&self) {
        self.metrics.peers().connected(PEER, true);
        tracing::info!(worker = self.options.name, manager = self.options.manager_address, "attached");
        if !self.announced.swap(true, Ordering::Relaxed) {
            say(&format!("{ROLE} ready on {}", self.options.manager_address));
        }
    }
}

impl Worker {
    /// The manager has forgotten a job.
    fn forget(&self, job: JobId) {
        let sweeper = self.sweeper.clone();
        self.supervisor.spawn("removal", Policy::Ordinary, async move {
            if let Err(error) = Supervisor::blocking(move || sweeper.forget(&job)).await {
                tracing::error!(%error, "the removal of work directories failed");
            }
        });
    }
}

/// Check the options and start the worker under the supervisor; its end is `supervisor.run()`.
///
/// # Errors
/// An option is wrong; the text names the flag and the mend.
pub async fn serve(options: WorkerOptions, supervisor: Supervisor) -> anyhow::Result<()> {
    let shim = Shim::this_program().context("cannot find this program, which supervises the tasks")?;
    // The manager is to hear that the tasks of an earlier process are gone when they are.
    let (waiting, dir, name) = (shim.clone(), options.work_dir.clone(), options.name.clone());
    let guard = move || {
        std::fs::create_dir_all(&dir)?;
        waiting.guard(&dir.join(format!(".running-{}", directory::component(&name))))
    };
    Supervisor::blocking(guard)
        .await?
        .context("--work-dir: the lock of what runs there")?;
    serve_with(options, supervisor, shim).await
}

/// As [`serve`], with the binary that supervises tasks.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with(options: WorkerOptions, supervisor: Supervisor, shim: Shim) -> anyhow::Result<()> {
    let (options, name) = check(options)?;
    supervisor.metrics().begin(ROLE, SystemClock.now().0);
    observe::start(ROLE, &options.metrics_host, options.metrics_port, &supervisor).await?;
    let registry = Registry::new(Options {
        enabled: None,
        programs_dir: options.programs_dir.clone(),
        data_dir: options.data_base_dir.clone(),
        python: Python {
            command: options.python.clone(),
            timeout: Duration::from_secs(options.paddle_timeout),
        },
        shim,
        who: format!("worker {name}"),
    })?;
    let max = usize::try_from(options.max_tasks)?;
    let tasks = Tasks::new(name, max, options.work_dir.clone(), registry, supervisor.clone());
    tasks.shown_by(supervisor.metrics());
    let sweeper = Sweeper::new(tasks.clone(), options.work_dir.clone());
    let keep = Keep {
        age: Duration::from_secs(u64::from(options.keep_work_days) * 24 * 3600),
        bytes: options.keep_work_bytes,
    };
    supervisor.spawn("sweeper", Policy::Ordinary, sweeper.clone().run(keep));
    let instance = new_instance().iter().map(|byte| format!("{byte:02x}")).collect();
    let worker = Worker {
        options,
        instance,
        tasks,
        sweeper,
        supervisor: supervisor.clone(),
        announced: AtomicBool::new(false),
        metrics: supervisor.metrics().clone(),
    };
    supervisor.spawn("connection to the manager", Policy::Essential, connect(worker));
    Ok(())
}

/// Keep a connection to the manager, for ever.
async fn connect(worker: Worker) {
    let mut backoff = Backoff::new();
    let reconnects = worker.metrics.peers().reconnects(PEER);
    let address = &worker.options.manager_address;
    loop {
        let ending = match metered::channel(address, PEER, &worker.metrics) {
            Ok(channel) => match hello(channel.clone(), ROLE).await {
                Ok(PeerKind::Fedbroker { .. }) => attach::session(&worker, channel).await,
                Ok(PeerKind::FedVision) => enroll::session(&worker, channel).await,
                Err(status) => Ending::not_attached(status.message()),
            },
            // The options were checked, so this cannot be.
            Err(error) => Ending::not_attached(error.to_string()),
        };
        worker.metrics.peers().connected(PEER, false);
        reconnects.one();
        if ending.attached {
            backoff.reset();
            tracing::warn!(
                manager = address,
                reason = ending.reason,
                "connection to the cluster manager lost, tasks go on"
            );
        } else {
            tracing::warn!(manager = address, reason = ending.reason, "cluster manager not ready, trying again");
        }
        backoff.wait().await;
    }
}

/// Check the options; directories come back absolute, since tasks have directories of their own.
fn check(mut options: WorkerOptions) -> anyhow::Result<(WorkerOptions, WorkerId)> {
    let name = WorkerId::parse(options.name.as_str()).map_err(|bad| anyhow::anyhow!("--name: {}; give a short name", bad.why))?;
    let ip = &options.worker_ip;
    ensure!(
        !ip.is_empty() && !ip.contains(|c: char| c.is_whitespace() || c.is_control()),
        "--worker-ip: {ip:?} is not an address; give the one under which other parties reach this machine"
    );
    ensure!(
        (1..=i32::MAX as u32).contains(&options.max_tasks),
        "--max-tasks: {} tasks can run nothing; give 1 or more",
        options.max_tasks
    );
    ensure!(
        options.port_start > 0 && options.port_start < options.port_end,
        "--port-start {} --port-end {}: no ports to lend; the start must be at least 1 and below the end, which is exclusive",
        options.port_start,
        options.port_end
    );
    ensure!(
        (1..=PADDLE_TIMEOUT_MAX_S).contains(&options.paddle_timeout),
        "--paddle-timeout: must be 1 to {PADDLE_TIMEOUT_MAX_S} seconds"
    );
    connect::channel(&options.manager_address).context("--manager-address")?;
    options.data_base_dir = options.data_base_dir.map(|dir| existing("--data-base-dir", &dir)).transpose()?;
    options.programs_dir = options.programs_dir.map(|dir| existing("--programs-dir", &dir)).transpose()?;
    options.work_dir = writable(&options.work_dir)?;
    Ok((options, name))
}

fn existing(flag: &str, dir: &Path) -> anyhow::Result<PathBuf> {
    let found = dir
        .canonicalize()
        .with_context(|| format!("{flag}: {} cannot be found; create it or give another", dir.display()))?;
    if !found.is_dir() {
        bail!("{flag}: {} is not a directory; give one", dir.display());
    }
    Ok(found)
}

fn writable(dir: &Path) -> anyhow::Result<PathBuf> {
    let mend = || {
        format!(
            "--work-dir: {} cannot be written; give a directory that this user can write",
            dir.display()
        )
    };
    std::fs::create_dir_all(dir).with_context(mend)?;
    tempfile::tempfile_in(dir).with_context(mend)?;
    dir.canonicalize().with_context(mend)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &Path) -> WorkerOptions {
        WorkerOptions {
            name: "w1".into(),
            worker_ip: "127.0.0.1".into(),
            max_tasks: 2,
            port_start: 12000,
            port_end: 12010,
            manager_address: "127.0.0.1:1".into(),
            data_base_dir: None,
            programs_dir: None,
            python: "python3".into(),
            paddle_timeout: 1,
            work_dir: dir.join("work"),
            metrics_port: None,
            metrics_host: "127.0.0.1".into(),
            keep_work_days: 7,
            keep_work_bytes: None,
        }
    }

    type Spoil = fn(&mut WorkerOptions, PathBuf);

    #[tokio::test]
    async fn wrong_options_are_named_with_their_mend() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check(options(dir.path())).unwrap().0.work_dir.is_absolute());
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let cases: [(&str, Spoil); 9] = [
            ("--name: must not be empty", |o, _| o.name.clear()),
            ("--worker-ip", |o, _| o.worker_ip = "a b".into()),
            ("--max-tasks", |o, _| o.max_tasks = 0),
            ("--port-start 12010 --port-end 12010: no ports", |o, _| o.port_start = 12010),
            ("--manager-address: \"x\" is not an address", |o, _| o.manager_address = "x".into()),
            ("--data-base-dir", |o, file| o.data_base_dir = Some(file.with_file_name("none"))),
            ("--programs-dir", |o, file| o.programs_dir = Some(file)),
            ("--paddle-timeout: must be", |o, _| o.paddle_timeout = 0),
            ("--work-dir", |o, file| o.work_dir = file.join("x")),
        ];
        for (part, spoil) in cases {
            let mut options = options(dir.path());
            spoil(&mut options, file.clone());
            let error = format!("{:#}", check(options).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
