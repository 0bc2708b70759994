//! PostgreSQL's protocol, version 3: as much of it as prepared statements need, with one request under way at a time.
//!
//! Used by `postgres`. A small client of our own: each statement is one write and the reading of its answer, with nothing between that could
//! cost the peer time.

use anyhow::{Context, bail, ensure};
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Version 3.0.
const PROTOCOL: i32 = 3 << 16;
/// Values in binary.
const BINARY: i16 = 1;
/// The largest message an answer here can have, bytes.
const MESSAGE_MAX: usize = 1 << 20;

/// An error of the server.
#[derive(Debug)]
pub struct Refused {
    /// Its SQLSTATE.
    pub code: String,
    text: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PostgreSQL says {} ({})", self.text, self.code)
    }
}

impl std::error::Error for Refused {}

/// What a statement gave: rows of columns, as they were on the wire, and the words of its completion.
#[derive(Debug, Default)]
pub struct Answer {
    /// The rows.
    pub rows: Vec<Vec<Vec<u8>>>,
    /// `INSERT 0 1` and the like.
    pub tag: String,
}

/// A connection.
pub struct Connection(BufReader<TcpStream>);

/// A message that grows: its kind, a length to be filled in, its fields.
struct Message(Vec<u8>);

impl Message {
    fn new(out: Vec<u8>, kind: u8) -> (Self, usize) {
        let mut message = Self(out);
        message.0.push(kind);
        let at = message.0.len();
        message.number(0_i32.to_be_bytes());
        (message, at)
    }

    fn number<const N: usize>(&mut self, bytes: [u8; N]) {
        self.0.extend_from_slice(&bytes);
    }

    fn text(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    fn end(mut self, at: usize) -> Vec<u8> {
        let length = i32::try_from(self.0.len() - at).expect("messages here are short");
        self.0[at..at + 4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

impl Connection {
    /// To the database `postgres` as the user `bench`, who needs no password.
    ///
    /// # Errors
    /// [`Refused`], or nobody listens.
    pub async fn open(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.set_nodelay(true)?;
        let mut connection = Self(BufReader::new(stream));
        // The first message alone has no kind.
        let (mut start, at) = Message::new(Vec::new(), 0);
        start.number(PROTOCOL.to_be_bytes());
        for word in ["user", "bench", "database", "postgres", ""] {
            start.text(word);
        }
        connection.0.get_mut().write_all(&start.end(at)[1..]).await?;
        connection.answer().await?;
        Ok(connection)
    }

    /// Run statements without parameters.
    ///
    /// # Errors
    /// [`Refused`], or the connection is lost.
    pub async fn query(&mut self, statements: &str) -> anyhow::Result<Answer> {
        let (mut query, at) = Message::new(Vec::new(), b'Q');
        query.text(statements);
        self.0.get_mut().write_all(&query.end(at)).await?;
        self.answer().await
    }

    /// Prepare a statement under a name.
    ///
    /// # Errors
    /// [`Refused`], or the connection is lost.
    pub async fn prepare(&mut self, name: &str, statement: &str) -> anyhow::Result<()> {
        let (mut parse, at) = Message::new(Vec::new(), b'P');
        parse.text(name);
        parse.text(statement);
        parse.number(0_i16.to_be_bytes());
        let request = sync(parse.end(at));
        self.0.get_mut().write_all(&request).await?;
        self.answer().await.map(drop)
    }

    /// Run a prepared statement as one transaction; parameters and columns are binary.
    ///
    /// # Errors
    /// [`Refused`], or the connection is lost.
    pub async fn execute(&mut self, name: &str, parameters: &[&[u8]]) -> anyhow::Result<Answer> {
        let (mut bind, at) = Message::new(Vec::new(), b'B');
        bind.text("");
        bind.text(name);
        bind.number(1_i16.to_be_bytes());
        bind.number(BINARY.to_be_bytes());
        bind.number(i16::try_from(parameters.len())?.to_be_bytes());
        for parameter in parameters {
            bind.number(i32::try_from(parameter.len())?.to_be_bytes());
            bind.0.extend_from_slice(parameter);
        }
        bind.number(1_i16.to_be_bytes());
        bind.number(BINARY.to_be_bytes());
        let (mut execute, at) = Message::new(bind.end(at), b'E');
        execute.text("");
        execute.number(0_i32.to_be_bytes());
        let request = sync(execute.end(at));
        self.0.get_mut().write_all(&request).await?;
        self.answer().await
    }

    /// All that comes until the server is ready again.
    async fn answer(&mut self) -> anyhow::Result<Answer> {
        let (mut answer, mut refused) = (Answer::default(), None);
        loop {
            let kind = self.0.read_u8().await.context("PostgreSQL closed the connection")?;
            let length = usize::try_from(self.0.read_i32().await?)?
                .checked_sub(4)
                .context("a message without length")?;
            ensure!(length <= MESSAGE_MAX, "a message of {length} bytes");
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).await?;
            match kind {
                b'Z' => return refused.map_or(Ok(answer), |refused: Refused| Err(refused.into())),
                b'D' => answer.rows.push(columns(&body)?),
                b'C' => answer.tag = String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned(),
                b'E' => {
                    let error = refusal(&body);
                    // Before it is ready for the first time it closes the connection instead.
                    if error.code == "57P03" {
                        return Err(error.into());
                    }
                    refused = Some(error);
                }
                b'R' => ensure!(body == [0; 4], "PostgreSQL wants a password"),
                // Parameters, keys, descriptions, completions of the parts, notices.
                b'S' | b'K' | b'T' | b'1' | b'2' | b'n' | b'N' => {}
                other => bail!("unexpected message {:?}", char::from(other)),
            }
        }
    }
}

fn sync(request: Vec<u8>) -> Vec<u8> {
    let (message, at) = Message::new(request, b'S');
    message.end(at)
}

fn columns(mut body: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut take = |count: usize| {
        let (taken, rest) = body.split_at_checked(count).context("a row is cut off")?;
        body = rest;
        anyhow::Ok(taken)
    };
    let count = i16::from_be_bytes(take(2)?.try_into()?);
    let mut columns = Vec::new();
    for _ in 0..count {
        let length = i32::from_be_bytes(take(4)?.try_into()?);
        columns.push(take(usize::try_from(length).context("a column is NULL")?)?.to_vec());
    }
    Ok(columns)
}

fn refusal(body: &[u8]) -> Refused {
    let field = |kind: u8| {
        let mut fields = body.split(|byte| *byte == 0);
        let found = fields.find_map(|field| field.strip_prefix(&[kind]));
        String::from_utf8_lossy(found.unwrap_or_default()).into_owned()
    };
    Refused {
        code: field(b'C'),
        text: field(b'M'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_errors_are_read_as_they_are_on_the_wire() {
        assert_eq!(columns(b"\0\x02\0\0\0\x01a\0\0\0\0").unwrap(), [b"a".to_vec(), Vec::new()]);
        assert!(columns(b"\0\x01\0\0\0\x05ab").is_err());
        let refused = refusal(b"SFATAL\0C57P03\0Mthe database system is starting up\0\0");
        assert_eq!(
            (refused.code.as_str(), refused.text.as_str()),
            ("57P03", "the database system is starting up")
        );
        assert_eq!(sync(b"x".to_vec()), b"xS\0\0\0\x04");
    }
}
