//! Kept content in pieces, for those who send it on.
//!
//! Read by roles through `engine::outgoing`. The last piece must never be given before all of them are proved: who has it may take the content
//! for whole.

use super::super::Error;
use super::{Payloads, Pinned, Reader, unreadable};
use crate::machine::content::PayloadRef;
use bytes::Bytes;
use std::io::{self, Read};
use std::path::PathBuf;

/// The longest piece, bytes: some dozens are on their way at once in the windows of a connection.
pub const PIECE_MAX: usize = 256 * 1024;

/// The pieces that are left of a content, which stays until this is dropped. All methods block.
pub struct Pieces {
    reader: Reader,
    file: PathBuf,
    left: u64,
    pin: Pinned,
}

impl Payloads {
    /// The content in pieces; `None` if there is no file to rely on (any more). Errors: as [`Payloads::reader`].
    pub fn pieces(&self, payload: &PayloadRef) -> Result<Option<Pieces>, Error> {
        let Some(pin) = self.pin(payload) else { return Ok(None) };
        Ok(Some(Pieces {
            reader: self.reader(payload)?,
            file: self.shared.files.path(&payload.hash),
            left: payload.len,
            pin,
        }))
    }
}

impl Pieces {
    /// Bytes in all pieces, given or not.
    pub fn content_len(&self) -> u64 {
        self.pin.len
    }

    /// The file, for those who say what went wrong.
    pub fn file(&self) -> PathBuf {
        self.file.clone()
    }

    /// The next piece, none of them empty; `None` behind the last.
    ///
    /// # Errors
    /// [`Error::Damaged`]: the file is not what its name says. Instead of the last piece at the latest.
    pub fn read(&mut self) -> Result<Option<Bytes>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        let len = usize::try_from(self.left).map_or(PIECE_MAX, |left| left.min(PIECE_MAX));
        let mut piece = Vec::with_capacity(len);
        let mut read = (&mut self.reader).take(len as u64).read_to_end(&mut piece).map(drop);
        self.left -= len as u64;
        if self.left == 0 {
            // Only the read that meets the end says whether all was right.
            read = read.and_then(|()| io::copy(&mut self.reader, &mut io::sink()).map(drop));
        }
        read.map_err(|error| unreadable(&self.file, error))?;
        Ok(Some(piece.into()))
    }
}
