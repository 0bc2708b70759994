//! Encoded messages in pieces: a large payload is the buffer that it was, and never copied to be written somewhere.
//!
//! Used by the roles to keep a task or a proposal, and to send one that is kept. The pieces are, one after the other, exactly what
//! `encode_to_vec` gives: what is kept was hashed so before, and peers compare.

use super::Any;
use super::fedvision::framework::Task;
use super::fedvision::framework::coordinator::proposal;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

/// Shorter values are copied, bytes: a piece of its own costs more.
const SHORT: usize = 4096;

/// A task.
pub fn of_task(task: &Task) -> Vec<Bytes> {
    let mut pieces = Pieces::default();
    pieces.task(task);
    pieces.finish()
}

/// A proposal. Tasks that share a payload share it here too.
pub fn of_proposal(request: &proposal::Req) -> Vec<Bytes> {
    let proposal::Req {
        job_id,
        job_type,
        tasks,
        proposal_wait_time,
        minimum_acceptance,
        maximum_acceptance,
    } = request;
    let mut pieces = Pieces::default();
    pieces.message(&proposal::Req {
        job_id: job_id.clone(),
        job_type: job_type.clone(),
        ..Default::default()
    });
    for task in tasks {
        pieces.key(4, task.encoded_len());
        pieces.task(task);
    }
    pieces.message(&proposal::Req {
        proposal_wait_time: *proposal_wait_time,
        minimum_acceptance: *minimum_acceptance,
        maximum_acceptance: *maximum_acceptance,
        ..Default::default()
    });
    pieces.finish()
}

/// Bytes in all pieces.
pub fn len(pieces: &[Bytes]) -> usize {
    pieces.iter().map(Bytes::len).sum()
}

/// What a message begins with whose last field, of this number (at most 15), is a message of `len` bytes; `others` has the fields before it.
pub fn before(others: &impl Message, number: u8, len: u64) -> Bytes {
    let mut pieces = Pieces::default();
    pieces.message(others);
    pieces.key(number, usize::try_from(len).unwrap_or(usize::MAX));
    pieces.open.freeze()
}

/// What is written of a task before a payload of `len` bytes, and what behind it. Its own payload has no bytes.
pub fn around(task: &Task, len: usize) -> (Bytes, Bytes) {
    let mut pieces = Pieces::default();
    let mut before = Bytes::new();
    pieces.task_around(task, len, |pieces| before = pieces.open.split().freeze());
    (before, pieces.open.freeze())
}

/// Write a field of this number (at most 15) that is a message.
pub fn put_message(to: &mut BytesMut, number: u8, message: &impl Message) {
    to.put_slice(&before(&(), number, message.encoded_len() as u64));
    message.encode(to).expect("a buffer that grows has room");
}

#[derive(Default)]
struct Pieces {
    whole: Vec<Bytes>,
    /// Behind them, and not full yet.
    open: BytesMut,
}

impl Pieces {
    fn task(&mut self, task: &Task) {
        let value = task.task.as_ref().map(|any| &any.value).filter(|value| !value.is_empty());
        self.task_around(task, value.map_or(0, Bytes::len), |pieces| {
            if let Some(value) = value {
                pieces.value(value);
            }
        });
    }

    /// A task whose payload has `len` bytes, which `value` writes.
    fn task_around(&mut self, task: &Task, len: usize, value: impl FnOnce(&mut Self)) {
        let Task {
            job_id,
            task_id,
            task_type,
            task,
            assignee,
        } = task;
        self.message(&Task {
            job_id: job_id.clone(),
            task_id: task_id.clone(),
            task_type: task_type.clone(),
            ..Default::default()
        });
        if let Some(any) = task {
            let any = Any {
                type_url: any.type_url.clone(),
                value: Bytes::new(),
            };
            let payload = match len {
                0 => Bytes::new(),
                _ => before(&(), 2, len as u64),
            };
            self.key(4, any.encoded_len() + payload.len() + len);
            self.message(&any);
            self.open.put_slice(&payload);
            value(self);
        }
        self.message(&Task {
            assignee: assignee.clone(),
            ..Default::default()
        });
    }

