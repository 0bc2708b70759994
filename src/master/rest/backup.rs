//! `POST /api/v1/backup`: all of this master's data, as of one commit, while it goes on.
//!
//! The answer is a stream of frames (`engine::backup`). One backup at a time: it holds up the removal of payload files. It ends, and lets
//! go of everything, when it is done, when its reader goes away, and when its reader takes nothing for [`STALL`].

use super::Door;
use super::v1::problem::{Code, Problem};
use super::v1::query::NoQuery;
use crate::engine::backup::SendError;
use crate::store::Error as StoreError;
use crate::supervisor::{Policy, Supervisor};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use std::io::{self, Write};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Pieces that wait for the reader: some hundred KiB each.
const AHEAD: usize = 4;
/// How long a reader may take nothing; `server` cuts the connection before, so this is for a server that does not.
const STALL: Duration = Duration::from_secs(60);

/// All of this master's data, as of one commit, as a stream of frames
#[utoipa::path(post, path = "/api/v1/backup", operation_id = "make_backup", tag = "status", responses(
    (status = 200, description = "Frames; `fedbroker store backup` takes them", content_type = "application/octet-stream"),
    (status = 409, description = "Another backup is made", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn backup(State(door): State<Door>, _: NoQuery) -> Result<Response, Problem> {
    let Ok(permit) = door.backups.clone().try_acquire_owned() else {
        return Err(Problem::new(Code::BackupUnderWay, "one backup at a time; another one is under way"));
    };
    let (pieces, stream) = mpsc::channel(AHEAD);
    let source = door.shared.backup.clone();
    let mut outlet = Outlet {
        pieces,
        runtime: Handle::current(),
    };
    let role = door.shared.supervisor.clone();
    let work = async move {
        let sent = Supervisor::blocking(move || {
            // Gone only when nothing is held any more.
            let _permit = permit;
            source.send(&mut outlet)
        })
        .await;
        match sent {
            Ok(Ok(())) => tracing::info!("a backup was made"),
            Ok(Err(error @ SendError::Gone(_))) => tracing::warn!(error = format!("{error:#}"), "a backup was given up"),
            // Damage met while serving is the end of the role, whoever meets it.
            Ok(Err(SendError::Store(error @ StoreError::Damaged { .. }))) => {
                role.fatal(anyhow::Error::new(error).context("met by a backup"))
            }
            Ok(Err(error)) => tracing::error!(%error, "a backup failed"),
            Err(error) => tracing::error!(error = format!("{error:#}"), "a backup failed"),
        }
    };
    door.shared.supervisor.spawn("backup", Policy::Ordinary, work);
    let body = Body::from_stream(ReceiverStream::new(stream));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// Where the blocking sender writes to.
struct Outlet {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    runtime: Handle,
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let send = self.pieces.send(Ok(Bytes::copy_from_slice(bytes)));
        match self.runtime.block_on(tokio::time::timeout(STALL, send)) {
            Ok(Ok(())) => Ok(bytes.len()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the reader went away")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the reader takes nothing")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
