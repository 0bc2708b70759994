//! Starts the roles of a federation as child processes of this one, for `quickstart` and `standalone`.
//!
//! Each child's log goes to a file of its own. Children are told to stop when their standard input ends, so that nothing is left behind
//! however this process ends.

use anyhow::Context;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// How long a role may take until it serves. Generous: the machine may be busy.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a role may take to stop before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// One role in a process of its own.
pub(super) struct Role {
    name: String,
    args: Vec<String>,
    log: PathBuf,
    child: Child,
    /// Its end stops the child.
    _stdin: Option<ChildStdin>,
    /// What the ready line said.
    pub(super) address: String,
}

impl Role {
    /// Start a role and wait until it serves. `name` is its name in messages and of its log file.
    ///
    /// # Errors
    /// It ended, or was not ready in time; the text names its log.
    pub(super) async fn start(name: &str, logs: &Path, args: Vec<String>) -> anyhow::Result<Self> {
        Self::start_within(READY_LIMIT, name, logs, args).await
    }

    /// [`Role::start`] of one that may take so long, because of what it has to read.
    ///
    /// # Errors
    /// As [`Role::start`].
    pub(super) async fn start_within(limit: Duration, name: &str, logs: &Path, args: Vec<String>) -> anyhow::Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let (child, stdin, address) = spawn(limit, name, &log, &args).await?;
        Ok(Self {
            name: name.to_owned(),
            args,
            log,
            child,
            _stdin: stdin,
            address,
        })
    }

    /// End it with SIGKILL, as a power cut would.
    ///
    /// # Errors
    /// It has ended by itself.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        self.still_runs()?;
        self.child.kill().await.with_context(|| format!("cannot kill {}", self.name))
    }

    /// Start it again with the arguments of the first start.
    ///
    /// # Errors
    /// As [`Role::start`].
    pub(super) async fn restart(&mut self) -> anyhow::Result<()> {
        (self.child, self._stdin, self.address) = spawn(READY_LIMIT, &self.name, &self.log, &self.args).await?;
        Ok(())
    }

    /// Fails when it has ended.
    ///
    /// # Errors
    /// The text names its log.
    pub(super) fn still_runs(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended ({status}); its log is {}", self.name, self.log.display()),
        }
    }

    /// Its process.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn pid(&self) -> anyhow::Result<u32> {
        self.child
            .id()
            .with_context(|| format!("{} has ended; its log is {}", self.name, self.log.display()))
    }

    /// Ask it to stop, and wait for its end.
    pub(super) async fn stop(mut self) {
        drop(self._stdin.take());
        if tokio::time::timeout(STOP_LIMIT, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

async fn spawn(limit: Duration, name: &str, log: &Path, args: &[String]) -> anyhow::Result<(Child, Option<ChildStdin>, String)> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let stderr = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = Command::new(program)
        .args(args)
        .arg("--stop-on-stdin-end")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let stdin = child.stdin.take();
    let mut lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
    let ready = async {
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some((_, address)) = line.split_once(" ready on ") {
                return Some(address.to_owned());
            }
        }
        None
    };
    match tokio::time::timeout(limit, ready).await {
        Ok(Some(address)) => Ok((child, stdin, address)),
        Ok(None) => anyhow::bail!("{name} did not start; its log is {}{}", log.display(), last_line(log)),
        Err(_) => anyhow::bail!("{name} was not ready after {} s; its log is {}", limit.as_secs(), log.display()),
    }
}

/// The last line of a log, for an error text.
fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .last()
        .map(|line| format!(" and ends with: {line}"))
        .unwrap_or_default()
}

/// What one party runs.
pub(super) struct Party {
    /// Its id.
    pub(super) id: String,
    /// Its directory.
    pub(super) dir: PathBuf,
    /// The master.
    pub(super) master: Role,
    /// Its cluster manager.
    pub(super) cluster_manager: Role,
    /// Its only worker.
    pub(super) worker: Role,
}

/// Where a federation listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    /// The coordinator; 0 takes a free one.
    pub(super) coordinator: u16,
    /// The first master's REST service; 0 takes free ones for all.
    pub(super) masters: u16,
    /// The first cluster manager; 0 takes free ones for all.
    pub(super) cluster_managers: u16,
    /// The first port lent to jobs; each party has [`Ports::LENT`].
    pub(super) lent: u16,
}

impl Ports {
    /// Ports lent to jobs by each party's worker.
    pub(super) const LENT: u16 = 100;

    /// The first of a run of ports for so many parties that nobody listens on now; below the range the system hands out by itself. Starts at a
    /// place of this process's own, so that two federations started together on one machine do not lend the same ports.
    pub(super) fn free_to_lend(parties: u16) -> u16 {
        const FROM: u16 = 12_000;
        const TO: u16 = 30_000;
        let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        let count = parties * Self::LENT;
        let places = u32::from((TO - FROM) / count);
        let own = std::process::id() % places;
        (0..places)
            .filter_map(|n| u16::try_from((own + n) % places).ok())
            .map(|place| FROM + place * count)
            .find(|first| (*first..first + count).all(is_free))
            .unwrap_or(FROM)
    }

