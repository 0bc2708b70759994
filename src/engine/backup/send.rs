//! Says all that a backup holds, in frames, while commits go on.
//!
//! Called by the master's REST service and by the store commands. Memory is bounded by one frame and the names of the payload files.
//! It must never hold up a commit, nor name a payload file that is gone before it was sent.

use super::frame::{self, Values, frame};
use super::manifest::{Counts, Ending, Origin};
use crate::engine::clock::{Clock, SystemClock};
use crate::engine::reader::PAYLOAD;
use crate::machine::content::PayloadRef;
use crate::migrations;
use crate::store::directory::Directory;
use crate::store::payload::Payloads;
use crate::store::sled_store::{RECORD_PREFIX, SledStore};
use crate::store::{Error, Head, codec};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

/// Bytes of a payload in one frame.
const PIECE: usize = 128 * 1024;

/// Why a backup ended early.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The store or a payload file cannot be read; whoever listens was told.
    #[error(transparent)]
    Store(#[from] Error),
    /// Nobody listens any more.
    #[error("nobody takes the backup any more")]
    Gone(#[source] io::Error),
}

/// What a backup is made from. Cheap to clone.
#[derive(Clone)]
pub struct Source {
    store: Arc<SledStore>,
    payloads: Arc<Payloads>,
    origin: Origin,
}

impl Source {
    /// The store and the payload files of a directory.
    pub fn new(directory: &Directory, store: Arc<SledStore>, payloads: Arc<Payloads>) -> Source {
        let origin = Origin {
            format: migrations::CURRENT,
            role: directory.role(),
            owner: directory.owner().unwrap_or_default(),
            instance: format!("{:032x}", u128::from_be_bytes(directory.instance())),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            created_at: String::new(),
        };
        Source { store, payloads, origin }
    }

    /// Send everything as it is after one commit, now or a little later. Blocks as long as `to` does.
    ///
    /// # Errors
    /// What cannot be read, or that nobody listens.
    pub fn send(&self, to: &mut dyn Write) -> Result<(), SendError> {
        let mut sender = Sender {
            to,
            gone: None,
            counts: Counts::default(),
        };
        match self.say_all(&mut sender) {
            Ok(()) => Ok(()),
            Err(error) => match sender.gone.take() {
                Some(gone) => Err(SendError::Gone(gone)),
                None => {
                    // It may not arrive: a row without its end frame says as much.
                    let _ = sender.say(&frame(frame::FAILED, clip(&error.to_string()).as_bytes()));
                    Err(error.into())
                }
            },
        }
    }

    fn say_all(&self, sender: &mut Sender<'_>) -> Result<(), Error> {
        let now = i64::try_from(SystemClock.now().0).unwrap_or(i64::MAX);
        let origin = Origin {
            created_at: jiff::Timestamp::from_microsecond(now).unwrap_or_default().to_string(),
            ..self.origin.clone()
        };
        sender.say(&frame(frame::BEGIN, &json(&origin)))?;
        // Before the values are read, so that what they refer to stays.
        let frozen = self.payloads.freeze();
        let (head, payloads) = self.say_values(sender)?;
        for payload in payloads {
            self.say_payload(&payload, sender)?;
        }
        drop(frozen);
        let ending = Ending {
            head: head.into(),
            counts: sender.counts,
        };
        sender.say(&frame(frame::END, &json(&ending)))
    }

    /// Gives the payload files that the records refer to at the end.
    fn say_values(&self, sender: &mut Sender<'_>) -> Result<(Head, Vec<PayloadRef>), Error> {
        let mut values = Values::default();
        let mut payloads: BTreeMap<Vec<u8>, PayloadRef> = BTreeMap::new();
        let head = self.store.copy(&mut |key, sealed| {
            if key.starts_with(&[RECORD_PREFIX, PAYLOAD]) {
                match sealed {
                    Some(sealed) => drop(payloads.insert(key.to_vec(), payload_of(key, sealed)?)),
                    None => drop(payloads.remove(key)),
                }
            }
            sender.counts.values += 1;
            values.push(key, sealed);
            values.take(false).map_or(Ok(()), |full| sender.say(&full))
        })?;
        if let Some(last) = values.take(true) {
            sender.say(&last)?;
        }
        Ok((head, payloads.into_values().collect()))
    }

    fn say_payload(&self, payload: &PayloadRef, sender: &mut Sender<'_>) -> Result<(), Error> {
        let mut reader = self.payloads.reader(payload)?;
        sender.say(&frame(frame::PAYLOAD, &[&payload.hash[..], &payload.len.to_le_bytes()].concat()))?;
        let mut buffer = vec![0; PIECE];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => sender.say(&frame(frame::PIECE, &buffer[..count]))?,
                Err(source) => {
                    let what = format!("cannot read payload file {}", payload.hex());
                    return Err(Error::Io { what, source });
                }
            }
        }
        sender.counts.payloads += 1;
        sender.counts.payload_bytes += payload.len;
        Ok(())
    }
}

/// The payload that a stored count is of.
pub(super) fn payload_of(key: &[u8], sealed: &[u8]) -> Result<PayloadRef, Error> {
    let decoded = codec::unseal(key, sealed).and_then(|(_, body)| codec::decode::<(PayloadRef, u32)>(body));
    decoded.map(|(payload, _)| payload).map_err(|error| Error::Damaged {
        file: "store".into(),
        what: format!("key {}: {error}", key.escape_ascii()),
    })
}

struct Sender<'a> {
    to: &'a mut dyn Write,
    /// Why the listener is gone.
    gone: Option<io::Error>,
    counts: Counts,
}

impl Sender<'_> {
    fn say(&mut self, frame: &[u8]) -> Result<(), Error> {
        self.to.write_all(frame).map_err(|error| {
            let source = error.kind().into();
            self.gone = Some(error);
            let what = "cannot hand on the backup".to_owned();
            Error::Io { what, source }
        })
    }
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data")
}

fn clip(text: &str) -> String {
    text.chars().take(1000).collect()
}
