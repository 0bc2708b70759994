//! Redis: a stream with a consumer group, `appendonly yes`, `appendfsync always`.
//!
//! Enqueue is XADD, taken is XREADGROUP, finished is XACK: the entry stays in the stream as history, as ours stays in the log. All three are
//! in the append-only file before they are answered (a delivery as XCLAIM), with one fdatasync for all clients of one turn of its loop.

use crate::item::Item;
use crate::line::Connection;
use crate::measure::{Producer, System, Workload};
use crate::server::{Launch, Server, find, free_port, run, text};
use anyhow::{Context, bail, ensure};
use rustix::process::Signal;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;

/// What is on the command line beyond port and directory.
pub const OPTIONS: &[&str] = &[
    "--bind 127.0.0.1",
    "--appendonly yes",
    "--appendfsync always",
    "--save ''",
    "--auto-aof-rewrite-percentage 0",
    "--maxclients 1000",
];
/// Entries read at once when the stream is read back.
const PAGE: usize = 1000;

/// Its version, if it is installed.
pub fn version() -> Option<String> {
    let program = find("redis-server", &[])?;
    let said = run(&[text(&program), "--version".to_owned()], None).ok()?;
    said.split_whitespace().find_map(|word| word.strip_prefix("v=")).map(str::to_owned)
}

/// A running server with an empty stream.
pub struct Redis {
    _server: Server,
    port: u16,
}

impl Redis {
    /// Start it in an empty directory.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start(dir: &Path) -> anyhow::Result<Self> {
        let program = find("redis-server", &[]).context("redis-server is gone")?;
        let port = free_port()?;
        let mut command = vec![text(&program), "--port".to_owned(), port.to_string(), "--dir".to_owned(), text(dir)];
        command.extend(OPTIONS.join(" ").split(' ').map(|word| word.trim_matches('\'').to_owned()));
        let log = dir.join("log");
        let mut server = Server::start(Launch {
            command,
            user: None,
            log,
            farewell: Signal::TERM,
        })?;
        server.listens(port).await?;
        let mut connection = Connection::open(port).await?;
        let made = ask(&mut connection, &[b"XGROUP", b"CREATE", b"q", b"g", b"0", b"MKSTREAM"]).await?;
        ensure!(matches!(made, Value::Text(_)), "the group was not made: {made:?}");
        Ok(Self { _server: server, port })
    }
}

/// A RESP2 answer.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Nothing,
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Value>),
}

impl Value {
    fn list(self) -> anyhow::Result<Vec<Value>> {
        match self {
            Self::List(values) => Ok(values),
            other => bail!("a list was expected, not {other:?}"),
        }
    }

    fn bytes(self) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            other => bail!("bytes were expected, not {other:?}"),
        }
    }

    /// An entry of a stream: its id, and the payload in its only field.
    fn entry(self) -> anyhow::Result<(Vec<u8>, Item)> {
        let [id, fields] = <[Value; 2]>::try_from(self.list()?).map_err(|other| anyhow::anyhow!("no entry: {other:?}"))?;
        let payload = fields.list()?.pop().context("an entry without fields")?.bytes()?;
        Ok((id.bytes()?, Item::from_payload(&payload)?))
    }
}

fn read(connection: &mut Connection) -> Pin<Box<dyn Future<Output = anyhow::Result<Value>> + Send + '_>> {
    Box::pin(async move {
        let line = connection.line().await?;
        let (kind, rest) = line.split_at_checked(1).context("an empty answer")?;
        Ok(match kind {
            "+" => Value::Text(rest.to_owned()),
            ":" => Value::Number(rest.parse()?),
            "$" => match usize::try_from(rest.parse::<i64>()?) {
                Ok(count) => Value::Bytes(connection.bytes(count).await?),
                Err(_) => Value::Nothing,
            },
            "*" => match usize::try_from(rest.parse::<i64>()?) {
                Ok(count) => {
                    let mut values = Vec::with_capacity(count);
                    for _ in 0..count {
                        values.push(read(connection).await?);
                    }
                    Value::List(values)
                }
                Err(_) => Value::Nothing,
            },
            _ => bail!("redis answered {line:?}"),
        })
    })
}

async fn ask(connection: &mut Connection, words: &[&[u8]]) -> anyhow::Result<Value> {
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        request.extend_from_slice(word);
        request.extend_from_slice(b"\r\n");
    }
    connection.send(&request).await?;
    read(connection).await
}

/// A client.
pub struct Client {
    connection: Connection,
    name: String,
}

impl Producer for Client {
    async fn enqueue(&mut self, item: Item) -> anyhow::Result<()> {
        let added = ask(&mut self.connection, &[b"XADD", b"q", b"*", b"p", &item.payload()]).await?;
        ensure!(matches!(added, Value::Bytes(_)), "not added: {added:?}");
        Ok(())
    }

    async fn live(&mut self, item: Item) -> anyhow::Result<Item> {
        self.enqueue(item).await?;
        let name = self.name.as_bytes();
        let take: [&[u8]; 9] = [b"XREADGROUP", b"GROUP", b"g", name, b"COUNT", b"1", b"STREAMS", b"q", b">"];
        let taken = ask(&mut self.connection, &take).await?;
        let stream = taken.list()?.pop().context("no stream")?.list()?;
        let entries = stream.into_iter().nth(1).context("no entries")?.list()?;
        let (id, item) = entries.into_iter().next().context("no entry")?.entry()?;
        let finished = ask(&mut self.connection, &[b"XACK", b"q", b"g", &id]).await?;
        ensure!(finished == Value::Number(1), "not finished: {finished:?}");
        Ok(item)
    }
}

impl System for Redis {
    type Producer = Client;

    async fn producer(&self, number: u32) -> anyhow::Result<Client> {
        let connection = Connection::open(self.port).await?;
        let name = format!("c{number}");
        Ok(Client { connection, name })
    }

    async fn left(self, workload: Workload) -> anyhow::Result<Vec<Item>> {
        let mut connection = Connection::open(self.port).await?;
        let (mut left, mut from) = (Vec::new(), b"-".to_vec());
        let pending = ask(&mut connection, &[b"XPENDING", b"q", b"g"]).await?.list()?;
        ensure!(
            pending.first() == Some(&Value::Number(0)),
            "entries are with consumers: {pending:?}"
        );
        let page = PAGE.to_string();
        loop {
            // What is finished stays in the stream; what is not is what the group was not given yet.
            let entries = if workload == Workload::Life {
                let words: [&[u8]; 9] = [
                    b"XREADGROUP",
                    b"GROUP",
                    b"g",
                    b"last",
                    b"COUNT",
                    page.as_bytes(),
                    b"STREAMS",
                    b"q",
                    b">",
                ];
                match ask(&mut connection, &words).await? {
                    Value::Nothing => return Ok(left),
                    streams => {
                        let stream = streams.list()?.pop().context("no stream")?.list()?;
                        stream.into_iter().nth(1).context("no entries")?.list()?
                    }
                }
            } else {
                let words: [&[u8]; 6] = [b"XRANGE", b"q", &from, b"+", b"COUNT", page.as_bytes()];
                ask(&mut connection, &words).await?.list()?
            };
            if entries.is_empty() {
                return Ok(left);
            }
            for entry in entries {
                let (id, item) = entry.entry()?;
                left.push(item);
                from = [b"(".as_slice(), &id].concat();
            }
        }
    }
}