    fn nth(first: u16, n: u16) -> u16 {
        if first == 0 { 0 } else { first + n }
    }
}

/// Tasks that a worker of a federation on one machine runs at once, unless it is asked for more: jobs take some, leases as many.
pub(super) const SLOTS: u16 = 10;

/// A whole federation: one coordinator, and a cluster and a master for each party, so that each keeps its data to itself.
pub(super) struct Federation {
    /// The one coordinator.
    pub(super) coordinator: Role,
    /// The parties, in order.
    pub(super) parties: Vec<Party>,
}

impl Federation {
    /// Start everything below `dir`: `coordinator/`, `party<n>/`, `logs/`. Each party finds its data in `party<n>/data` and its programs in
    /// `party<n>/programs`, which must exist. Each party's worker runs as many tasks at once as it has `slots`.
    ///
    /// # Errors
    /// The first role that does not start.
    pub(super) async fn start(dir: &Path, parties: u16, ports: Ports, slots: u16) -> anyhow::Result<Self> {
        let logs = dir.join("logs");
        std::fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let args = words(&[
            "coordinator",
            "--port",
            &ports.coordinator.to_string(),
            "--data-dir",
            &text(&dir.join("coordinator")),
        ]);
        let coordinator = Role::start("coordinator", &logs, args).await?;
        let mut started = Vec::new();
        for n in 0..parties {
            started.push(start_party(dir, &logs, n, ports, slots, &coordinator.address).await?);
        }
        Ok(Self {
            coordinator,
            parties: started,
        })
    }

    /// Fails when a role has ended.
    ///
    /// # Errors
    /// Which, with its log.
    pub(super) fn still_runs(&mut self) -> anyhow::Result<()> {
        self.coordinator.still_runs()?;
        for party in &mut self.parties {
            party.master.still_runs()?;
            party.cluster_manager.still_runs()?;
            party.worker.still_runs()?;
        }
        Ok(())
    }

    /// Where the coordinator listens.
    pub(super) fn coordinator(&self) -> &str {
        &self.coordinator.address
    }

    /// Stop everything.
    pub(super) async fn stop(self) {
        let roles = self
            .parties
            .into_iter()
            .flat_map(|party| [party.master, party.worker, party.cluster_manager]);
        let stops: Vec<_> = roles.chain([self.coordinator]).map(Role::stop).collect();
        futures_util::future::join_all(stops).await;
    }
}

async fn start_party(dir: &Path, logs: &Path, n: u16, ports: Ports, slots: u16, coordinator: &str) -> anyhow::Result<Party> {
    let id = format!("party{}", n + 1);
    let dir = dir.join(&id);
    let name = |role: &str| format!("{id}-{role}");
    let port = Ports::nth(ports.cluster_managers, n).to_string();
    let args = words(&[
        "cluster-manager",
        "--port",
        &port,
        "--data-dir",
        &text(&dir.join("cluster-manager")),
    ]);
    let cluster_manager = Role::start(&name("cluster-manager"), logs, args).await?;

    let first = ports.lent + n * Ports::LENT;
    let (worker_name, first, end) = (name("worker"), first.to_string(), (first + Ports::LENT).to_string());
    let mut args = words(&[
        "cluster-worker",
        "--name",
        &worker_name,
        "--worker-ip",
        "127.0.0.1",
        "--max-tasks",
        &slots.to_string(),
    ]);
    args.extend(words(&[
        "--port-start",
        &first,
        "--port-end",
        &end,
        "--manager-address",
        &cluster_manager.address,
    ]));
    args.extend(words(&[
        "--data-base-dir",
        &text(&dir.join("data")),
        "--programs-dir",
        &text(&dir.join("programs")),
    ]));
    args.extend(words(&["--work-dir", &text(&dir.join("work"))]));
    let worker = Role::start(&worker_name, logs, args).await?;

    let port = Ports::nth(ports.masters, n).to_string();
    let mut args = words(&[
        "master",
        "--party-id",
        &id,
        "--submitter-port",
        &port,
        "--cluster-address",
        &cluster_manager.address,
    ]);
    args.extend(words(&[
        "--coordinator-address",
        coordinator,
        "--data-dir",
        &text(&dir.join("master")),
    ]));
    args.extend(words(&["--programs-dir", &text(&dir.join("programs"))]));
    let mut master = Role::start(&name("master"), logs, args).await?;
    // After a crash it must be found where it was.
    if let (Some(at), Some((_, port))) = (
        master.args.iter().position(|arg| arg == "--submitter-port"),
        master.address.rsplit_once(':'),
    ) {
        master.args[at + 1] = port.to_owned();
    }
    Ok(Party {
        id,
        dir,
        master,
        cluster_manager,
        worker,
    })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