    /// The key and the length of a field that is a message or bytes.
    fn key(&mut self, number: u8, len: usize) {
        const LENGTH_DELIMITED: u8 = 2;
        self.open.put_u8(number << 3 | LENGTH_DELIMITED);
        prost::encode_length_delimiter(len, &mut self.open).expect("a buffer that grows has room");
    }

    fn message(&mut self, message: &impl Message) {
        message.encode(&mut self.open).expect("a buffer that grows has room");
    }

    fn value(&mut self, value: &Bytes) {
        if value.len() < SHORT {
            return self.open.put_slice(value);
        }
        self.close();
        self.whole.push(value.clone());
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.whole.push(self.open.split().freeze());
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        self.close();
        self.whole
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::wire::fedvision::framework::cluster::task_submit;
    use crate::wire::fedvision::framework::coordinator::fetch_task;
    use proptest::prelude::*;

    pub(in crate::wire) fn any_task() -> impl Strategy<Value = Task> {
        let text = || "[a-z]{0,3}|[a-z]{130}";
        let value = prop_oneof![Just(0), 1..300usize, (SHORT - 2)..(SHORT + 2), 100_000..100_100usize];
        let payload = proptest::option::of((text(), value, any::<u8>()));
        (text(), text(), text(), payload, text()).prop_map(|(job_id, task_id, task_type, payload, assignee)| Task {
            job_id,
            task_id,
            task_type,
            task: payload.map(|(type_url, len, byte)| Any {
                type_url,
                value: vec![byte; len].into(),
            }),
            assignee,
        })
    }

    proptest! {
        #[test]
        fn the_pieces_of_a_task_are_its_encoding(task in any_task()) {
            let (pieces, whole) = (of_task(&task), task.encode_to_vec());
            prop_assert_eq!(len(&pieces), whole.len());
            prop_assert_eq!(pieces.concat(), whole.clone());
            let submit = [before(&task_submit::Req::default(), 1, whole.len() as u64).as_ref(), &whole].concat();
            prop_assert_eq!(submit, task_submit::Req { task: Some(task.clone()) }.encode_to_vec());
            let mut reply = fetch_task::Rep { status: fetch_task::Status::Ready.into(), task: None };
            let begun = before(&reply, 2, whole.len() as u64);
            reply.task = Some(task);
            prop_assert_eq!([begun.as_ref(), &whole].concat(), reply.encode_to_vec());
        }

        #[test]
        fn the_pieces_of_a_proposal_are_its_encoding(
            tasks in proptest::collection::vec(any_task(), 0..4),
            (job_id, job_type) in ("[a-z]{0,5}", "[a-z]{0,5}"),
            (wait, least, most) in (0..300u32, 0..3u32, any::<u32>()),
        ) {
            let request = proposal::Req {
                job_id,
                job_type,
                tasks,
                proposal_wait_time: wait,
                minimum_acceptance: least,
                maximum_acceptance: most,
            };
            prop_assert_eq!(of_proposal(&request).concat(), request.encode_to_vec());
        }
    }

    #[test]
    fn payloads_are_not_copied() {
        let payload = Bytes::from(vec![7; 100_000]);
        let task = |id: &str| Task {
            task_id: id.to_owned(),
            task: Some(Any {
                type_url: "x".to_owned(),
                value: payload.clone(),
            }),
            ..Default::default()
        };
        let request = proposal::Req {
            tasks: vec![task("a"), task("b")],
            ..Default::default()
        };
        let pieces = of_proposal(&request);
        let same = pieces.iter().filter(|piece| piece.as_ptr() == payload.as_ptr()).count();
        assert_eq!(same, 2);
        assert!(len(&pieces) < 2 * payload.len() + 100);
    }
}
