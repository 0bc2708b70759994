//! Real `fedbroker` processes for tests: started on free ports, killed, started again where they were, and ended with the test.

#![allow(dead_code, reason = "each test binary uses its own part")]

use serde_json::{Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// The longest any single thing is waited for: the machine may be busy, so no test depends on it being short.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_fedbroker");

/// Held while a process is begun, and while a data directory is open in this process: a child has copies of all descriptors until it is another
/// program, that of a directory's lock too.
pub static BEGINNING: Mutex<()> = Mutex::new(());

/// Take [`BEGINNING`], whatever became of its last holder.
pub fn beginning() -> MutexGuard<'static, ()> {
    BEGINNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first of so many neighbouring ports that nobody has now. A role must come back where it was after a crash, so port 0 does not do; ports
/// are taken below the range from which the system gives outgoing connections theirs, or one of those could sit on it meanwhile. Each is given
/// once, since who gets one binds it later.
pub fn free_ports(count: u16) -> u16 {
    const RANGE: std::ops::Range<u16> = 10_000..30_000;
    static NEXT: LazyLock<Mutex<u16>> = LazyLock::new(|| Mutex::new(rand::random_range(RANGE)));
    let mut next = NEXT.lock().unwrap();
    loop {
        let first = if *next + count <= RANGE.end { *next } else { RANGE.start };
        *next = first + count;
        if (first..first + count).all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return first;
        }
    }
}

/// A time so far from now, RFC 3339 in milliseconds: later times are greater texts.
pub fn in_ms(ms: i64) -> String {
    format!("{:.3}", jiff::Timestamp::now() + jiff::SignedDuration::from_millis(ms))
}

/// One role in a process of its own. Dropping it kills it.
pub struct Role {
    /// For messages and the log file.
    pub name: String,
    args: Vec<String>,
    /// Added to its environment.
    pub env: Vec<(String, String)>,
    log: PathBuf,
    running: Option<(Child, ChildStdin)>,
    /// The crash point at which its next processes die, `<name>` or `<name>:<n>`; debug builds only.
    pub dies_at: Option<String>,
    /// From the ready line of the first start.
    pub address: String,
}

