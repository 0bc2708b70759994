//! Makes a backup directory of the frames that come in.
//!
//! Called by `fedbroker store backup`. The directory is built under another name and gets its own when everything in it is whole and
//! durable; a backup that breaks off leaves nothing, one whose process is killed leaves `<dir>.new`, which the next try removes. It must never take the end of the bytes for the end
//! of the backup.

use super::frame::{self, Frames};
use super::manifest::{Counts, Ending, Entry, LOG, MANIFEST, MANIFEST_HASH, Manifest, Origin, PAYLOADS, VERSION, hash_file, hex};
use crate::machine::content::PayloadRef;
use crate::store::Error;
use crate::store::directory::{exists, sync_parent, sync_tree};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Why no backup came of it.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The directory cannot be written.
    #[error(transparent)]
    Store(#[from] Error),
    /// There is something already.
    #[error("{0} is there already; give the backup a directory of its own")]
    Occupied(PathBuf),
    /// The sender could not go on.
    #[error("the backup was broken off by its sender: {0}")]
    Failed(String),
    /// The end is missing.
    #[error("the backup was cut off before its end; what has come is no backup")]
    Cut,
    /// This is not a row of frames of a backup.
    #[error("what comes is not a backup: {0}")]
    Strange(String),
}

/// Takes frames as bytes, in pieces of any size.
pub struct Receiver {
    to: PathBuf,
    new: PathBuf,
    frames: Frames,
    log: BufWriter<File>,
    payload: Option<Incoming>,
    entries: Vec<Entry>,
    counts: Counts,
    origin: Option<Origin>,
    ending: Option<Ending>,
}

/// A payload file that is coming.
struct Incoming {
    payload: PayloadRef,
    file: File,
    path: PathBuf,
    hasher: Sha256,
    left: u64,
}

impl Receiver {
    /// Begin a backup that will be at `to`, where nothing may be yet.
    ///
    /// # Errors
    /// There is something at `to`, or nothing can be made beside it.
    pub fn new(to: &Path) -> Result<Receiver, ReceiveError> {
        let to = std::path::absolute(to).map_err(Error::at("find", to))?;
        if exists(&to)? {
            return Err(ReceiveError::Occupied(to));
        }
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = to.with_file_name(name);
        if exists(&new)? {
            fs::remove_dir_all(&new).map_err(Error::at("remove", &new))?;
        }
        let payloads = new.join(PAYLOADS);
        fs::create_dir_all(&payloads).map_err(Error::at("create directory", &payloads))?;
        let log = new.join(LOG);
        let log = BufWriter::new(File::create_new(&log).map_err(Error::at("create", &log))?);
        Ok(Receiver {
            to,
            new,
            frames: Frames::default(),
            log,
            payload: None,
            entries: Vec::new(),
            counts: Counts::default(),
            origin: None,
            ending: None,
        })
    }

