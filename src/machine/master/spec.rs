//! What a job is asked to be, and where the request came from: made by the doors, kept in the job's record for good.
//!
//! Plain data and the limits that keep a job below the store's value limit; `decide` refuses what breaks them.

use crate::machine::content::Content;
use crate::machine::ids::{JobId, Timestamp, TypeName};
use crate::machine::plan::Plan;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The highest priority, and minus it the lowest.
pub const PRIORITY_MAX: i8 = 100;
/// The most attempts a job may ask for; more would only hide that it never works.
pub const ATTEMPTS_MAX: u32 = 100;
/// Labels of one job.
pub const LABELS_MAX: usize = 16;
/// Bytes of one label's key or value.
pub const LABEL_LEN_MAX: usize = 63;
/// Bytes of all keys and values together.
pub const LABELS_LEN_MAX: usize = 512;
/// Bytes of a submitter's address.
pub const ADDRESS_MAX: usize = 45;
/// Bytes of a submitter's user agent; doors clip it.
pub const AGENT_MAX: usize = 64;
/// Bytes of a W3C `traceparent`.
pub const TRACEPARENT_LEN: usize = 55;

/// What a job is asked to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Its type in the registry.
    pub job_type: TypeName,
    /// `job_config` as JSON text.
    pub config: Content,
    /// `algorithm_config` as received, if it was given.
    pub algorithm_config: Option<Content>,
    /// What its type said it needs.
    pub plan: Plan,
    /// -100 to 100: higher goes first where jobs wait. Age raises it, so that nothing starves.
    pub priority: i8,
    /// It does not begin before.
    pub not_before: Option<Timestamp>,
    /// It has failed when it has not ended by then.
    pub deadline: Option<Timestamp>,
    /// How often it is tried in all, each time as a job of its own; 1 for once.
    pub max_attempts: u32,
    /// Words of the submitter, to find it by.
    pub labels: BTreeMap<String, String>,
}

impl Spec {
    /// A job with nothing asked for but what its type needs.
    pub fn plain(job_type: TypeName, config: Content, algorithm_config: Option<Content>, plan: Plan) -> Self {
        Self {
            job_type,
            config,
            algorithm_config,
            plan,
            priority: 0,
            not_before: None,
            deadline: None,
            max_attempts: 1,
            labels: BTreeMap::new(),
        }
    }
}

/// Labels that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct BadLabels {
    /// The key of the one that is not right; `None` when there are too many, or too much of them.
    pub label: Option<String>,
    /// What is wrong and what would be right.
    pub why: String,
}

/// Check labels that came from outside.
///
/// # Errors
/// Which label is not right, and what would be.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), BadLabels> {
    let all = |why: String| Err(BadLabels { label: None, why });
    if labels.len() > LABELS_MAX {
        return all(format!("labels: {} of them are more than {LABELS_MAX}", labels.len()));
    }
    let total: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if total > LABELS_LEN_MAX {
        return all(format!(
            "labels: keys and values are {total} bytes together, at most {LABELS_LEN_MAX} are taken"
        ));
    }
    let plain = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-'))
    };
    for (key, value) in labels {
        let why = if key.is_empty() || key.len() > LABEL_LEN_MAX || !plain(key) {
            format!("label {key:?}: a key is 1 to {LABEL_LEN_MAX} of A-Z a-z 0-9 . _ / -")
        } else if value.len() > LABEL_LEN_MAX || !plain(value) {
            format!("label {key}: a value is at most {LABEL_LEN_MAX} of A-Z a-z 0-9 . _ / -")
        } else {
            continue;
        };
        let label = Some(key.clone());
        return Err(BadLabels { label, why });
    }
    Ok(())
}

/// Where a job came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Address of who submitted it, without the port; empty when it is not known.
    pub address: String,
    /// What it called itself, clipped to [`AGENT_MAX`] bytes; may be empty.
    pub agent: String,
    /// The job this one repeats.
    pub parent: Option<JobId>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Of the submission's `Idempotency-Key`.
    pub key: Option<KeyHash>,
    /// W3C `traceparent` of the submission.
    pub traceparent: Option<String>,
}

impl Provenance {
    /// A first attempt, of nobody known.
    pub fn unknown() -> Self {
        Self {
            attempt: 1,
            ..Self::default()
        }
    }
}

/// SHA-256 of an `Idempotency-Key`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// In lower-case hexadecimal.
    pub fn hex(&self) -> String {
        use fmt::Write;
        self.0.iter().fold(String::with_capacity(64), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        })
    }

    /// The inverse of [`KeyHash::hex`]; `None` for what is no hash.
    pub fn from_hex(text: &str) -> Option<Self> {
        crate::machine::content::PayloadRef::from_hex(text, 0).map(|payload| Self(payload.hash))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex()[..12])
    }
}
