//! What follows the log as it grows: the number of its last durable event, and a view of the records in memory.
//!
//! Filled by the loop after a barrier and before the answers, so that whoever is answered finds it there. Never told of anything that a
//! power cut could still take.

use crate::machine::Machine;
use crate::store::Seq;
use tokio::sync::watch;

/// A view of a role's records that is kept beside them, such as an index that lists are answered from.
///
/// Called on the loop's thread: must not block, and must not panic.
pub trait Projection<M: Machine>: Send {
    /// A commit has left this record under this key; `None` where it is gone. In no order within a commit, each key once.
    fn changed(&mut self, key: &M::Key, record: Option<&M::Record>);

    /// That was all of the commit whose last event has this sequence.
    fn committed(&mut self, seq: Seq);
}

/// What the loop tells of a durable commit.
pub(super) struct Published<M: Machine> {
    pub(super) head: watch::Sender<Seq>,
    pub(super) projection: Option<Box<dyn Projection<M>>>,
}

impl<M: Machine> Published<M> {
    /// The commit whose last event is `seq` is durable, and has left these records.
    pub(super) fn committed<'a>(&mut self, changed: impl Iterator<Item = (&'a M::Key, Option<&'a M::Record>)>, seq: Seq)
    where
        M::Key: 'a,
        M::Record: 'a,
    {
        if let Some(projection) = &mut self.projection {
            for (key, record) in changed {
                projection.changed(key, record);
            }
            projection.committed(seq);
        }
        self.head.send_replace(seq);
    }
}
