//! A task that comes in pieces: one buffer of the announced length, in which the task then stays.
//!
//! Used by `attach`, one for each connection: what is not whole when that ends is nothing. It must never make room for what no task can be, nor take
//! more than was announced.

use crate::wire::connect::MESSAGE_MAX;
use crate::wire::fedbroker::v1::TaskPiece;
use crate::wire::fedvision::framework::Task;
use bytes::Bytes;
use prost::Message;

/// The manager does not keep to the protocol; the stream is of no use any more.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum Misfit {
    #[error("the manager announced a task of {0} bytes; one has at most {MESSAGE_MAX}")]
    Length(u64),
    #[error("the manager announced a task before the one before it was whole")]
    Twice,
    #[error("the manager sent a piece of a task that it had not announced")]
    Stray,
    #[error("the manager sent a piece of a task without content")]
    Empty,
    #[error("the manager sent more of a task than the {0} bytes it had announced")]
    TooMuch(usize),
    #[error("the manager sent a task in pieces that cannot be read: {0}")]
    Unreadable(prost::DecodeError),
}

/// Between two messages.
#[derive(Default)]
pub(super) struct Incoming(Option<Announced>);

struct Announced {
    attempt: u32,
    len: usize,
    bytes: Vec<u8>,
}

impl Incoming {
    /// A task of `bytes` bytes follows.
    pub(super) fn announce(&mut self, attempt: u32, bytes: u64) -> Result<(), Misfit> {
        let len = usize::try_from(bytes).ok().filter(|len| *len <= MESSAGE_MAX);
        let len = len.ok_or(Misfit::Length(bytes))?;
        if self.0.is_some() {
            return Err(Misfit::Twice);
        }
        let bytes = Vec::with_capacity(len);
        self.0 = Some(Announced { attempt, len, bytes });
        Ok(())
    }

    /// Some of it: the task and its attempt, if that was the last.
    pub(super) fn piece(&mut self, piece: &TaskPiece) -> Result<Option<(Task, u32)>, Misfit> {
        let mut announced = self.0.take().ok_or(Misfit::Stray)?;
        if piece.void {
            return Ok(None);
        }
        if piece.data.is_empty() {
            return Err(Misfit::Empty);
        }
        if piece.data.len() > announced.len - announced.bytes.len() {
            return Err(Misfit::TooMuch(announced.len));
        }
        announced.bytes.extend_from_slice(&piece.data);
        if announced.bytes.len() < announced.len {
            self.0 = Some(announced);
            return Ok(None);
        }
        // From the buffer, not a slice: the payload stays a part of it.
        let task = Task::decode(Bytes::from(announced.bytes)).map_err(Misfit::Unreadable)?;
        Ok(Some((task, announced.attempt)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Any;

    fn piece(data: &[u8]) -> TaskPiece {
        TaskPiece {
            data: Bytes::copy_from_slice(data),
            void: false,
        }
    }

    fn task() -> Task {
        Task {
            job_id: "j".into(),
            task_id: "t".into(),
            task: Some(Any {
                type_url: "x".into(),
                value: vec![7; 1000].into(),
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_task_is_whole_with_its_last_piece() {
        let (mut incoming, encoded) = (Incoming::default(), task().encode_to_vec());
        for _ in 0..2 {
            incoming.announce(3, encoded.len() as u64).unwrap();
            let (last, first) = encoded.split_last_chunk::<1>().map(|(first, last)| (last, first)).unwrap();
            for part in first.chunks(300) {
                assert_eq!(incoming.piece(&piece(part)), Ok(None));
            }
            assert_eq!(incoming.piece(&piece(last)), Ok(Some((task(), 3))));
        }
        assert_eq!(incoming.piece(&piece(b"x")), Err(Misfit::Stray));
    }

    #[test]
    fn what_is_void_leaves_room_for_another() {
        let (mut incoming, encoded) = (Incoming::default(), task().encode_to_vec());
        incoming.announce(1, 5000).unwrap();
        assert_eq!(incoming.piece(&piece(&encoded)), Ok(None));
        let void = TaskPiece {
            void: true,
            ..Default::default()
        };
        assert_eq!(incoming.piece(&void), Ok(None));
        incoming.announce(2, encoded.len() as u64).unwrap();
        assert_eq!(incoming.piece(&piece(&encoded)), Ok(Some((task(), 2))));
        assert_eq!(incoming.piece(&void), Err(Misfit::Stray));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut incoming = Incoming::default();
        for hostile in [MESSAGE_MAX as u64 + 1, u64::MAX] {
            assert_eq!(incoming.announce(1, hostile), Err(Misfit::Length(hostile)));
        }
        incoming.announce(1, 10).unwrap();
        assert_eq!(incoming.announce(1, 10), Err(Misfit::Twice));
        assert_eq!(incoming.piece(&piece(&[0; 11])), Err(Misfit::TooMuch(10)));
        incoming.announce(1, 10).unwrap();
        assert_eq!(incoming.piece(&piece(b"")), Err(Misfit::Empty));
        incoming.announce(1, 10).unwrap();
        assert!(matches!(incoming.piece(&piece(&[255; 10])), Err(Misfit::Unreadable(_))));
    }
}
