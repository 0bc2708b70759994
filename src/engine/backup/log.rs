//! The file of a backup with its keys and values: read once through, frame by frame.
//!
//! Called by `verify` and by a restore. It must never take a cut file for a whole one.

use super::frame::{self, Frames};
use super::manifest::Ending;
use crate::store::{Error, Head};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Gets a key and its sealed value, or `None` where it was gone again.
pub type Each<'a> = dyn FnMut(&[u8], Option<&[u8]>) -> Result<(), Error> + 'a;

/// Hand on every value in the order it was written; of several words on one key the last one counts. Gives where the store was.
///
/// # Errors
/// [`Error::Damaged`] names the file; or what `each` says.
pub fn read(file: &Path, each: &mut Each<'_>) -> Result<Head, Error> {
    let damaged = |what: String| Error::Damaged {
        file: file.to_owned(),
        what,
    };
    let mut log = File::open(file).map_err(Error::at("open", file))?;
    let (mut frames, mut buffer, mut ending) = (Frames::default(), vec![0; 64 * 1024], None);
    loop {
        let count = log.read(&mut buffer).map_err(Error::at("read", file))?;
        if count == 0 {
            break;
        }
        frames.feed(&buffer[..count]);
        while let Some((kind, body)) = frames.next().map_err(|error| damaged(error.to_string()))? {
            match kind {
                _ if ending.is_some() => return Err(damaged("something follows its end".to_owned())),
                frame::VALUES => {
                    for (key, sealed) in frame::values(body).map_err(|error| damaged(error.to_string()))? {
                        each(key, sealed)?;
                    }
                }
                frame::END => {
                    let parsed: Ending = serde_json::from_slice(body).map_err(|error| damaged(error.to_string()))?;
                    ending = Some(parsed);
                }
                other => return Err(damaged(format!("a frame of the kind {other} is in it"))),
            }
        }
    }
    match ending {
        Some(ending) if frames.is_empty() => Ok(ending.head.into()),
        _ => Err(damaged("its end is missing".to_owned())),
    }
}
