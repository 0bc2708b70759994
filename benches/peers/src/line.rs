//! A connection that sends one request and waits for its answer: lines and counted bytes, as RESP and beanstalkd's protocol have them.
//!
//! Used by `redis` and `beanstalkd`. Never has two requests under way while a measurement runs.

use anyhow::ensure;
use std::net::Ipv4Addr;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The connection.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// To a port of this machine.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn open(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Send a request.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn send(&mut self, request: &[u8]) -> anyhow::Result<()> {
        Ok(self.0.get_mut().write_all(request).await?)
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.0.read_line(&mut line).await? > 0, "the server closed the connection");
        line.truncate(line.trim_end_matches(['\r', '\n']).len());
        Ok(line)
    }

    /// So many bytes, and the end of line behind them.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn bytes(&mut self, count: usize) -> anyhow::Result<Vec<u8>> {
        let mut bytes = vec![0; count + 2];
        self.0.read_exact(&mut bytes).await?;
        ensure!(bytes.ends_with(b"\r\n"), "an answer is longer than it said");
        bytes.truncate(count);
        Ok(bytes)
    }
}