    /// What has come so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// More bytes.
    ///
    /// # Errors
    /// [`ReceiveError`]; the backup is over then.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), ReceiveError> {
        self.frames.feed(bytes);
        let mut frames = std::mem::take(&mut self.frames);
        loop {
            match frames.next() {
                Ok(Some((kind, body))) => self.take(kind, body)?,
                Ok(None) => break,
                Err(malformed) => return Err(ReceiveError::Strange(malformed.to_string())),
            }
        }
        self.frames = frames;
        Ok(())
    }

    fn take(&mut self, kind: u8, body: &[u8]) -> Result<(), ReceiveError> {
        let strange = |what: &str| Err(ReceiveError::Strange(what.to_owned()));
        if self.ending.is_some() {
            return strange("something follows its end");
        }
        if (kind == frame::BEGIN) != self.origin.is_none() && kind != frame::FAILED {
            return strange("it does not begin with its beginning");
        }
        if self.payload.is_some() != (kind == frame::PIECE) && kind != frame::FAILED {
            return strange("a payload file in it is cut short or too long");
        }
        match kind {
            frame::BEGIN => self.origin = Some(parse(body)?),
            frame::VALUES => {
                self.counts.values += frame::values(body).map_err(|e| ReceiveError::Strange(e.to_string()))?.len() as u64;
                let written = self.log.write_all(&frame::frame(kind, body));
                written.map_err(Error::at("write", &self.new.join(LOG)))?;
            }
            frame::PAYLOAD => self.begin_payload(body)?,
            frame::PIECE => self.piece(body)?,
            frame::END => {
                let ending: Ending = parse(body)?;
                if ending.counts != self.counts {
                    return strange("less has come than was sent");
                }
                self.ending = Some(ending);
            }
            frame::FAILED => return Err(ReceiveError::Failed(String::from_utf8_lossy(body).into_owned())),
            other => return Err(ReceiveError::Strange(format!("a frame of the unknown kind {other}"))),
        }
        Ok(())
    }

    fn begin_payload(&mut self, body: &[u8]) -> Result<(), ReceiveError> {
        let parsed = body
            .split_first_chunk::<32>()
            .and_then(|(hash, len)| Some((*hash, len.try_into().ok()?)));
        let Some((hash, len)) = parsed else {
            return Err(ReceiveError::Strange("a payload file without its name".to_owned()));
        };
        let payload = PayloadRef {
            hash,
            len: u64::from_le_bytes(len),
        };
        let path = self.new.join(path_of(&payload));
        let dir = path.parent().expect("path_of puts it in a directory");
        fs::create_dir_all(dir).map_err(Error::at("create directory", dir))?;
        let file = File::create_new(&path).map_err(Error::at("create", &path))?;
        self.payload = Some(Incoming {
            payload,
            file,
            path,
            hasher: Sha256::new(),
            left: payload.len,
        });
        self.piece(&[])
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<(), ReceiveError> {
        let Some(incoming) = &mut self.payload else { return Ok(()) };
        let strange = |what: &str| Err(ReceiveError::Strange(format!("payload file {}: {what}", incoming.payload.hex())));
        let Some(left) = incoming.left.checked_sub(bytes.len() as u64) else {
            return strange("it is too long");
        };
        incoming.left = left;
        incoming.hasher.update(bytes);
        incoming.file.write_all(bytes).map_err(Error::at("write", &incoming.path))?;
        self.counts.payload_bytes += bytes.len() as u64;
        if left > 0 {
            return Ok(());
        }
        let hash = incoming.hasher.clone().finalize();
        if hash[..] != incoming.payload.hash {
            return strange("its bytes do not have the hash in its name");
        }
        self.counts.payloads += 1;
        self.entries.push(Entry {
            path: path_of(&incoming.payload),
            len: incoming.payload.len,
            sha256: hex(&hash),
        });
        self.payload = None;
        Ok(())
    }

    /// Close the backup: it is at its place, whole and durable, when this returns.
    ///
    /// # Errors
    /// The end frame has not come, or the directory cannot be written.
    pub fn finish(mut self) -> Result<Manifest, ReceiveError> {
        let (Some(origin), Some(ending)) = (self.origin.take(), self.ending.take()) else {
            return Err(ReceiveError::Cut);
        };
        if !self.frames.is_empty() {
            return Err(ReceiveError::Strange("something follows its end".to_owned()));
        }
        let log = self.new.join(LOG);
        let closing = frame::frame(frame::END, &serde_json::to_vec(&ending).expect("plain data"));
        let closed = self.log.write_all(&closing).and_then(|()| self.log.flush());
        closed.map_err(Error::at("write", &log))?;
        let (len, sha256) = hash_file(&log, &mut |_| {})?;
        let path = LOG.to_owned();
        self.entries.push(Entry { path, len, sha256 });
        let mut files = std::mem::take(&mut self.entries);
        files.sort();
        let manifest = Manifest {
            version: VERSION,
            origin,
            head: ending.head,
            counts: ending.counts,
            files,
        };
        let (json, hash) = manifest.render();
        for (name, bytes) in [(MANIFEST, json), (MANIFEST_HASH, hash)] {
            let path = self.new.join(name);
            fs::write(&path, bytes).map_err(Error::at("write", &path))?;
        }
        sync_tree(&self.new)?;
        fs::rename(&self.new, &self.to).map_err(Error::at("rename to", &self.to))?;
        sync_parent(&self.to)?;
        Ok(manifest)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Gone already when the backup is at its place.
        if let Err(error) = fs::remove_dir_all(&self.new)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %self.new.display(), %error, "a broken off backup stays");
        }
    }
}

/// Where a payload file is in a backup.
pub(super) fn path_of(payload: &PayloadRef) -> String {
    let name = payload.hex();
    format!("{PAYLOADS}/{}/{name}", &name[..2])
}

fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, ReceiveError> {
    serde_json::from_slice(body).map_err(|error| ReceiveError::Strange(error.to_string()))
}

/// For a sender in this process. Its own errors come back through [`Feeding::outcome`].
pub struct Feeding<'a> {
    receiver: &'a mut Receiver,
    failed: Option<ReceiveError>,
    progress: &'a mut dyn FnMut(Counts),
}

impl<'a> Feeding<'a> {
    /// Feed `receiver`; `progress` hears what has come.
    pub fn new(receiver: &'a mut Receiver, progress: &'a mut dyn FnMut(Counts)) -> Self {
        Self {
            receiver,
            failed: None,
            progress,
        }
    }

    /// Why it ended early, if the receiver was the reason.
    pub fn outcome(self) -> Result<(), ReceiveError> {
        self.failed.map_or(Ok(()), Err)
    }
}

impl Write for Feeding<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.receiver.feed(bytes) {
            Ok(()) => {
                (self.progress)(self.receiver.counts());
                Ok(bytes.len())
            }
            Err(error) => {
                self.failed = Some(error);
                Err(io::ErrorKind::Other.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
