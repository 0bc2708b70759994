//! How one attempt of a task ended, as every role records it.

use super::ids::WorkerId;
use serde::{Deserialize, Serialize};

/// The longest reason kept, bytes.
pub const REASON_MAX: usize = 512;
/// The longest piece of stderr kept in a record, bytes.
pub const STDERR_TAIL_MAX: usize = 1024;

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It ran and its process exited with 0.
    Succeeded,
    /// It ran and failed, or could not be run, or was lost with its worker.
    Failed,
    /// It was stopped on request.
    Cancelled,
}

impl End {
    /// Kind and state of a task that ended so, for the metrics.
    pub(super) fn of_task(self) -> &'static str {
        match self {
            End::Succeeded => "task success",
            End::Failed => "task failed",
            End::Cancelled => "task cancelled",
        }
    }
}

/// The outcome of one attempt of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// One line: what went wrong; empty on success. At most [`REASON_MAX`] bytes.
    pub reason: String,
    /// Exit code of the process; `None` when a signal ended it or it never started.
    pub exit_code: Option<i32>,
    /// The last lines of its stderr, at most [`STDERR_TAIL_MAX`] bytes.
    pub stderr_tail: String,
    /// The worker that ran it, when there was one.
    pub worker: Option<WorkerId>,
    /// Which attempt this was, from 1; 0 when it never got one.
    pub attempt: u32,
}

impl Outcome {
    /// An outcome without a process, e.g. of a task whose worker was lost.
    pub fn without_process(end: End, reason: impl Into<String>) -> Self {
        Self {
            end,
            reason: clip(reason.into(), REASON_MAX),
            exit_code: None,
            stderr_tail: String::new(),
            worker: None,
            attempt: 0,
        }
    }

    /// Bring texts that came from outside under their limits.
    #[must_use]
    pub fn clipped(mut self) -> Self {
        self.reason = clip(one_line(&self.reason), REASON_MAX);
        self.stderr_tail = clip_front(self.stderr_tail, STDERR_TAIL_MAX);
        self
    }
}

/// The text with line breaks and other control characters turned into spaces.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The text cut to at most `max` bytes at the end, on a character boundary.
pub fn clip(mut text: String, max: usize) -> String {
    if text.len() > max {
        let cut = (0..=max).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(cut);
    }
    text
}

/// The last `max` bytes of the text, on a character boundary.
pub fn clip_front(text: String, max: usize) -> String {
    if text.len() <= max {
        return text;
    }
    let from = text.len() - max;
    let cut = (from..text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len());
    text[cut..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_on_character_boundaries() {
        assert_eq!(clip("aé".into(), 2), "a");
        assert_eq!(clip_front("éa".into(), 2), "a");
        assert_eq!(one_line("a\nb"), "a b");
    }
}
