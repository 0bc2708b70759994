//! How far a command is, on stderr when that is a terminal.

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// A bar, or nothing.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// A bar of so many values.
    pub(super) fn values(what: &str, total: u64) -> Self {
        Self::new(what, Some(total), "{msg:24} {bar:30} {human_pos}/{human_len}  {eta}")
    }

    /// A bar of so many bytes.
    pub(super) fn bytes(what: &str, total: u64) -> Self {
        Self::new(what, Some(total), "{msg:24} {bar:30} {binary_bytes}/{binary_total_bytes}  {eta}")
    }

    /// A count of bytes whose total is not known.
    pub(super) fn flowing(what: &str) -> Self {
        Self::new(
            what,
            None,
            "{spinner} {msg:24} {binary_bytes} in {elapsed}  ({binary_bytes_per_sec})",
        )
    }

    fn new(what: &str, total: Option<u64>, template: &str) -> Self {
        // It draws on stderr, and not at all when that is no terminal.
        let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        Self(bar)
    }

    /// So much is done.
    pub(super) fn at(&self, position: u64) {
        self.0.set_position(position);
    }

    /// So much more is done.
    pub(super) fn more(&self, by: u64) {
        self.0.inc(by);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Bytes for a reader.
pub(super) fn size(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}
