//! Hands out what a commit has justified: its answers, then its effects.
//!
//! Fed by the loop after each barrier; a task of the runtime, which wakes those who wait for an answer without a call of the system for each, and
//! the loop is at the next commit meanwhile. Nothing may be given to it that a power cut could still take.

use super::EffectSink;
use super::turn::Answer;
use crate::crash_point::{self, Moment};
use crate::machine::{Machine, Named};
use crate::supervisor::Supervisor;
use tokio::sync::mpsc;

/// Commits whose answers may wait to be handed out; the loop waits when there are more.
const WAITING_MAX: usize = 16;
/// Effects between which others have their turn: a start has one for each live record.
const AT_ONCE: usize = 128;

/// What one commit has justified.
struct Justified<M: Machine> {
    answers: Vec<Answer<M>>,
    effects: Vec<M::Effect>,
}

/// The loop's end of it.
pub(super) struct Delivery<M: Machine>(mpsc::Sender<Justified<M>>);

impl<M: Machine> Delivery<M> {
    /// Start the task. It goes on when the role is told to stop, since a request that has begun is answered then, and ends with the loop; the sink goes with it.
    pub(super) fn start(supervisor: &Supervisor, mut sink: EffectSink<M>) -> Self {
        let (sender, mut justified) = mpsc::channel::<Justified<M>>(WAITING_MAX);
        supervisor.outlast("delivery", async move {
            while let Some(Justified { answers, effects }) = justified.recv().await {
                for (answer, reply) in answers {
                    let _ = answer.send(reply);
                }
                for (n, effect) in effects.into_iter().enumerate() {
                    if n % AT_ONCE == AT_ONCE - 1 {
                        tokio::task::yield_now().await;
                    }
                    crash_point::reach_moment(M::ROLE, effect.name(), Moment::Leaving);
                    sink(effect);
                }
            }
        });
        Self(sender)
    }

    /// The only way for an effect to its executor. Blocks while too much waits; once the runtime has ended nobody waits any more.
    pub(super) fn hand_on(&self, answers: Vec<Answer<M>>, effects: Vec<M::Effect>) {
        if !answers.is_empty() || !effects.is_empty() {
            let _ = self.0.blocking_send(Justified { answers, effects });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::cluster::{Cluster, Effect, Reply};
    use std::sync::{Arc, Mutex};
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn what_is_durable_is_answered_when_the_role_has_been_told_to_stop() {
        let supervisor = Supervisor::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let delivery = Delivery::<Cluster>::start(&supervisor, Box::new(move |effect| sink.lock().unwrap().push(effect)));
        supervisor.stop();
        tokio::task::yield_now().await;
        let (answers, answered): (Vec<_>, Vec<_>) = (0..3)
            .map(|_| oneshot::channel())
            .map(|(answer, answered)| ((answer, Ok(Reply::Done)), answered))
            .unzip();
        Supervisor::blocking(move || delivery.hand_on(answers, vec![Effect::PlaceMore; AT_ONCE * 2]))
            .await
            .unwrap();
        for answer in answered {
            assert_eq!(answer.await.unwrap().unwrap(), Reply::Done);
        }
        while Arc::strong_count(&seen) > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(seen.lock().unwrap().len(), AT_ONCE * 2);
    }

    #[tokio::test]
    async fn a_panic_of_the_sink_ends_the_role() {
        let supervisor = Supervisor::new();
        let delivery = Delivery::<Cluster>::start(&supervisor, Box::new(|_| panic!("on order")));
        Supervisor::blocking(move || delivery.hand_on(Vec::new(), vec![Effect::PlaceMore]))
            .await
            .unwrap();
        supervisor.stopped().await;
    }
}
