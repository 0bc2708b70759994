//! A Proposal as its bytes come: the large tasks apart, so that they can go elsewhere at once, and all the rest as a message without them.
//!
//! Used by the coordinator. It reads nothing and keeps nothing itself. What it does not understand it must leave in the message, for prost to judge; it
//! must never say that a task was written as ours are if it was not.

use super::Any;
use super::fedvision::framework::Task;
use super::pieces;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};

/// Tasks up to so many bytes stay in the message.
pub const LARGE: u64 = 64 * 1024;
/// What is looked at of a large task, bytes: what is before its payload, and what is behind.
const EDGE: u64 = 16 * 1024;
/// The longest key and length of a field, bytes.
const FIELD_MAX: usize = 20;
/// The number of the tasks in a proposal.
const TASKS: u32 = 4;

/// What comes of a large task.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// One begins, the so-manieth of all tasks from 0.
    Begins(usize),
    /// Some of it.
    Bytes(Bytes),
    /// It is whole: the task without its payload, if its bytes are those that we would write; `None` if who has them must decode them.
    /// Either way a task without payload is to be given to [`Unpacking::put`] next.
    Ends(Option<Task>),
}

/// A message of a known length.
pub struct Unpacking {
    /// Bytes of the message that have not come.
    left: u64,
    ahead: BytesMut,
    state: State,
    lean: BytesMut,
    tasks: usize,
}

enum State {
    /// A field begins.
    Field,
    /// So many bytes stay in the message.
    Stays(u64),
    /// A large task.
    Task(Edges),
}

/// The edges of a task of `len` bytes.
struct Edges {
    len: u64,
    at: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Unpacking {
    /// A message of `len` bytes.
    pub fn new(len: u64) -> Self {
        Self {
            left: len,
            ahead: BytesMut::new(),
            state: State::Field,
            lean: BytesMut::new(),
            tasks: 0,
        }
    }

    /// More of the message; what is beyond its end is passed over.
    pub fn push(&mut self, bytes: &[u8]) {
        let taken = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= taken as u64;
        self.ahead.put_slice(&bytes[..taken]);
    }

    /// What is next; `None` when more must come first, or all has.
    pub fn event(&mut self) -> Option<Event> {
        loop {
            let ahead = self.ahead.len() as u64;
            match &mut self.state {
                State::Task(edges) if edges.at == edges.len => {
                    let task = edges.task();
                    self.state = State::Field;
                    return Some(Event::Ends(task));
                }
                _ if ahead == 0 => return None,
                State::Task(edges) => {
                    let bytes = self.ahead.split_to(short(ahead.min(edges.len - edges.at))).freeze();
                    edges.pass(&bytes);
                    return Some(Event::Bytes(bytes));
                }
                State::Stays(left) => {
                    let taken = ahead.min(*left);
                    *left -= taken;
                    if *left == 0 {
                        self.state = State::Field;
                    }
                    self.lean.unsplit(self.ahead.split_to(short(taken)));
                }
                State::Field if self.ahead.len() < FIELD_MAX && self.left > 0 => return None,
                State::Field => {
                    if let Some(begun) = self.field() {
                        return Some(begun);
                    }
                }
            }
        }
    }

    /// A field begins: where does it go?
    fn field(&mut self) -> Option<Event> {
        let mut rest = &self.ahead[..];
        let before = rest.len() as u64;
        let stays = match decode_key(&mut rest) {
            Ok((number, WireType::LengthDelimited)) => match decode_varint(&mut rest) {
                Ok(len) if number == TASKS && len > LARGE && len <= rest.len() as u64 + self.left => {
                    let begun = short(before) - rest.len();
                    self.ahead.advance(begun);
                    self.state = State::Task(Edges::of(len));
                    self.tasks += 1;
                    return Some(Event::Begins(self.tasks - 1));
                }
                Ok(len) => {
                    self.tasks += usize::from(number == TASKS);
                    Some((before - rest.len() as u64).saturating_add(len))
                }
                Err(_) => None,
            },
            Ok((_, WireType::Varint)) => decode_varint(&mut rest).ok().map(|_| before - rest.len() as u64),
            Ok((_, WireType::SixtyFourBit)) => Some(before - rest.len() as u64 + 8),
            Ok((_, WireType::ThirtyTwoBit)) => Some(before - rest.len() as u64 + 4),
            _ => None,
        };
        // What cannot be told apart here stays as it is, with all that is behind it.
        self.state = State::Stays(stays.unwrap_or(u64::MAX));
        None
    }

    /// A task without its payload, in place of a large one.
    pub fn put(&mut self, task: &Task) {
        pieces::put_message(&mut self.lean, 4, task);
    }

    /// Bytes that are kept of it: all that has come but large tasks.
    pub fn lean(&self) -> usize {
        self.lean.len() + self.ahead.len()
    }

    /// Whether all of the message has come.
    pub fn is_whole(&self) -> bool {
        self.left == 0
    }

    /// The message, without large tasks.
    pub fn finish(self) -> Bytes {
        self.lean.freeze()
    }
}

impl Edges {
    fn of(len: u64) -> Self {
        Self {
            len,
            at: 0,
            head: Vec::new(),
            tail: Vec::new(),
        }
    }

