//! Stored-format version 3: the story of a record can be read backwards.
//!
//! What changed since version 2, and why:
//!
//! - An event says which event of the same record came before it, and a job, a task and a participation of a master say which one changed them
//!   last: the timeline of a job is a handful of reads by number, without an index beside the log.
//! - Events of one commit share values: a million jobs have seven million events, and each value costs memory and time. Those that are carried over stay alone.
//! - The newest commits are in a journal beside the engine's files, `log-<n>/store/journal`, until the engine has them durably
//!   (`src/store/sled_store/journal.rs`).
//! - A job of a master has what it was asked to be (priority, times, labels, attempts), where it came from, and the states it went through.
//!
//! Frozen with release 0.2.0, which also reads directories of version 1. An operator sees one line in the log of the first start; it takes as
//! long as copying the store, needs room for a second one, and some hundred bytes of memory for each job and task that ever was.
//!
//! | key | body |
//! | --- | --- |
//! | `e` + 8 bytes sequence of the last event, big endian | for each event its length (2 bytes, little endian), then the number of the event before it in its thread, or none (bincode `Option<u64>`), then the event: a master's as in `m0003_master`, others as before |
//! | `rl` `rd` + key, of a master | a record as in `m0003_master` |
//! | all others | as before |

use super::m0003_master as master;
use super::m0003_master_0_1_0::{Event, Record, TaskKey};
use crate::machine::Logged;
use crate::machine::ids::BadId;
use crate::machine::master::records::Step;
use crate::store::codec;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::collections::HashMap;

/// This version.
pub const VERSION: u32 = 3;

/// Carries the values of a version 2 log over, in key order: the events, which come first, tell the records what they need.
pub struct Stories {
    is_master: bool,
    /// What the events have told of each record so far, by the record's key.
    told: HashMap<Vec<u8>, Told>,
}

#[derive(Default)]
struct Told {
    last: u64,
    /// Of a job.
    steps: Vec<Step>,
}

impl Stories {
    /// Of a directory of this role.
    pub fn new(role: &str) -> Stories {
        Stories {
            is_master: role == "master",
            told: HashMap::new(),
        }
    }

    /// The body that belongs under this key in version 3. An error says what is wrong with the value.
    pub fn carry<'a>(&mut self, key: &[u8], body: &'a [u8]) -> Result<Cow<'a, [u8]>, String> {
        let wrong = |error: BadId| error.to_string();
        match key {
            [b'e', ..] if !self.is_master => alone(&[&codec::encode(&None::<u64>), body].concat()),
            [b'e', seq @ ..] => {
                let seq = seq
                    .try_into()
                    .map(u64::from_be_bytes)
                    .map_err(|_| "it is no key of an event".to_owned())?;
                let event: Event = decode(body)?;
                let logged = Logged {
                    prev: self.tell(seq, &event),
                    event: master::event(event).map_err(wrong)?,
                };
                alone(&codec::encode(&logged))
            }
            [b'r', b'l' | b'd', record @ ..] if self.is_master => {
                let told = self.told.remove(record).unwrap_or_default();
                let record: Record = decode(body)?;
                if told.last == 0 && !matches!(record, Record::Counter(_)) {
                    return Err("no event is about it".to_owned());
                }
                let record = master::record(record, told.last, told.steps).map_err(wrong)?;
                Ok(Cow::Owned(codec::encode(&record)))
            }
            _ => Ok(Cow::Borrowed(body)),
        }
    }

    /// From now on this event is the last of the records it changes. Gives the one before it in its thread.
    fn tell(&mut self, seq: u64, event: &Event) -> Option<u64> {
        let mut tell = |record: Vec<u8>| {
            let told = self.told.entry(record).or_default();
            told.steps.extend(master::step(event));
            std::mem::replace(&mut told.last, seq)
        };
        match about(event) {
            About::New(record) => {
                tell(record);
                None
            }
            About::Known(record) => Some(tell(record)),
            About::Won { proposal, task } => {
                tell(task);
                Some(tell(proposal))
            }
        }
    }
}

/// A block of one event.
fn alone<'a>(event: &[u8]) -> Result<Cow<'a, [u8]>, String> {
    let len = u16::try_from(event.len()).map_err(|_| "it is too long".to_owned())?;
    Ok(Cow::Owned([&len.to_le_bytes(), event].concat()))
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    codec::decode(body).map_err(|error| error.to_string())
}

/// The records an event is about, by their keys.
enum About {
    New(Vec<u8>),
    Known(Vec<u8>),
    Won { proposal: Vec<u8>, task: Vec<u8> },
}

fn of_job(job: &str) -> Vec<u8> {
    [b"j", job.as_bytes()].concat()
}

fn of_task(key: &TaskKey) -> Vec<u8> {
    [b"t", key.job.as_bytes(), b"\0", key.task.as_bytes()].concat()
}

fn of_proposal(proposal: &str) -> Vec<u8> {
    [b"p", proposal.as_bytes()].concat()
}

