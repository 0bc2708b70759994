//! What the quickstart shows: a bar on a terminal, plain lines elsewhere.

use super::training::Round;
use crate::cli::terminal::plain;
use crate::telemetry::say;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;

/// Shows progress.
pub(super) struct Screen {
    bar: Option<ProgressBar>,
    rounds: u64,
    state: Mutex<String>,
}

impl Screen {
    /// A screen for a training of so many rounds.
    pub(super) fn new(rounds: u64) -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(rounds), indicatif::ProgressDrawTarget::stdout());
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} rounds  {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self {
            bar,
            rounds,
            state: Mutex::default(),
        }
    }

    /// Something that happened.
    pub(super) fn step(&self, text: &str) {
        self.line(&format!("* {text}"));
    }

    /// A line above the bar.
    pub(super) fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) if !bar.is_finished() => bar.suspend(|| say(text)),
            _ => say(text),
        }
    }

    /// The job's state; shown when it changes.
    pub(super) fn state(&self, state: &str, reason: Option<&str>) {
        let now = plain(&reason.map_or_else(|| state.to_owned(), |reason| format!("{state}: {reason}")));
        let mut shown = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *shown != now {
            self.step(&format!("job is {now}"));
            *shown = now;
        }
    }

    /// A round is over.
    pub(super) fn round(&self, round: &Round) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(round.round);
                bar.set_message(format!("accuracy {:.3}", round.accuracy));
            }
            None => say(&format!("  round {}/{}  accuracy {:.3}", round.round, self.rounds, round.accuracy)),
        }
    }

    /// Take the bar away.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
