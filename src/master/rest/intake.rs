//! From a request for a job to the command that accepts it: checked by its type, its content kept, its key hashed. The one way for every door.
//!
//! Called by `legacy` and `v1`, which say yes and no in their own words. Nothing is accepted here: that is the machine's.

use super::Door;
use crate::engine::Refusal;
use crate::job_types::BadJob;
use crate::machine::content::{Content, INLINE_MAX};
use crate::machine::ids::{BadId, JobId, Timestamp, TypeName};
use crate::machine::master::spec::{KeyHash, Provenance, Spec};
use crate::machine::master::{Command, Rejection, Reply};
use crate::store::Error as StoreError;
use crate::store::payload::Pinned;
use crate::supervisor::Supervisor;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A job that is asked for.
#[derive(Debug)]
pub(super) struct Wish {
    pub job_type: String,
    pub config: Value,
    pub algorithm_config: Option<String>,
    pub priority: i8,
    pub not_before: Option<Timestamp>,
    pub deadline: Option<Timestamp>,
    pub max_attempts: u32,
    pub labels: BTreeMap<String, String>,
}

/// It is durable.
#[derive(Debug)]
pub(super) struct Taken {
    pub job: JobId,
    /// The same submission came before, and made this job.
    pub replayed: bool,
}

/// It is not taken.
#[derive(Debug)]
pub(super) enum NotTaken {
    /// Its type says no.
    BadJob(BadJob),
    /// The name of its type can be none.
    BadId(BadId),
    /// Its content cannot be kept.
    Disk(anyhow::Error),
    /// The machine or its store says no.
    Refused(Refusal<Rejection>),
}

impl Wish {
    /// A job with nothing asked for but what its type needs.
    pub(super) fn plain(job_type: String, config: Value, algorithm_config: Option<String>) -> Self {
        Self {
            job_type,
            config,
            algorithm_config,
            priority: 0,
            not_before: None,
            deadline: None,
            max_attempts: 1,
            labels: BTreeMap::new(),
        }
    }

    /// SHA-256 of all of it: what the same key must come with again.
    fn fingerprint(&self) -> [u8; 32] {
        // Texts cannot run into each other: JSON escapes them.
        let all = serde_json::json!([
            self.job_type,
            self.config,
            self.algorithm_config,
            self.priority,
            self.not_before.map(|at| at.0),
            self.deadline.map(|at| at.0),
            self.max_attempts,
            self.labels,
        ]);
        Sha256::digest(all.to_string()).into()
    }
}

/// SHA-256 of an `Idempotency-Key`.
pub(super) fn key_hash(key: &str) -> KeyHash {
    KeyHash(Sha256::digest(key).into())
}

/// 1 to 255 visible characters of ASCII.
pub(super) fn is_key(key: &str) -> bool {
    (1..=255).contains(&key.len()) && key.bytes().all(|byte| (b'!'..=b'~').contains(&byte))
}

/// Take a job.
///
/// # Errors
/// It is not taken, or whether it was is not known.
pub(super) async fn take(door: &Door, wish: Wish, provenance: Provenance) -> Result<Taken, NotTaken> {
    let shared = &door.shared;
    let plan = shared.registry.plan(&wish.job_type, &wish.config, wish.algorithm_config.as_deref());
    let plan = plan.map_err(NotTaken::BadJob)?;
    let fingerprint = wish.fingerprint();
    let job_type = TypeName::parse(wish.job_type).map_err(NotTaken::BadId)?;
    let config = wish.config.to_string().into_bytes();
    let algorithm_config = wish.algorithm_config.map(String::into_bytes);
    // A record has room for so many bytes of both.
    let mut room = INLINE_MAX;
    let mut pins = Vec::new();
    let config = keep(door, config, &mut room, &mut pins).await?;
    let algorithm_config = match algorithm_config {
        None => None,
        Some(text) => Some(keep(door, text, &mut room, &mut pins).await?),
    };
    let spec = Spec {
        job_type,
        config,
        algorithm_config,
        plan,
        priority: wish.priority,
        not_before: wish.not_before,
        deadline: wish.deadline,
        max_attempts: wish.max_attempts,
        labels: wish.labels,
    };
    let command = Command::Submit {
        spec,
        provenance,
        fingerprint,
    };
    match shared.handle.send_pinned(command, pins).await {
        Ok(Reply::Accepted(job)) => {
            tracing::info!(%job, "accepted");
            Ok(Taken { job, replayed: false })
        }
        Ok(Reply::Replayed(job)) => Ok(Taken { job, replayed: true }),
        Ok(other) => {
            tracing::error!(?other, "a strange answer to a submission");
            Err(NotTaken::Refused(Refusal::Unknown))
        }
        Err(refusal) => Err(NotTaken::Refused(refusal)),
    }
}

async fn keep(door: &Door, bytes: Vec<u8>, room: &mut usize, pins: &mut Vec<Pinned>) -> Result<Content, NotTaken> {
    if bytes.len() <= *room {
        *room -= bytes.len();
        return Ok(Content::Inline(bytes));
    }
    let payloads = door.shared.payloads.clone();
    let put = Supervisor::blocking(move || payloads.put(&bytes)).await.map_err(NotTaken::Disk)?;
    let pinned = put.map_err(|error| NotTaken::Disk(error.into()))?;
    let content = Content::Stored(*pinned);
    pins.push(pinned);
    Ok(content)
}

/// Whether it is room that is missing.
pub(super) fn no_room(error: &anyhow::Error) -> bool {
    error.downcast_ref::<StoreError>().is_some_and(StoreError::is_full)
}