fn about(event: &Event) -> About {
    match event {
        Event::JobAccepted { id, .. } => About::New(of_job(id)),
        Event::JobLeased { job, .. }
        | Event::JobProposing { job, .. }
        | Event::JobProposedLegacy { job }
        | Event::JobProposedAgain { job }
        | Event::JobRunning { job, .. }
        | Event::JobNoted { job, .. }
        | Event::JobSucceeded { job, .. }
        | Event::JobFailed { job, .. }
        | Event::LeaseReleased { job } => About::Known(of_job(job)),
        Event::TaskHeld { key, .. } => About::New(of_task(key)),
        Event::TaskReleased { key, .. }
        | Event::TaskRefused { key }
        | Event::TaskSubmitted { key, .. }
        | Event::TaskCancelling { key, .. }
        | Event::TaskEnded { key, .. } => About::Known(of_task(key)),
        Event::ProposalOffered { proposal, .. } | Event::ProposalDeclined { proposal, .. } => About::New(of_proposal(proposal)),
        Event::ProposalWon { proposal, key, .. } => About::Won {
            proposal: of_proposal(proposal),
            task: of_task(key),
        },
        Event::ProposalMissed { proposal, .. } => About::Known(of_proposal(proposal)),
    }
}
#[cfg(test)]
mod tests {
    use super::super::m0003_master_0_1_0::{Content, Participation, ParticipationState, Plan};
    use super::*;
    use crate::store::directory::Directory;
    use crate::store::sled_store::SledStore;
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    fn names(dir: &Path) -> BTreeSet<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_directory_looks_like_version_3() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(root.path(), "master", [0xab; 16]).unwrap();
        directory.claim("party1").unwrap();
        drop(SledStore::open(&directory).unwrap());
        let text = "fedbroker data directory\nformat 3\nneeds fedbroker 0.2.0\nrole master\nowner party1\n\
                    instance abababababababababababababababab\nlog 1\ncheck ";
        let format = fs::read_to_string(root.path().join("FORMAT")).unwrap();
        assert!(format.starts_with(text), "{format}");
        let expected = ["FORMAT", "LOCK", "high-water-1", "log-1", "payloads", "work"].map(String::from);
        assert_eq!(names(root.path()), BTreeSet::from(expected));
        assert_eq!(names(&root.path().join("log-1")), BTreeSet::from(["store".to_owned()]));
    }

    #[test]
    fn the_events_of_a_record_follow_each_other() {
        let (job, key) = ("j".to_owned(), || TaskKey {
            job: "j".to_owned(),
            task: "t".to_owned(),
        });
        let (proposal, named) = ("q".to_owned(), "type".to_owned());
        let content = || Content::Inline(Vec::new());
        let plan = Plan {
            endpoints: 0,
            workers: 1,
            wait_s: 0,
        };
        let log = [
            (
                None,
                Event::JobAccepted {
                    id: job.clone(),
                    number: 1,
                    job_type: named.clone(),
                    config: content(),
                    algorithm_config: None,
                    plan,
                    at: 5,
                },
            ),
            (
                None,
                Event::ProposalOffered {
                    proposal: proposal.clone(),
                    job_type: named.clone(),
                    at: 6,
                },
            ),
            (Some(1), Event::JobRunning { job: job.clone(), at: 7 }),
            (
                Some(2),
                Event::ProposalWon {
                    proposal,
                    key: key(),
                    task_type: named,
                    content: content(),
                    at: 8,
                },
            ),
            (Some(4), Event::TaskRefused { key: key() }),
            (
                Some(3),
                Event::JobNoted {
                    job,
                    note: "note".to_owned(),
                },
            ),
        ];
        let mut stories = Stories::new("master");
        for (seq, (prev, event)) in (1_u64..).zip(log) {
            let body = codec::encode(&event);
            let carried = stories.carry(&[&b"e"[..], &seq.to_be_bytes()].concat(), &body).unwrap();
            let (len, event) = carried.split_first_chunk().unwrap();
            assert_eq!(usize::from(u16::from_le_bytes(*len)), event.len());
            let logged: Logged<crate::machine::master::Event> = codec::decode(event).unwrap();
            assert_eq!(logged.prev, prev, "event {seq}");
        }
        let told = |key: &[u8]| (stories.told[key].last, stories.told[key].steps.len());
        assert_eq!((told(b"jj"), told(b"tj\0t"), told(b"pq")), ((6, 2), (5, 0), (4, 0)));
        let counter = codec::encode(&Record::Counter(7));
        assert_eq!(*stories.carry(b"rlc", &counter).unwrap(), counter);
        assert_eq!(*stories.carry(b"rpj", b"body").unwrap(), *b"body");
        assert!(stories.carry(&[&b"e"[..], &7_u64.to_be_bytes()].concat(), b"\xff").is_err());
        let mut others = Stories::new("coordinator");
        assert_eq!(
            *others.carry(&[&b"e"[..], &1_u64.to_be_bytes()].concat(), b"body").unwrap(),
            *b"\x05\0\0body"
        );
        assert_eq!(*others.carry(b"rljx", b"body").unwrap(), *b"body");
    }

    #[test]
    fn a_record_that_no_event_is_about_is_refused() {
        let participation = Record::Participation(Participation {
            proposal: "q".to_owned(),
            job_type: "type".to_owned(),
            offered_at: 1,
            changed_at: 2,
            state: ParticipationState::Offered,
        });
        let body = codec::encode(&participation);
        let refused = Stories::new("master").carry(b"rlpq", &body).map(drop);
        assert_eq!(refused.unwrap_err(), "no event is about it");
    }
}
