//! The training as its aggregator reports it: JSON lines in the standard output of its task.

use anyhow::Context;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// One round of the training.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Round {
    /// From 1.
    pub(super) round: u64,
    /// Of the averaged model, on rows that no party trained on, 0 to 1.
    pub(super) accuracy: f64,
}

/// Follows the output of the aggregator of a job.
pub(super) struct Training {
    stdout: PathBuf,
    seen: usize,
    rounds: Vec<Round>,
}

impl Training {
    /// The aggregator of a job, in the work directory of its worker. It need not have started.
    pub(super) fn new(work: &Path, job: &str) -> Self {
        Self {
            stdout: work.join(job).join("aggregator").join("1").join("stdout"),
            seen: 0,
            rounds: Vec::new(),
        }
    }

    /// The rounds that have ended since the last look.
    ///
    /// # Errors
    /// The output cannot be read.
    pub(super) fn new_rounds(&mut self) -> anyhow::Result<Vec<Round>> {
        let text = match std::fs::read_to_string(&self.stdout) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.stdout.display())),
        };
        // A line without its end is still being written.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let fresh = text.get(self.seen..whole).unwrap_or_default();
        let is_round = |line: &&str| line.contains("\"event\"") && line.contains("\"round\"") && line.contains("\"accuracy\"");
        let new: Vec<Round> = fresh
            .lines()
            .filter(is_round)
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        self.seen = self.seen.max(whole);
        self.rounds.extend(&new);
        Ok(new)
    }

    /// The last round that has ended, 0 before the first.
    pub(super) fn round(&self) -> u64 {
        self.rounds.last().map_or(0, |round| round.round)
    }

    /// All rounds so far.
    pub(super) fn rounds(&self) -> &[Round] {
        &self.rounds
    }
}
