//! Crash points: names of the boundaries between one lasting step and the next, and the means to die at one of them.
//!
//! `engine`, `store` and `worker` say where they are ([`reach`]); `cli` arms one point from [`VARIABLE`], and the process then ends itself by
//! SIGKILL there, as `tests/crash/points.rs` does for every point there is. In a release build nothing of this is there: nothing reads the
//! variable, and [`reach`] is empty. It must never change what a process does that was not told to die.
//!
//! ```text
//! <role>.<command>.taken      a command is about to be decided; nothing of it is durable
//! <role>.<command>.durable    it is committed (or refused); nobody was answered, no effect was handed on
//! <role>.<effect>.leaving     the record that justifies the effect is durable, the answers are out; its executor does not have it yet
//! store... payload... worker...   see PLACES
//! ```

/// The variable with the point to die at, `<name>` or `<name>:<n>` for the n-th time it is passed. Debug builds only.
pub const VARIABLE: &str = "FEDBROKER_CRASH_POINT";

/// The points that do not follow from a machine's commands and effects, and what is true at each.
pub const PLACES: [(&str, &str); 11] = [
    ("store.begun", "a commit is made, and nothing of it is written"),
    ("store.written", "the commit is in the journal, which is not synced"),
    (
        "store.synced",
        "the commit is durable in the journal, and the storage engine was told nothing of it",
    ),
    ("store.applied", "readers see the commit, nobody was told"),
    (
        "store.given",
        "the storage engine has the commits of a round in memory, and the journal has them still",
    ),
    (
        "store.flushed",
        "the storage engine has written the commits of a round, and has not synced them",
    ),
    (
        "store.replayed",
        "the storage engine has the commits of the journal again, and the journal has not begun again",
    ),
    ("payload.written", "a payload file is synced, and has no name yet"),
    ("payload.named", "it has its name, durably, and no record refers to it yet"),
    ("worker.task.started", "a task begins to run"),
    ("worker.task.ended", "a task has ended, nobody was told"),
];

/// What happens to a command or an effect of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A command.
    Taken,
    /// A command.
    Durable,
    /// An effect.
    Leaving,
}

impl Moment {
    /// The last part of a point's name.
    pub const fn name(self) -> &'static str {
        match self {
            Moment::Taken => "taken",
            Moment::Durable => "durable",
            Moment::Leaving => "leaving",
        }
    }
}

/// One of [`PLACES`] is passed.
#[inline]
pub fn reach(place: &'static str) {
    debug_assert!(PLACES.iter().any(|(name, _)| *name == place), "{place} is no crash point");
    #[cfg(debug_assertions)]
    armed::pass(&[place]);
    #[cfg(not(debug_assertions))]
    let _ = place;
}

/// A command or effect of a role's machine passes a boundary.
#[inline]
pub fn reach_moment(role: &'static str, name: &'static str, moment: Moment) {
    #[cfg(debug_assertions)]
    armed::pass(&[role, name, moment.name()]);
    #[cfg(not(debug_assertions))]
    let _ = (role, name, moment);
}

#[cfg(debug_assertions)]
pub use armed::arm;

#[cfg(debug_assertions)]
mod armed {
    use rustix::process::{Signal, getpid, kill_process};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Armed {
        point: String,
        /// Times it is still to be passed, the deadly one included.
        left: AtomicU32,
    }

    static ARMED: OnceLock<Armed> = OnceLock::new();

    /// Die at this point. Called once, at the start of the process.
    ///
    /// # Errors
    /// The text is not `<name>` or `<name>:<n>` with n from 1; it names the variable.
    pub fn arm(text: &str) -> Result<(), String> {
        let (point, times) = text.split_once(':').unwrap_or((text, "1"));
        let times = times.parse().ok().filter(|times| *times > 0);
        let left = times.ok_or_else(|| format!("{}: {text:?} is not <name> or <name>:<n>, n from 1", super::VARIABLE))?;
        let point = point.to_owned();
        let armed = Armed {
            point,
            left: AtomicU32::new(left),
        };
        ARMED.set(armed).map_err(|_| format!("{} was read twice", super::VARIABLE))
    }

    /// `parts` make the name, with a dot between two.
    pub(super) fn pass(parts: &[&str]) {
        if let Some(armed) = ARMED.get()
            && is_name(&armed.point, parts)
            && armed.left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            tracing::error!(point = armed.point, "dying at a crash point");
            let killed = kill_process(getpid(), Signal::KILL);
            // The signal may still be on its way to this thread, which must not take another step.
            loop {
                std::thread::park();
                debug_assert!(killed.is_ok(), "a process may kill itself");
            }
        }
    }

    fn is_name(name: &str, parts: &[&str]) -> bool {
        name.split('.').eq(parts.iter().flat_map(|part| part.split('.')))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn names_are_compared_whole() {
            assert!(is_name("master.submit.taken", &["master", "submit", "taken"]));
            assert!(is_name("worker.task.started", &["worker.task.started"]));
            assert!(!is_name("master.submit", &["master", "submit", "taken"]));
            assert!(!is_name("master.submit.taken", &["master", "submitted", "taken"]));
        }

        #[test]
        fn what_is_no_point_is_refused() {
            for wrong in ["a:0", "a:", "a:x", "a:-1"] {
                assert!(arm(wrong).unwrap_err().contains(super::super::VARIABLE), "{wrong}");
            }
        }
    }
}
