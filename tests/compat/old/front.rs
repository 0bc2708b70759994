//! What grpcio's server does below the calls: it counts HTTP/2 pings and closes a connection that sends them faster than once in five minutes.
//!
//! Stands before a tonic server and reads the frames that go by; tonic itself would let any ping through.

use super::{Process, listen};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Faster is a strike.
const FASTEST: Duration = Duration::from_secs(300);
/// So many strikes are let pass.
const STRIKES: usize = 2;
/// What a client says first, before any frame.
const PREFACE: usize = 24;
const HEADER: usize = 9;
const PING: u8 = 6;
const ACK: u8 = 1;

/// What went by.
#[derive(Default)]
pub struct Seen {
    /// Pings of clients, without the answers to ours.
    pub pings: AtomicUsize,
    /// Connections closed for them.
    pub goaways: AtomicUsize,
    /// Connections ever.
    pub connections: AtomicUsize,
}

/// Listen at `address` in front of a server.
pub async fn start(process: &Process, address: &str, server: SocketAddr) -> (SocketAddr, Arc<Seen>) {
    let (listener, address) = process
        .spawn({
            let address = address.to_owned();
            async move { listen(&address).await }
        })
        .await
        .unwrap();
    let seen = Arc::new(Seen::default());
    let counted = seen.clone();
    process.spawn(async move {
        loop {
            let Ok((client, _)) = listener.accept().await else { continue };
            let Ok(server) = TcpStream::connect(server).await else { continue };
            for stream in [&client, &server] {
                stream.set_nodelay(true).unwrap();
            }
            counted.connections.fetch_add(1, Ordering::Relaxed);
            let seen = counted.clone();
            tokio::runtime::Handle::current().spawn(async move { carry(client, server, &seen).await });
        }
    });
    (address, seen)
}

async fn carry(client: TcpStream, server: TcpStream, seen: &Seen) {
    let (from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let too_many = Notify::new();
    let inward = async {
        let mut frames = Frames::new(from_client);
        let preface = frames.take(PREFACE).await?;
        to_server.write_all(&preface).await?;
        let (mut last, mut strikes) = (None::<Instant>, 0);
        loop {
            let frame = frames.next().await?;
            if frame[3] == PING && frame[4] & ACK == 0 {
                seen.pings.fetch_add(1, Ordering::Relaxed);
                strikes += usize::from(last.is_some_and(|last| last.elapsed() < FASTEST));
                last = Some(Instant::now());
                if strikes > STRIKES {
                    too_many.notify_one();
                    return std::future::pending::<io::Result<()>>().await;
                }
            }
            to_server.write_all(&frame).await?;
        }
    };
    let outward = async {
        let mut frames = Frames::new(from_server);
        loop {
            tokio::select! {
                frame = frames.next() => to_client.write_all(&frame?).await?,
                () = too_many.notified() => {
                    seen.goaways.fetch_add(1, Ordering::Relaxed);
                    to_client.write_all(&goaway()).await?;
                    return to_client.shutdown().await;
                }
            }
        }
    };
    // The first side to end ends both: the sockets close with this future.
    tokio::select! {
        _ = inward => {}
        _ = outward => {}
    }
}

/// GOAWAY, ENHANCE_YOUR_CALM, `too_many_pings`.
fn goaway() -> Vec<u8> {
    let why = b"too_many_pings";
    let length = u8::try_from(8 + why.len()).unwrap();
    let mut frame = vec![0, 0, length, 7, 0, 0, 0, 0, 0];
    frame.extend([0, 0, 0, 0]);
    frame.extend([0, 0, 0, 0x0b]);
    frame.extend(why);
    frame
}

/// Whole frames of a connection; may be dropped while it waits.
struct Frames<R> {
    from: R,
    read: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    fn new(from: R) -> Self {
        Self { from, read: Vec::new() }
    }

    async fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.read.len() < length {
            if self.from.read_buf(&mut self.read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let rest = self.read.split_off(length);
        Ok(std::mem::replace(&mut self.read, rest))
    }

    async fn next(&mut self) -> io::Result<Vec<u8>> {
        while self.read.len() < HEADER {
            if self.from.read_buf(&mut self.read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let length = u32::from_be_bytes([0, self.read[0], self.read[1], self.read[2]]);
        self.take(HEADER + usize::try_from(length).unwrap()).await
    }
}
