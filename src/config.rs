//! Options of every role, read once at the top and handed down. Flags are those of FedVision 0.1 where it has them.

use clap::Args;
use std::path::PathBuf;

/// `fedbroker coordinator`
#[derive(Args, Clone, Debug)]
pub struct CoordinatorOptions {
    /// Port to listen on; 0 takes a free one
    #[arg(short, long)]
    pub port: u16,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Where the coordinator keeps its proposals and parties
    #[arg(long, default_value = "fedbroker-data/coordinator")]
    pub data_dir: PathBuf,
    /// Seconds a party without a connection still counts as a subscriber
    #[arg(long, default_value_t = 60)]
    pub party_lease: u64,
    /// Seconds after its start in which parties that are not there yet are waited for before a proposal is refused
    #[arg(long, default_value_t = 8)]
    pub settle: u64,
    /// Seconds a closed proposal keeps its tasks, for parties that ask again after a crash
    #[arg(long, default_value_t = 3600)]
    pub keep_closed: u64,
    /// Port on which /metrics and /livez are served; 0 takes a free one; not served without this flag
    #[arg(long)]
    pub metrics_port: Option<u16>,
    /// Days the verdict of a proposal is kept after its end
    #[arg(long, default_value_t = 30)]
    pub keep_ended_days: u32,
    /// Ended proposals that are kept at most; beyond that the oldest are removed
    #[arg(long, default_value_t = 1_000_000)]
    pub keep_ended: u64,
}

/// `fedbroker cluster-manager`
#[derive(Args, Clone, Debug)]
pub struct ClusterManagerOptions {
    /// Port to listen on; 0 takes a free one
    #[arg(short, long)]
    pub port: u16,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Where the cluster manager keeps its tasks, leases and workers
    #[arg(long, default_value = "fedbroker-data/cluster-manager")]
    pub data_dir: PathBuf,
    /// Seconds a silent worker keeps its tasks
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub worker_grace: u64,
    /// How often a task is tried when its worker is lost
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub task_attempts: u32,
    /// Port on which /metrics and /livez are served; 0 takes a free one; not served without this flag
    #[arg(long)]
    pub metrics_port: Option<u16>,
    /// Days the record of a task is kept after its end
    #[arg(long, default_value_t = 30)]
    pub keep_ended_days: u32,
    /// Ended tasks that are kept at most; beyond that the oldest are removed
    #[arg(long, default_value_t = 1_000_000)]
    pub keep_ended: u64,
}

/// `fedbroker cluster-worker`
#[derive(Args, Clone, Debug)]
pub struct WorkerOptions {
    /// Name of the worker, unique in its cluster
    #[arg(long)]
    pub name: String,
    /// Address under which other parties reach the endpoints of this worker
    #[arg(long)]
    pub worker_ip: String,
    /// Tasks that run at once
    #[arg(long)]
    pub max_tasks: u32,
    /// First port lent to jobs
    #[arg(long)]
    pub port_start: u16,
    /// End of the ports lent to jobs, exclusive
    #[arg(long)]
    pub port_end: u16,
    /// Cluster manager, host:port
    #[arg(long)]
    pub manager_address: String,
    /// Data of this party: tasks get it as FEDVISION_DATA_BASE; must exist
    #[arg(long)]
    pub data_base_dir: Option<PathBuf>,
    /// Programs this party has installed: <name>/program.toml
    #[allow(rustdoc::invalid_html_tags, reason = "the text of --help, where a backtick would show")]
    #[arg(long)]
    pub programs_dir: Option<PathBuf>,
    /// Python that runs the tasks of paddle_fl jobs: a program of the PATH, or a path
    #[arg(long, default_value = "python3")]
    pub python: String,
    /// Seconds a task of a paddle_fl job may run
    #[arg(long, default_value_t = 7 * 24 * 3600)]
    pub paddle_timeout: u64,
    /// Where tasks run: <work-dir>/<job>/<task>/<attempt>
    #[allow(rustdoc::invalid_html_tags, reason = "the text of --help, where a backtick would show")]
    #[arg(long, default_value = "fedbroker-data/work")]
    pub work_dir: PathBuf,
    /// Port on which /metrics and /livez are served; 0 takes a free one; not served without this flag
    #[arg(long)]
    pub metrics_port: Option<u16>,
    /// Address of --metrics-port
    #[arg(long, default_value = "127.0.0.1")]
    pub metrics_host: String,
    /// Days the directory of a task is kept after its end, with its logs
    #[arg(long, default_value_t = 7)]
    pub keep_work_days: u32,
    /// Bytes that directories of ended tasks may take; beyond that the oldest are removed [default: no limit]
    #[arg(long)]
    pub keep_work_bytes: Option<u64>,
}

/// `fedbroker master`
#[derive(Args, Clone, Debug)]
pub struct MasterOptions {
    /// Id of this party in the federation
    #[arg(long)]
    pub party_id: String,
    /// Port of the REST service; 0 takes a free one
    #[arg(long)]
    pub submitter_port: u16,
    /// Cluster manager of this party, host:port
    #[arg(long)]
    pub cluster_address: String,
    /// Coordinator of the federation, host:port
    #[arg(long)]
    pub coordinator_address: String,
    /// Address the REST service listens on
    #[arg(long, visible_alias = "host", default_value = "127.0.0.1")]
    pub rest_host: String,
    /// Where the master keeps its jobs, tasks and proposals [default: fedbroker-data/master- and the party id]
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Job types this party takes part in
    #[arg(long, value_delimiter = ',', default_value = "paddle_fl,program,dummy")]
    pub job_types: Vec<String>,
    /// Programs this party has installed; their compile step runs here
    #[arg(long)]
    pub programs_dir: Option<PathBuf>,
    /// Python that compiles paddle_fl jobs: a program of the PATH, or a path
    #[arg(long, default_value = "python3")]
    pub python: String,
    /// Rules and job types of this party, TOML; see docs/configuration.md
    #[arg(long)]
    pub config: Option<PathBuf>,
}
