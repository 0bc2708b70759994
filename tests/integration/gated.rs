//! A program for tests, installed as the parties of a [`Federation`] would: its steps can be held at a gate, told to fail, and leave a trace of
//! each run.

use crate::support::{BINARY, DEADLINE, Federation, Role, free_ports};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Its name.
pub const NAME: &str = "gated";

const MANIFEST: &str = r#"
timeout_seconds = 120
[compile]
argv = ["/bin/sh", "{program_dir}/run.sh", "compile", "{job_id}", "{task_id}", "{program_dir}", "{output_dir}", "{params_file}", "{index}/{count} {endpoints}"]
[trainer]
argv = ["/bin/sh", "{program_dir}/run.sh", "trainer", "{job_id}", "{task_id}", "{program_dir}", "{input_dir}", "{params_file}", "{index}/{count} {endpoints}"]
[aggregator]
argv = ["/bin/sh", "{program_dir}/run.sh", "aggregator", "{job_id}", "{task_id}", "{program_dir}", "{input_dir}", "{params_file}", "{index}/{count} {endpoints}"]
"#;

const SCRIPT: &str = r#"
step=$1 job=$2 task=$3 home=$4 files=$5 params=$6
if [ -e leftover ]; then echo "the directory is not clean" >&2; exit 9; fi
: > leftover
echo "$step $job $task $$ $7" >> "$home/ran"
while [ -e "$home/shut-$step" ]; do sleep 0.05; done
if grep -q "\"fail\":\"$step\"" "$params"; then
    echo "a line before" >&2
    echo "the $step was told to fail" >&2
    exit 7
fi
if [ "$step" = compile ]; then
    cp "$params" "$files/compiled"
elif ! cmp -s "$params" "$files/compiled"; then
    echo "no file from the compile step" >&2
    exit 8
fi
"#;

/// The installed program.
pub struct Gated {
    dir: PathBuf,
}

/// One run of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// `compile`, `trainer` or `aggregator`.
    pub step: String,
    /// The job.
    pub job: String,
    /// The task.
    pub task: String,
    /// Process id.
    pub pid: String,
    /// `index/count`.
    pub place: String,
    /// Endpoints, `host:port,...`.
    pub endpoints: String,
}

impl Gated {
    /// Install it for every party.
    pub fn install(federation: &Federation) -> Self {
        Self::install_in(&federation.dir.path().join("programs"))
    }

    /// Install it in a programs directory.
    pub fn install_in(programs: &Path) -> Self {
        let dir = programs.join(NAME);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("program.toml"), MANIFEST).unwrap();
        std::fs::write(dir.join("run.sh"), SCRIPT).unwrap();
        Self { dir }
    }

    /// Hold a step from now on, in all processes that come to it.
    pub fn shut(&self, step: &str) {
        std::fs::write(self.dir.join(format!("shut-{step}")), "").unwrap();
    }

    /// Let a step go on.
    pub fn open(&self, step: &str) {
        std::fs::remove_file(self.dir.join(format!("shut-{step}"))).unwrap();
    }

    /// Every run of a job's steps so far.
    pub fn ran(&self, job: &str) -> Vec<Ran> {
        let text = std::fs::read_to_string(self.dir.join("ran")).unwrap_or_default();
        let lines = text.lines().map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            let mut word = || words.next().unwrap_or_default();
            Ran {
                step: word(),
                job: word(),
                task: word(),
                pid: word(),
                place: word(),
                endpoints: word(),
            }
        });
        lines.filter(|ran| ran.job == job).collect()
    }

    /// The runs of one step of a job.
    pub fn runs(&self, job: &str, step: &str) -> Vec<Ran> {
        self.ran(job).into_iter().filter(|ran| ran.step == step).collect()
    }

    /// Wait until a step of a job has begun so many times.
    pub async fn until_runs(&self, job: &str, step: &str, times: usize) {
        until(&format!("{step} of {job} has begun {times} times"), || {
            self.runs(job, step).len() >= times
        })
        .await;
    }
}

/// Wait for a condition.
pub async fn until(what: &str, mut fits: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !fits() {
        assert!(Instant::now() < deadline, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// True while a process runs.
pub fn alive(pid: &str) -> bool {
    // A zombie has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// Give a party that does not run a worker with other limits, or programs of its own.
pub fn replace_worker(federation: &mut Federation, party: usize, max_tasks: u32, ports: u16, programs: &Path) {
    let dir = federation.dir.path().to_owned();
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let party = &mut federation.parties[party];
    std::fs::create_dir_all(programs).unwrap();
    let first = free_ports(ports);
    let args = [
        "cluster-worker".to_owned(),
        "--name".to_owned(),
        party.worker.name.clone(),
        "--worker-ip=127.0.0.1".to_owned(),
        format!("--max-tasks={max_tasks}"),
        format!("--port-start={first}"),
        format!("--port-end={}", first + ports),
        format!("--manager-address={}", party.manager.address),
        format!("--work-dir={}", text(dir.join(format!("{}-work", party.id)))),
        format!("--programs-dir={}", text(programs.to_owned())),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    party.worker = Role::new(&party.worker.name.clone(), &dir.join("logs"), &args);
}

/// A command of the binary under test.
pub fn command(args: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(BINARY);
    command.args(args).stdin(std::process::Stdio::null()).kill_on_drop(true);
    command
}
