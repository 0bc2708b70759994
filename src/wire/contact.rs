//! When a peer was last heard, and what went wrong last.
//!
//! Noted by `metered` for every call of a channel, and by callers who gave up waiting; shown by the status of a role. Decides nothing.

use super::connect::PeerKind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// See the module. Cheap to clone; clones are one.
#[derive(Clone, Debug, Default)]
pub struct Contact(Arc<Mutex<Known>>);

/// What is known of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// When it last answered a call, well or badly.
    pub answered: Option<Instant>,
    /// When a call last got no answer, and why; kept when it answers again.
    pub failed: Option<(Instant, String)>,
    /// What it last said that it is.
    pub kind: Option<PeerKind>,
}

impl Contact {
    /// As it stands.
    pub fn known(&self) -> Known {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The peer answered.
    pub fn answered(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).answered = Some(Instant::now());
    }

    /// The peer did not answer.
    pub fn failed(&self, why: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).failed = Some((Instant::now(), why.into()));
    }
}

impl Contact {
    /// The peer said what it is.
    pub(super) fn told(&self, kind: PeerKind) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).kind = Some(kind);
    }
}

impl Known {
    /// Why the peer cannot be reached, as of the last call; `None` when it answered that, or nothing was asked yet.
    pub fn trouble(&self) -> Option<&str> {
        let (at, why) = self.failed.as_ref()?;
        self.answered.is_none_or(|answered| answered < *at).then_some(why.as_str())
    }

    /// When the last call ended, with or without an answer.
    pub fn looked(&self) -> Option<Instant> {
        self.answered.max(self.failed.as_ref().map(|(at, _)| *at))
    }
}

/// An error with all its causes, in one line: what a connection says of itself is no more than that there was an error.
pub(super) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_call_tells_and_the_last_error_is_kept() {
        let contact = Contact::default();
        assert_eq!((contact.known().trouble(), contact.known().looked()), (None, None));
        contact.failed("nobody there");
        assert_eq!(contact.known().trouble(), Some("nobody there"));
        contact.answered();
        let known = contact.known();
        assert_eq!((known.trouble(), known.looked()), (None, known.answered));
        assert_eq!(known.failed.map(|(_, why)| why).as_deref(), Some("nobody there"));
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        let inner = std::io::Error::other("refused");
        let error = anyhow::Error::new(inner).context("connecting");
        assert_eq!(told(&*error), "connecting: refused");
    }
}
