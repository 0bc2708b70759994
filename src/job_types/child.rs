//! A step of a job type as a child process, and how its end becomes the outcome of a task or of a compile step.
//!
//! Called by `program` and `paddle_fl`. It never decides what is run.

use super::PrepareError;
use super::exec::{self, Ended, Run, Shim, Status};
use crate::machine::outcome::{End, Outcome};
use tokio_util::sync::CancellationToken;

/// Where a task finds the data of its party; the name of FedVision 0.1.
pub(super) const DATA_ENV: &str = "FEDVISION_DATA_BASE";
/// The longest endpoint taken from a payload, bytes.
const ENDPOINT_LEN_MAX: usize = 300;

/// What to run, ready to start.
#[derive(Debug)]
pub(super) struct Child {
    /// For reasons: `program x`.
    pub what: String,
    /// What to do when the program cannot be started, with a separator in front; may be empty.
    pub mend: &'static str,
    pub shim: Shim,
    pub run: Run,
}

impl Child {
    /// Run it as a compile step: it must end by itself with exit code 0.
    pub(super) async fn compile(self, cancel: &CancellationToken) -> Result<(), PrepareError> {
        if cancel.is_cancelled() {
            return Err(PrepareError::new("cancelled".to_owned()));
        }
        let ended = exec::run(&self.shim, &self.run, cancel)
            .await
            .map_err(|error| PrepareError::new(self.not_run(&error)))?;
        match self.failure(&ended) {
            None => Ok(()),
            Some(reason) => Err(PrepareError {
                reason,
                exit_code: exit_code(&ended),
                stderr_tail: ended.stderr_tail,
                retryable: false,
            }),
        }
    }

    /// Run it as a task.
    pub(super) async fn task(self, cancel: CancellationToken) -> Outcome {
        if cancel.is_cancelled() {
            return Outcome::without_process(End::Cancelled, "cancelled");
        }
        let ended = match exec::run(&self.shim, &self.run, &cancel).await {
            Ok(ended) => ended,
            Err(error) => return Outcome::without_process(End::Failed, self.not_run(&error)),
        };
        let reason = self.failure(&ended);
        let end = match &reason {
            _ if ended.cancelled => End::Cancelled,
            None => End::Succeeded,
            Some(_) => End::Failed,
        };
        Outcome {
            exit_code: exit_code(&ended),
            stderr_tail: ended.stderr_tail,
            ..Outcome::without_process(end, reason.unwrap_or_default())
        }
    }

    fn not_run(&self, error: &exec::Error) -> String {
        let mend = if matches!(error, exec::Error::Program(_)) { self.mend } else { "" };
        format!("{}: {error}{mend}", self.what)
    }

    /// Why the run is no success.
    fn failure(&self, ended: &Ended) -> Option<String> {
        let Self { what, run, .. } = self;
        match ended.status {
            _ if ended.cancelled => Some("cancelled".to_owned()),
            _ if ended.timed_out => Some(format!("{what} did not end within {} s", run.timeout.as_secs())),
            Status::Exit(0) => None,
            Status::Exit(code) => Some(format!("{what} exited with code {code}")),
            Status::Signal(signal) => Some(format!("{what} was ended by signal {signal}")),
        }
    }
}

fn exit_code(ended: &Ended) -> Option<i32> {
    match ended.status {
        Status::Exit(code) => Some(code),
        Status::Signal(_) => None,
    }
}

/// `host:port` of harmless characters: it goes into the arguments of programs.
pub(super) fn check_endpoint(text: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']' | '%');
    let good = text.len() <= ENDPOINT_LEN_MAX
        && !text.starts_with('-')
        && text.chars().all(plain)
        && text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
    if good {
        return Ok(());
    }
    let shown: String = text.chars().take(100).collect();
    Err(format!("endpoint {shown:?} is not host:port"))
}
