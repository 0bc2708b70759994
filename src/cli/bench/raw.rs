//! What this disk can do at best: one thread that appends records to a file and syncs it once for all that wait.
//!
//! No format, no index, no answer to what was written: the limit that a durable queue on this disk can come near, and not pass. The
//! file is written once before the measurement, so that a sync has no metadata to write; when it is full, it begins again.

use super::drive::{Client, Driven, Until, drive};
use crate::supervisor::Supervisor;
use anyhow::Context;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Length of the file.
const FILE: usize = 64 * 1024 * 1024;
/// Records that may wait, and the most that one sync confirms: as in `engine`.
const QUEUE: usize = 4096;
const BATCH_MAX: usize = 1024;

struct Envelope {
    record: Vec<u8>,
    answer: oneshot::Sender<()>,
}

/// Waits until its records are on the disk.
pub(super) struct Producer {
    queue: mpsc::Sender<Envelope>,
    size: usize,
}

impl Client for Producer {
    async fn ask(&mut self, n: u64) -> anyhow::Result<()> {
        let mut record = vec![0; self.size];
        record.iter_mut().zip(n.to_le_bytes()).for_each(|(to, byte)| *to = byte);
        let (answer, reply) = oneshot::channel();
        self.queue.send(Envelope { record, answer }).await.context("the writer has ended")?;
        reply.await.context("the disk failed")
    }
}

/// What the disk did.
pub(super) struct Raw {
    /// The producers' view.
    pub(super) driven: Driven<Producer>,
    /// Times it was synced.
    pub(super) syncs: u64,
}

/// Let so many producers append records of `size` bytes to a file in `dir`, which is removed.
///
/// # Errors
/// The file cannot be written.
pub(super) async fn measure(dir: &Path, producers: usize, size: usize, length: Duration) -> anyhow::Result<Raw> {
    let path = dir.join("raw");
    let file = {
        let path = path.clone();
        Supervisor::blocking(move || written_file(&path)).await??
    };
    let (queue, records) = mpsc::channel(QUEUE);
    let syncs = Arc::new(AtomicU64::new(0));
    let supervisor = Supervisor::new();
    let counted = syncs.clone();
    let fatal = supervisor.clone();
    supervisor.thread("raw disk", move || {
        if let Err(error) = append(&file, records, &counted) {
            fatal.fatal(error.into());
        }
    })?;
    let clients = (0..producers)
        .map(|_| Producer {
            queue: queue.clone(),
            size,
        })
        .collect();
    drop(queue);
    let driven = drive(&supervisor, clients, Until::Over(length)).await?;
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    Ok(Raw {
        driven,
        syncs: syncs.load(Ordering::Relaxed),
    })
}

fn written_file(path: &Path) -> anyhow::Result<File> {
    let write = || -> std::io::Result<File> {
        let mut file = File::create(path)?;
        let zeros = vec![0; 1024 * 1024];
        for _ in 0..FILE / zeros.len() {
            file.write_all(&zeros)?;
        }
        file.sync_all()?;
        Ok(file)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn append(file: &File, mut records: mpsc::Receiver<Envelope>, syncs: &AtomicU64) -> std::io::Result<()> {
    let (mut bytes, mut answers, mut at) = (Vec::new(), Vec::new(), 0);
    while let Some(first) = records.blocking_recv() {
        let mut next = Some(first);
        while let Some(Envelope { record, answer }) = next {
            let len = u32::try_from(record.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(&record);
            answers.push(answer);
            next = if answers.len() < BATCH_MAX { records.try_recv().ok() } else { None };
        }
        if at + bytes.len() > FILE {
            at = 0;
        }
        file.write_all_at(&bytes, at as u64)?;
        file.sync_data()?;
        syncs.fetch_add(1, Ordering::Relaxed);
        at += bytes.len();
        bytes.clear();
        for answer in answers.drain(..) {
            let _ = answer.send(());
        }
    }
    Ok(())
}
