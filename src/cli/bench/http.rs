//! A connection to a REST service that is kept, and costs little: the cores are shared with what is measured.
//!
//! Knows of HTTP/1.1 only what an answer with a `content-length` needs.

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The longest answer taken, bytes.
const ANSWER_MAX: usize = 1024 * 1024;

/// One connection.
pub(super) struct Connection {
    stream: TcpStream,
    host: String,
    buffer: Vec<u8>,
}

/// Status and body of an answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

impl Connection {
    /// To `host:port`.
    ///
    /// # Errors
    /// Nobody is there.
    pub(super) async fn open(endpoint: &str) -> anyhow::Result<Self> {
        let host = endpoint.trim_start_matches("http://").trim_end_matches('/');
        let stream = TcpStream::connect(host).await.with_context(|| format!("cannot reach {host}"))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            host: host.to_owned(),
            buffer: Vec::with_capacity(4096),
        })
    }

    /// POST JSON and wait for the answer.
    ///
    /// # Errors
    /// The connection was lost, or the answer is not of the kind this reads.
    pub(super) async fn post(&mut self, path: &str, body: &str) -> anyhow::Result<Answer> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        self.send(&request).await
    }

    /// GET and wait for the answer; the path may have a query.
    ///
    /// # Errors
    /// As [`Connection::post`].
    pub(super) async fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.host);
        self.send(&request).await
    }

    async fn send(&mut self, request: &str) -> anyhow::Result<Answer> {
        self.stream.write_all(request.as_bytes()).await?;
        loop {
            if let Some((answer, used)) = parse(&self.buffer)? {
                self.buffer.drain(..used);
                return Ok(answer);
            }
            anyhow::ensure!(self.buffer.len() < ANSWER_MAX, "an answer of {} is too long", self.host);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("{} closed the connection", self.host);
            }
        }
    }
}

/// The answer a buffer begins with, and its length there; `None` while it is not whole.
fn parse(buffer: &[u8]) -> anyhow::Result<Option<(Answer, usize)>> {
    let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&buffer[..end]).context("an answer's head is not text")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("not an answer of HTTP/1.1: {head:?}"))?;
    let length = |line: &str| -> Option<usize> {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") {
            value.trim().parse().ok()
        } else {
            None
        }
    };
    let length = head.lines().find_map(length).context("an answer without content-length")?;
    let used = end + 4 + length;
    if buffer.len() < used {
        return Ok(None);
    }
    let body = String::from_utf8_lossy(&buffer[end + 4..used]).into_owned();
    Ok(Some((Answer { status, body }, used)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_when_it_is_whole() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nx: y\r\n\r\nbodyHTTP/1.1 404";
        for cut in 0..text.len() - 12 {
            assert!(parse(&text[..cut]).unwrap().is_none(), "{cut}");
        }
        let (answer, used) = parse(text).unwrap().unwrap();
        assert_eq!(
            (answer.status, answer.body.as_str(), &text[used..]),
            (200, "body", &b"HTTP/1.1 404"[..])
        );
        assert!(parse(b"nonsense\r\n\r\n").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
