//! Kept content on its way out: the pieces of a payload file, each read by a thread of the pool when it is asked for.
//!
//! Used by the roles for bodies of calls and for streams. It must never read ahead of who takes the pieces: their windows bound what is in memory.

use crate::store::Error;
use crate::store::payload::pieces::Pieces;
use crate::supervisor::Supervisor;
use bytes::Bytes;
use futures_util::stream::{Stream, try_unfold};

/// The next piece and what is left; `None` behind the last.
///
/// # Errors
/// As [`Pieces::read`].
pub async fn next(mut pieces: Pieces) -> Result<Option<(Bytes, Pieces)>, Error> {
    let file = pieces.file();
    let read = Supervisor::blocking(move || Ok(pieces.read()?.map(|piece| (piece, pieces)))).await;
    read.unwrap_or_else(|panicked| Err(Error::at("read", &file)(std::io::Error::other(panicked))))
}

/// All pieces that are left. An error is the last item.
pub fn stream(pieces: Pieces) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
    try_unfold(pieces, next)
}