impl Role {
    /// A role that has not been started. `port` is the flag that is fixed to the first port it got, so that it comes back there.
    pub fn new(name: &str, logs: &Path, args: &[&str]) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self {
            name: name.to_owned(),
            args,
            env: Vec::new(),
            log: logs.join(format!("{name}.log")),
            running: None,
            dies_at: None,
            address: String::new(),
        }
    }

    /// A master on its own, not started yet: it serves without a coordinator and without a cluster.
    pub fn master_alone(name: &str, logs: &Path, data: &Path) -> Self {
        let args = [
            "master",
            "--party-id=p1",
            "--submitter-port",
            "0",
            "--cluster-address=127.0.0.1:1",
            "--coordinator-address=127.0.0.1:1",
            "--data-dir",
            data.to_str().unwrap(),
        ];
        Self::new(name, logs, &args)
    }

    /// The value of a flag.
    pub fn flag(&self, flag: &str) -> Option<&str> {
        let at = self.args.iter().position(|arg| arg == flag)?;
        self.args.get(at + 1).map(String::as_str)
    }

    /// Give a flag another value from the next start on, or add it.
    pub fn set_flag(&mut self, flag: &str, value: &str) {
        match self.args.iter().position(|arg| arg == flag) {
            Some(at) => value.clone_into(&mut self.args[at + 1]),
            None => self.args.extend([flag.to_owned(), value.to_owned()]),
        }
    }

    /// Start it and wait for its ready line.
    pub async fn start(&mut self) {
        self.launch()
            .await
            .unwrap_or_else(|why| panic!("{} did not start: {why}\n{}", self.name, self.log()));
    }

    /// Start it; `Err` tells why it was not ready.
    pub async fn launch(&mut self) -> Result<(), String> {
        assert!(self.running.is_none(), "{} runs already", self.name);
        let (mut child, stdin) = self.spawn(Stdio::piped());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // A worker is ready once it is attached, which may be much later; it is not waited for when its manager is not there.
        self.running = Some((child, stdin));
        let ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some((_, address)) = line.split_once(" ready on ") {
                    return Some(address.to_owned());
                }
            }
            None
        };
        match tokio::time::timeout(DEADLINE, ready).await {
            Ok(Some(address)) => {
                self.fix_port(&address);
                self.address = address;
                Ok(())
            }
            Ok(None) => Err("it ended".to_owned()),
            Err(_) => Err("not ready in time".to_owned()),
        }
    }

    /// Start it without waiting until it is ready.
    pub fn start_unready(&mut self) {
        assert!(self.running.is_none(), "{} runs already", self.name);
        self.running = Some(self.spawn(Stdio::null()));
    }

    fn spawn(&self, stdout: Stdio) -> (Child, ChildStdin) {
        let stderr = File::options().create(true).append(true).open(&self.log).unwrap();
        let _alone = beginning();
        let mut child = Command::new(BINARY)
            .args(&self.args)
            .arg("--stop-on-stdin-end")
            .envs(self.dies_at.as_ref().map(|point| ("FEDBROKER_CRASH_POINT", point)))
            .env("FEDBROKER_LOG", "info,fedbroker=debug")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        (child, stdin)
    }

    fn fix_port(&mut self, address: &str) {
        let port = address.rsplit_once(':').map(|(_, port)| port.to_owned()).unwrap();
        for flag in ["--port", "--submitter-port"] {
            if let Some(at) = self.args.iter().position(|arg| arg == flag) {
                self.args[at + 1].clone_from(&port);
            }
        }
    }

    /// Give a role that has not been started a port of its own, so that others can be told before it runs.
    pub fn reserve_port(&mut self) -> String {
        let address = format!("127.0.0.1:{}", free_ports(1));
        self.fix_port(&address);
        self.address.clone_from(&address);
        address
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        if let Some((mut child, _stdin)) = self.running.take() {
            child.kill().await.unwrap();
        }
    }

    /// SIGKILL, then start with the same arguments.
    pub async fn kill_and_start(&mut self) {
        self.kill().await;
        self.start().await;
    }

    /// Ask it to end, and wait.
    pub async fn stop(&mut self) -> Option<ExitStatus> {
        let (mut child, stdin) = self.running.take()?;
        drop(stdin);
        Some(
            tokio::time::timeout(DEADLINE, child.wait())
                .await
                .expect("it stops when asked")
                .unwrap(),
        )
    }

    /// Send a signal to the process.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.pid().expect("it runs")).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Wait for it to end by itself, its standard input left open.
    pub async fn ended(&mut self) -> ExitStatus {
        let (mut child, _stdin) = self.running.take().expect("it runs");
        tokio::time::timeout(DEADLINE, child.wait()).await.expect("it ends").unwrap()
    }

    /// True while the process runs.
    pub fn runs(&mut self) -> bool {
        self.running.as_mut().is_some_and(|(child, _)| child.try_wait().unwrap().is_none())
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().and_then(|(child, _)| child.id())
    }

    /// All it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// What one party runs.
pub struct Party {
    /// Its id, `p1`...
    pub id: String,
    /// Its cluster manager.
    pub manager: Role,
    /// Its worker.
    pub worker: Role,
    /// Its master.
    pub master: Role,
}

/// A federation: a coordinator, and for each party a cluster manager, a worker and a master.
pub struct Federation {
    /// Everything is kept here.
    pub dir: tempfile::TempDir,
    /// The coordinator.
    pub coordinator: Role,
    /// The parties.
    pub parties: Vec<Party>,
}

impl Federation {
    /// All roles described with ports reserved, none started. Extra arguments are added to every cluster manager and master.
    pub fn planned(parties: usize, manager_args: &[&str], master_args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let logs = dir.path().join("logs");
        std::fs::create_dir(&logs).unwrap();
        let mut coordinator = Role::new(
            "coordinator",
            &logs,
            &["coordinator", "--port", "0", "--data-dir", &path("coordinator")],
        );
        let coordinator_address = coordinator.reserve_port();
        let parties = (1..=parties)
            .map(|n| {
                let id = format!("p{n}");
                let mut args = vec!["cluster-manager", "--port", "0", "--data-dir"];
                let data = path(&format!("{id}-manager"));
                args.push(&data);
                args.extend(manager_args);
                let mut manager = Role::new(&format!("{id}-manager"), &logs, &args);
                let manager_address = manager.reserve_port();
                let (name, work, programs) = (format!("{id}-worker"), path(&format!("{id}-work")), path("programs"));
                std::fs::create_dir_all(&programs).unwrap();
                let first = free_ports(20);
                let (first, end) = (first.to_string(), (first + 20).to_string());
                let mut args = vec!["cluster-worker", "--name", &name, "--worker-ip", "127.0.0.1", "--max-tasks", "16"];
                args.extend(["--port-start", &first, "--port-end", &end, "--manager-address", &manager_address]);
                args.extend(["--work-dir", &work, "--programs-dir", &programs]);
                let worker = Role::new(&name, &logs, &args);
                let data = path(&format!("{id}-master"));
                let mut args = vec![
                    "master",
                    "--party-id",
                    &id,
                    "--submitter-port",
                    "0",
                    "--cluster-address",
                    &manager_address,
                ];
                args.extend([
                    "--coordinator-address",
                    &coordinator_address,
                    "--data-dir",
                    &data,
                    "--programs-dir",
                    &programs,
                ]);
                args.extend(master_args);
                let mut master = Role::new(&format!("{id}-master"), &logs, &args);
                master.reserve_port();
                Party {
                    id,
                    manager,
                    worker,
                    master,
                }
            })
            .collect();
        Self { dir, coordinator, parties }
    }

