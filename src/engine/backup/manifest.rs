//! What a backup says of itself: `MANIFEST.json`, and beside it the hash of that file as `sha256sum --check` takes it.
//!
//! Written last by `receive`, read first by `verify` and by a restore.

use crate::store::{Error, Head};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// Name of the manifest.
pub const MANIFEST: &str = "MANIFEST.json";
/// Name of the file with its hash.
pub const MANIFEST_HASH: &str = "MANIFEST.sha256";
/// Name of the file with keys and values.
pub const LOG: &str = "log";
/// Name of the directory with the payload files.
pub const PAYLOADS: &str = "payloads";
/// Version of the layout of a backup.
pub const VERSION: u32 = 1;

/// Whose directory it was. The first frame of a backup under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Stored-format version of the values.
    pub format: u32,
    /// The role.
    pub role: String,
    /// The party, where the role has one.
    pub owner: String,
    /// Id of the data directory, hexadecimal.
    pub instance: String,
    /// The release that wrote it.
    pub release: String,
    /// When the backup began, RFC 3339.
    pub created_at: String,
}

/// Where the store was. Everything up to this commit is in the backup, and nothing after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// See [`Head::epoch`].
    pub epoch: u64,
    /// See [`Head::batch`].
    pub batch: u64,
    /// See [`Head::first_seq`].
    pub first_seq: u64,
    /// See [`Head::next_seq`].
    pub next_seq: u64,
}

impl From<Head> for Position {
    fn from(head: Head) -> Self {
        Self {
            epoch: head.epoch,
            batch: head.batch,
            first_seq: head.first_seq,
            next_seq: head.next_seq,
        }
    }
}

impl From<Position> for Head {
    fn from(position: Position) -> Self {
        Self {
            epoch: position.epoch,
            batch: position.batch,
            first_seq: position.first_seq,
            next_seq: position.next_seq,
        }
    }
}

/// How much it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Values written, those that were superseded while the backup ran included.
    pub values: u64,
    /// Payload files.
    pub payloads: u64,
    /// Bytes in payload files.
    pub payload_bytes: u64,
}

/// The last frame of a backup under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ending {
    pub head: Position,
    pub counts: Counts,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Entry {
    /// Path inside the backup, with `/`.
    pub path: String,
    /// Bytes.
    pub len: u64,
    /// Hexadecimal.
    pub sha256: String,
}

/// The content of `MANIFEST.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// Whose directory it was.
    #[serde(flatten)]
    pub origin: Origin,
    /// Where the store was.
    pub head: Position,
    /// How much it is.
    pub counts: Counts,
    /// Every file but the manifest itself.
    pub files: Vec<Entry>,
}

impl Manifest {
    /// The bytes of the two files.
    pub(super) fn render(&self) -> (Vec<u8>, Vec<u8>) {
        let mut json = serde_json::to_vec_pretty(self).expect("a manifest is plain data");
        json.push(b'\n');
        let hash = format!("{}  {MANIFEST}\n", hex(&Sha256::digest(&json)));
        (json, hash.into_bytes())
    }

    /// Read the manifest of a backup, checked against its hash.
    ///
    /// # Errors
    /// [`Error::Damaged`] names the file; [`Error::NewerFormat`] for a backup of a later release.
    pub fn read(backup: &Path) -> Result<Manifest, Error> {
        let (path, hash_path) = (backup.join(MANIFEST), backup.join(MANIFEST_HASH));
        let json = fs::read(&path).map_err(Error::at("read", &path))?;
        let hash = fs::read(&hash_path).map_err(Error::at("read", &hash_path))?;
        let hash = String::from_utf8_lossy(&hash);
        let damaged = |what: String| Error::Damaged { file: path.clone(), what };
        if hash.split_whitespace().next() != Some(&hex(&Sha256::digest(&json))) {
            return Err(damaged(format!("its hash is not the one in {MANIFEST_HASH}")));
        }
        let manifest: Manifest = serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
        if manifest.version != VERSION {
            return Err(Error::NewerFormat {
                dir: backup.to_owned(),
                found: manifest.version,
                known: VERSION,
                needs: format!("fedbroker {}", manifest.origin.release),
            });
        }
        Ok(manifest)
    }
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Length and SHA-256 of a file. `progress` hears of the bytes of each piece.
pub fn hash_file(path: &Path, progress: &mut dyn FnMut(u64)) -> Result<(u64, String), Error> {
    let mut file = File::open(path).map_err(Error::at("open", path))?;
    let (mut hasher, mut len, mut buffer) = (Sha256::new(), 0, vec![0; 64 * 1024]);
    loop {
        let count = file.read(&mut buffer).map_err(Error::at("read", path))?;
        if count == 0 {
            return Ok((len, hex(&hasher.finalize())));
        }
        hasher.update(&buffer[..count]);
        len += count as u64;
        progress(count as u64);
    }
}
