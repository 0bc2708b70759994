//! beanstalkd with its log on disk and an fsync for every write: `-b DIR -f 0`.
//!
//! Enqueue is put, taken is reserve, finished is delete. Put and delete are in the log and synced before they are answered, one by one; a
//! reservation is in memory only, so that a crash makes the job ready again.

use crate::item::{Item, PAYLOAD};
use crate::line::Connection;
use crate::measure::{Producer, System, Workload};
use crate::server::{Launch, Server, find, free_port, run, text};
use anyhow::{Context, ensure};
use rustix::process::Signal;
use std::path::Path;

/// What is on the command line beyond port and directory.
pub const OPTIONS: &[&str] = &["-l 127.0.0.1", "-f 0"];
/// Seconds a consumer may hold a job: longer than a measurement.
const TIME_TO_RUN: u32 = 600;
/// Jobs asked for at once when the queue is read back.
const PAGE: usize = 500;

/// Its version, if it is installed.
pub fn version() -> Option<String> {
    let said = run(&[text(&find("beanstalkd", &[])?), "-v".to_owned()], None).ok()?;
    said.trim().strip_prefix("beanstalkd ").map(str::to_owned)
}

/// A running server with an empty tube.
pub struct Beanstalkd {
    _server: Server,
    port: u16,
}

impl Beanstalkd {
    /// Start it in an empty directory.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start(dir: &Path) -> anyhow::Result<Self> {
        let program = find("beanstalkd", &[]).context("beanstalkd is gone")?;
        let port = free_port()?;
        let binlog = dir.join("binlog");
        std::fs::create_dir(&binlog)?;
        let mut command = vec![text(&program), "-p".to_owned(), port.to_string(), "-b".to_owned(), text(&binlog)];
        command.extend(OPTIONS.join(" ").split(' ').map(str::to_owned));
        let log = dir.join("log");
        let mut server = Server::start(Launch {
            command,
            user: None,
            log,
            farewell: Signal::TERM,
        })?;
        server.listens(port).await?;
        Ok(Self { _server: server, port })
    }
}

/// The rest of a line that begins as it should.
fn after<'a>(line: &'a str, word: &str) -> anyhow::Result<&'a str> {
    let rest = line.strip_prefix(word).with_context(|| format!("beanstalkd answered {line:?}"))?;
    Ok(rest.trim_start())
}

/// A client.
pub struct Client(Connection);

impl Producer for Client {
    async fn enqueue(&mut self, item: Item) -> anyhow::Result<()> {
        let mut request = format!("put 0 0 {TIME_TO_RUN} {PAYLOAD}\r\n").into_bytes();
        request.extend(item.payload());
        request.extend_from_slice(b"\r\n");
        self.0.send(&request).await?;
        after(&self.0.line().await?, "INSERTED")?;
        Ok(())
    }

    async fn live(&mut self, item: Item) -> anyhow::Result<Item> {
        self.enqueue(item).await?;
        self.0.send(b"reserve\r\n").await?;
        let line = self.0.line().await?;
        let (id, bytes) = after(&line, "RESERVED")?.split_once(' ').context("a job without a size")?;
        let item = Item::from_payload(&self.0.bytes(bytes.parse()?).await?)?;
        self.0.send(format!("delete {id}\r\n").as_bytes()).await?;
        after(&self.0.line().await?, "DELETED")?;
        Ok(item)
    }
}

impl System for Beanstalkd {
    type Producer = Client;

    async fn producer(&self, _: u32) -> anyhow::Result<Client> {
        Ok(Client(Connection::open(self.port).await?))
    }

    async fn left(self, _: Workload) -> anyhow::Result<Vec<Item>> {
        let mut connection = Connection::open(self.port).await?;
        connection.send(b"stats\r\n").await?;
        let size = after(&connection.line().await?, "OK")?.parse()?;
        let stats = String::from_utf8(connection.bytes(size).await?)?;
        let stat = |name: &str| -> anyhow::Result<usize> {
            let line = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            Ok(line.with_context(|| format!("no {name} in the stats"))?.parse()?)
        };
        ensure!(stat("current-jobs-reserved")? == 0, "jobs are with consumers");
        let (ready, all) = (stat("current-jobs-ready")?, stat("total-jobs")?);
        let mut left = Vec::with_capacity(ready);
        let mut first = 1;
        // Without jobs there is nothing to look for; else jobs are numbered from 1 on.
        while ready > 0 && first <= all {
            let last = all.min(first + PAGE - 1);
            let request: String = (first..=last).map(|id| format!("peek {id}\r\n")).collect();
            connection.send(request.as_bytes()).await?;
            for _ in first..=last {
                let line = connection.line().await?;
                if line == "NOT_FOUND" {
                    continue;
                }
                let (_, bytes) = after(&line, "FOUND")?.split_once(' ').context("a job without a size")?;
                left.push(Item::from_payload(&connection.bytes(bytes.parse()?).await?)?);
            }
            first = last + 1;
        }
        ensure!(left.len() == ready, "{ready} jobs are ready, {} can be read", left.len());
        Ok(left)
    }
}