    /// Start every role, and wait until every master takes part.
    pub async fn start(parties: usize) -> Self {
        let mut federation = Self::planned(parties, &[], &[]);
        federation.start_all().await;
        federation
    }

    /// Start every role that does not run, and wait until every master takes part.
    pub async fn start_all(&mut self) {
        if !self.coordinator.runs() {
            self.coordinator.start().await;
        }
        for party in &mut self.parties {
            for role in [&mut party.manager, &mut party.worker, &mut party.master] {
                if !role.runs() {
                    role.start().await;
                }
            }
        }
        self.subscribed().await;
    }

    /// Wait until every master takes part.
    pub async fn subscribed(&self) {
        for party in &self.parties {
            let client = Client::new(&party.master.address);
            client
                .until("/api/v1/status", |status| status["coordinator"]["subscribed"] == true)
                .await;
        }
    }

    /// A client of a party's master.
    pub fn client(&self, party: usize) -> Client {
        Client::new(&self.parties[party].master.address)
    }

    /// Every role, for random choice.
    pub fn roles(&mut self) -> Vec<&mut Role> {
        let mut roles = vec![&mut self.coordinator];
        for party in &mut self.parties {
            roles.extend([&mut party.manager, &mut party.worker, &mut party.master]);
        }
        roles
    }

    /// The logs of all roles, for a failure's text.
    pub fn logs(&mut self) -> String {
        self.roles()
            .into_iter()
            .map(|role| format!("==== {}\n{}\n", role.name, role.log()))
            .collect()
    }
}

/// Talks to a master's REST service.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    /// A client of `host:port`.
    pub fn new(address: &str) -> Self {
        let http = reqwest::Client::builder().timeout(DEADLINE).no_proxy().build().unwrap();
        Self {
            http,
            base: format!("http://{address}"),
        }
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.base.trim_start_matches("http://").to_owned()
    }

    /// POST JSON; status and body, or the transport's failure.
    pub async fn post(&self, path: &str, body: &Value) -> Result<(u16, Value), reqwest::Error> {
        let response = self.http.post(format!("{}{path}", self.base)).json(body).send().await?;
        let status = response.status().as_u16();
        Ok((status, response.json().await.unwrap_or(Value::Null)))
    }

    /// Any request with JSON and headers; status and body, or the transport's failure.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Result<(u16, Value), reqwest::Error> {
        let method = method.parse().expect("a method");
        let mut request = self.http.request(method, format!("{}{path}", self.base)).json(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        Ok((status, response.json().await.unwrap_or(Value::Null)))
    }

    /// GET; status and body, or the transport's failure.
    pub async fn get(&self, path: &str) -> Result<(u16, Value), reqwest::Error> {
        let response = self.http.get(format!("{}{path}", self.base)).send().await?;
        let status = response.status().as_u16();
        Ok((status, response.json().await.unwrap_or(Value::Null)))
    }

    /// Submit a job that must be accepted; its id.
    pub async fn submit(&self, job_type: &str, job_config: &Value) -> String {
        let (status, body) = self
            .post("/submit", &json!({ "job_type": job_type, "job_config": job_config }))
            .await
            .unwrap();
        assert_eq!(status, 200, "{body}");
        body["job_id"].as_str().unwrap().to_owned()
    }

    /// Ask until the answer fits; a master that is away is waited for.
    pub async fn until(&self, path: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let last = match self.get(path).await {
                Ok((_, body)) if fits(&body) => return body,
                Ok((status, body)) => format!("{status} {body}"),
                Err(error) => error.to_string(),
            };
            assert!(
                Instant::now() < deadline,
                "{path} never came to what was waited for; the last answer: {last}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Wait for the end of a job; its last description.
    pub async fn ended(&self, job: &str) -> Value {
        self.until(&format!("/api/v1/jobs/{job}"), |job| {
            matches!(job["state"].as_str(), Some("success" | "failed"))
        })
        .await
    }
}
