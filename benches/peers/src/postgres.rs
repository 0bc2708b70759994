//! PostgreSQL: a table used as a queue, `FOR UPDATE SKIP LOCKED`, `fsync = on`, `synchronous_commit = on`.
//!
//! Enqueue is an INSERT, taken is an UPDATE of the oldest free row, finished is a DELETE: three transactions, each durable when it is answered,
//! with one fdatasync for all that wait together. Prepared statements, one transaction for each, none in flight behind another.

use crate::item::Item;
use crate::measure::{Producer, System, Workload};
use crate::pgwire::{Connection, Refused};
use crate::server::{Launch, Server, find, free_port, run, text};
use anyhow::{Context, ensure};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Settings that differ from its defaults, or that the comparison rests on. Durability is the default one; the rest is in its favour.
pub const SETTINGS: &[&str] = &[
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    "wal_level=minimal",
    "max_wal_senders=0",
    "max_connections=300",
    "shared_buffers=512MB",
    "max_wal_size=8GB",
    "min_wal_size=1GB",
    "checkpoint_timeout=30min",
    "autovacuum_naptime=5s",
];
/// Whom it runs as when we are root, which it refuses.
const USER: &str = "postgres";
/// The SQLSTATE of a server that is still starting.
const STARTING: &str = "57P03";
/// How long it may say so.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often it is asked meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);

const TABLE: &str = "
    DROP TABLE IF EXISTS queue;
    CREATE TABLE queue (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, taken boolean NOT NULL DEFAULT false, payload bytea NOT NULL);
    CREATE INDEX free ON queue (id) WHERE NOT taken;";
/// Enqueue.
pub const PUT: &str = "INSERT INTO queue (payload) VALUES ($1)";
/// Taken.
pub const TAKE: &str = "UPDATE queue SET taken = true WHERE id = \
    (SELECT id FROM queue WHERE NOT taken ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 1) RETURNING id, payload";
/// Finished.
pub const FINISH: &str = "DELETE FROM queue WHERE id = $1";

/// Debian keeps the programs outside the PATH, by version; the newest first.
fn program(name: &str) -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    versions.sort_by_key(|path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
    let places: Vec<PathBuf> = versions.into_iter().rev().map(|path| path.join("bin")).collect();
    find(name, &places)
}

/// Its version, if it is installed.
pub fn version() -> Option<String> {
    program("initdb")?;
    let said = run(&[text(&program("postgres")?), "--version".to_owned()], None).ok()?;
    said.split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .map(str::to_owned)
}

fn user() -> Option<&'static str> {
    rustix::process::geteuid().is_root().then_some(USER)
}

/// A running server with an empty table.
pub struct Postgres {
    _server: Server,
    port: u16,
}

impl Postgres {
    /// Start it on the cluster in this directory, which is made if it is not there: it keeps its log files for the next measurement, as it
    /// would in service.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start(dir: &Path) -> anyhow::Result<Self> {
        let data = dir.join("postgres");
        if !data.exists() {
            std::fs::create_dir(&data)?;
            if let Some(user) = user() {
                run(&["chown".to_owned(), user.to_owned(), text(&data)], None)?;
            }
            let initdb = text(&program("initdb").context("initdb is gone")?);
            let data = text(&data);
            let words = [&initdb, "-D", &data, "-U", "bench", "-A", "trust", "-E", "UTF8", "--locale=C"];
            run(&words.map(str::to_owned), user()).context("cannot make a cluster")?;
        }
        let port = free_port()?;
        let mut command = vec![
            text(&program("postgres").context("postgres is gone")?),
            "-D".to_owned(),
            text(&data),
        ];
        let (at, sockets) = (format!("port={port}"), "unix_socket_directories=");
        for setting in [at.as_str(), sockets, "listen_addresses=127.0.0.1"].iter().chain(SETTINGS) {
            command.extend(["-c".to_owned(), (*setting).to_owned()]);
        }
        let mut server = Server::start(Launch {
            command,
            user: user(),
            log: dir.join("postgres.log"),
            farewell: Signal::INT,
        })?;
        server.listens(port).await?;
        let mut connection = connect(port).await?;
        connection.query(TABLE).await?;
        for (setting, expected) in [("fsync", "on"), ("synchronous_commit", "on"), ("full_page_writes", "on")] {
            let is = connection.query(&format!("SHOW {setting}")).await?.rows.concat().concat();
            ensure!(
                is == expected.as_bytes(),
                "{setting} is {:?}, not {expected}",
                String::from_utf8_lossy(&is)
            );
        }
        connection.query("CHECKPOINT").await?;
        Ok(Self { _server: server, port })
    }
}

/// Connect, again while the server is still starting.
async fn connect(port: u16) -> anyhow::Result<Connection> {
    let until = Instant::now() + DEADLINE;
    loop {
        match Connection::open(port).await {
            Err(error) if error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == STARTING) && Instant::now() < until => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            opened => return opened,
        }
    }
}

/// A client.
pub struct Client(Connection);

impl Producer for Client {
    async fn enqueue(&mut self, item: Item) -> anyhow::Result<()> {
        let answer = self.0.execute("put", &[&item.payload()]).await?;
        ensure!(answer.tag == "INSERT 0 1", "not inserted: {}", answer.tag);
        Ok(())
    }

    async fn live(&mut self, item: Item) -> anyhow::Result<Item> {
        self.enqueue(item).await?;
        // Others may have taken every row that was there when the statement began.
        let row = loop {
            if let Some(row) = self.0.execute("take", &[]).await?.rows.pop() {
                break row;
            }
        };
        let [id, payload] = <[Vec<u8>; 2]>::try_from(row).map_err(|row| anyhow::anyhow!("not id and payload: {row:?}"))?;
        let item = Item::from_payload(&payload)?;
        let answer = self.0.execute("finish", &[&id]).await?;
        ensure!(answer.tag == "DELETE 1", "not finished: {}", answer.tag);
        Ok(item)
    }
}

impl System for Postgres {
    type Producer = Client;

    async fn producer(&self, _: u32) -> anyhow::Result<Client> {
        let mut connection = connect(self.port).await?;
        for (name, statement) in [("put", PUT), ("take", TAKE), ("finish", FINISH)] {
            connection.prepare(name, statement).await?;
        }
        Ok(Client(connection))
    }

    async fn left(self, _: Workload) -> anyhow::Result<Vec<Item>> {
        let mut connection = connect(self.port).await?;
        connection.prepare("all", "SELECT payload FROM queue").await?;
        let rows = connection.execute("all", &[]).await?.rows;
        rows.iter()
            .map(|row| Item::from_payload(row.first().context("a row without columns")?))
            .collect()
    }
}
