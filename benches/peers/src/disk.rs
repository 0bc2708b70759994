//! The limit: one thread that appends to a file whose space is there already, calls fdatasync once for all that wait, and answers them.
//!
//! No queue, no index, no checksum: what any durable queue on this disk could reach at best. Enqueue only.

use crate::item::{Item, PAYLOAD};
use crate::measure::{Producer, System, Workload};
use anyhow::Context;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, oneshot};

/// Bytes that are written before the measurement, so that a barrier has no space to find; more than one can fill.
const SPACE: usize = 512 << 20;
/// Appends that may wait.
const QUEUE: usize = 4096;

type Append = (Vec<u8>, oneshot::Sender<()>);

/// The file and its thread.
pub struct Disk {
    queue: mpsc::Sender<Append>,
    file: PathBuf,
}

impl Disk {
    /// Make the file, then start the thread.
    ///
    /// # Errors
    /// There is no space.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("log");
        let file = File::create(&path)?;
        let zeros = vec![0; 1 << 20];
        for at in (0..SPACE).step_by(zeros.len()) {
            file.write_all_at(&zeros, at as u64).context("no space for the file")?;
        }
        file.sync_all()?;
        let (queue, waiting) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("disk".to_owned())
            .spawn(move || append(&file, waiting))?;
        Ok(Self { queue, file: path })
    }
}

/// Until nobody asks any more. A waiter that gets no answer knows that its append failed.
fn append(file: &File, mut waiting: mpsc::Receiver<Append>) {
    let (mut at, mut batch, mut answers) = (0, Vec::new(), Vec::new());
    while let Some(first) = waiting.blocking_recv() {
        let mut next = Some(first);
        while let Some((bytes, answer)) = next {
            batch.extend_from_slice(&bytes);
            answers.push(answer);
            next = waiting.try_recv().ok();
        }
        if file.write_all_at(&batch, at).and_then(|()| file.sync_data()).is_err() {
            return;
        }
        at += batch.len() as u64;
        batch.clear();
        for answer in answers.drain(..) {
            let _ = answer.send(());
        }
    }
}

/// A producer.
pub struct Client(mpsc::Sender<Append>);

impl Producer for Client {
    async fn enqueue(&mut self, item: Item) -> anyhow::Result<()> {
        let (answer, durable) = oneshot::channel();
        self.0.send((item.payload(), answer)).await.ok().context("the thread has ended")?;
        durable.await.context("an append failed")
    }

    async fn live(&mut self, _: Item) -> anyhow::Result<Item> {
        anyhow::bail!("a file has no consumers")
    }
}

impl System for Disk {
    type Producer = Client;

    async fn producer(&self, _: u32) -> anyhow::Result<Client> {
        Ok(Client(self.queue.clone()))
    }

    async fn left(self, _: Workload) -> anyhow::Result<Vec<Item>> {
        let (mut bytes, mut items) = (Vec::new(), Vec::new());
        File::open(&self.file)?.read_to_end(&mut bytes)?;
        for payload in bytes.chunks_exact(PAYLOAD).take_while(|payload| payload[0] != 0) {
            items.push(Item::from_payload(payload)?);
        }
        Ok(items)
    }
}