    fn pass(&mut self, bytes: &[u8]) {
        let head = short(EDGE.saturating_sub(self.at)).min(bytes.len());
        self.head.extend_from_slice(&bytes[..head]);
        let tail = short((self.len - EDGE).saturating_sub(self.at)).min(bytes.len());
        self.tail.extend_from_slice(&bytes[tail..]);
        self.at += bytes.len() as u64;
    }

    /// The task without its payload, if it was written as we would.
    fn task(&self) -> Option<Task> {
        let (mut task, at, len) = before_payload(&self.head)?;
        let behind = self.len.checked_sub(at as u64)?.checked_sub(len)?;
        let tail = &self.tail[self.tail.len().checked_sub(usize::try_from(behind).ok()?)?..];
        task.assignee = Task::decode(tail).ok()?.assignee;
        // All that was taken from it, written again: are those the bytes?
        let (head, end) = pieces::around(&task, usize::try_from(len).ok()?);
        if head != self.head[..at] || end != tail {
            return None;
        }
        task.task = None;
        Some(task)
    }
}

/// What is before the payload of a task, where in it that begins, and how long it is.
fn before_payload(head: &[u8]) -> Option<(Task, usize, u64)> {
    let field = |rest: &mut &[u8]| -> Option<(u32, u64)> {
        match decode_key(rest).ok()? {
            (number, WireType::LengthDelimited) => Some((number, decode_varint(rest).ok()?)),
            _ => None,
        }
    };
    let mut rest = head;
    let fields = loop {
        let end = head.len() - rest.len();
        match field(&mut rest)? {
            (4, _) => break &head[..end],
            (_, len) => rest = rest.get(usize::try_from(len).ok()?..)?,
        }
    };
    let mut task = Task::decode(fields).ok()?;
    let inner = rest;
    loop {
        let end = inner.len() - rest.len();
        match field(&mut rest)? {
            (2, len) => {
                task.task = Some(Any::decode(&inner[..end]).ok()?);
                return Some((task, head.len() - rest.len(), len));
            }
            (_, len) => rest = rest.get(usize::try_from(len).ok()?..)?,
        }
    }
}

/// A length that is at most that of a slice.
fn short(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::fedvision::framework::coordinator::proposal;
    use crate::wire::pieces::tests::any_task;
    use proptest::prelude::*;

    /// A large task: its number, its bytes, and whether they are as we write them.
    type Large = (usize, Vec<u8>, bool);

    /// The message in chunks of so many bytes: what stays of it, and its large tasks.
    fn unpacked(message: &[u8], chunk: usize) -> (Vec<u8>, Vec<Large>) {
        let mut unpacking = Unpacking::new(message.len() as u64);
        let mut large: Vec<Large> = Vec::new();
        let mut take = |unpacking: &mut Unpacking| {
            while let Some(event) = unpacking.event() {
                match event {
                    Event::Begins(number) => large.push((number, Vec::new(), false)),
                    Event::Bytes(bytes) => large.last_mut().unwrap().1.extend_from_slice(&bytes),
                    Event::Ends(task) => {
                        let (_, bytes, ours) = large.last_mut().unwrap();
                        *ours = task.is_some();
                        let whole = Task::decode(&bytes[..]).unwrap_or_default();
                        let lean = Task { task: None, ..whole };
                        assert!(task.is_none_or(|task| task == lean));
                        unpacking.put(&lean);
                    }
                }
            }
        };
        for chunk in message.chunks(chunk) {
            assert!(!unpacking.is_whole());
            unpacking.push(chunk);
            take(&mut unpacking);
        }
        unpacking.push(b"beyond");
        take(&mut unpacking);
        assert!(unpacking.is_whole());
        (unpacking.finish().to_vec(), large)
    }

    proptest! {
        #[test]
        fn a_proposal_is_what_stays_and_its_large_tasks(
            tasks in proptest::collection::vec(any_task(), 0..5),
            wait in 0..300u32,
            chunk in prop_oneof![1..40usize, 1000..70_000usize],
        ) {
            let request = proposal::Req {
                job_id: "j".into(),
                job_type: "t".into(),
                tasks,
                proposal_wait_time: wait,
                minimum_acceptance: 1,
                maximum_acceptance: u32::MAX,
            };
            let (lean, large) = unpacked(&request.encode_to_vec(), chunk);
            let mut again = proposal::Req::decode(&lean[..]).unwrap();
            prop_assert_eq!(again.tasks.len(), request.tasks.len());
            for (number, bytes, ours) in large {
                prop_assert!(ours && bytes.len() as u64 > LARGE);
                again.tasks[number] = Task::decode(&bytes[..]).unwrap();
            }
            prop_assert_eq!(again, request);
        }

        #[test]
        fn nothing_that_is_no_proposal_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..300), chunk in 1..50usize) {
            // No large task fits in it: all of it stays.
            let (lean, large) = unpacked(&bytes, chunk);
            prop_assert_eq!((lean, large.len()), (bytes, 0));
        }
    }

    fn large() -> Task {
        Task {
            job_id: "j".into(),
            task_id: "t".into(),
            task: Some(Any {
                type_url: "x".into(),
                value: vec![7; 100_000].into(),
            }),
            assignee: "w".into(),
            ..Default::default()
        }
    }

    fn with_task(bytes: &[u8]) -> Vec<u8> {
        let mut message = vec![4 << 3 | 2];
        prost::encode_length_delimiter(bytes.len(), &mut message).unwrap();
        message.extend_from_slice(bytes);
        message
    }

    #[test]
    fn a_task_written_otherwise_is_told() {
        let ours = large().encode_to_vec();
        assert!(unpacked(&with_task(&ours), 1000).1[0].2);
        // The assignee first; a field nobody knows; a length of five bytes; a payload that is no payload; text that is none.
        let (front, assignee) = ours.split_at(ours.len() - 3);
        let mut long = ours.clone();
        long.splice(1..2, [0x81, 0x80, 0x00]);
        let mut no_text = ours.clone();
        no_text[2] = 0xff;
        let mut elsewhere = ours.clone();
        elsewhere[6] = 0x2a;
        for (what, bytes) in [
            ("order", [assignee, front].concat()),
            ("unknown", [&ours[..], &[0x32, 1, 0]].concat()),
            ("unknown before", [&[0x32, 1, 0], &ours[..]].concat()),
            ("length", long),
            ("no text", no_text),
            ("not the payload", elsewhere),
            ("noise", vec![0xff; 100_000]),
        ] {
            let (_, large) = unpacked(&with_task(&bytes), 1000);
            assert_eq!((large[0].1.len(), large[0].2), (bytes.len(), false), "{what}");
            assert!(large[0].1 == bytes, "{what}");
        }
    }

    #[test]
    fn what_is_longer_than_the_message_stays() {
        let mut message = with_task(&large().encode_to_vec());
        message.truncate(90_000);
        let (lean, large) = unpacked(&message, 1000);
        assert!(lean == message && large.is_empty());
    }
}
