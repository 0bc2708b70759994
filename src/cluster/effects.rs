//! Carries out what the loop asks for: orders to the hub at once, timers as tasks of their own.
//!
//! The sink runs on a task of the runtime and never blocks; timers and what they send back run on the runtime. It must never change state but
//! by sending a command.

use super::hub::{Hub, Order};
use super::parts::Shared;
use crate::engine::EffectSink;
use crate::engine::clock::Clock;
use crate::machine::cluster::{Cluster, Command, Effect, Reply};
use crate::machine::ids::Timestamp;
use crate::supervisor::Policy;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A command that is to be sent later.
pub(super) struct Later {
    at: Option<Timestamp>,
    command: Command,
}

/// The loop's way out.
pub(super) fn sink(hub: Arc<Hub>, later: mpsc::UnboundedSender<Later>) -> EffectSink<Cluster> {
    Box::new(move |effect| {
        let send = |at, command| {
            let _ = later.send(Later { at, command });
        };
        match effect {
            Effect::Dispatch {
                worker,
                session,
                key,
                attempt,
            } => hub.dispatch(worker, session, Order::Run { key, attempt }),
            Effect::Kill {
                worker,
                session,
                key,
                attempt,
                reason,
            } => hub.dispatch(worker, session, Order::Kill { key, attempt, reason }),
            Effect::DropConnection { worker, session } => hub.drop_connection(&worker, session),
            Effect::Ended { key } => hub.ended(&key),
            Effect::GraceAt { worker, session, at } => send(Some(at), Command::WorkerLost { worker, session }),
            Effect::LeaseExpiryAt { lease, at } => send(Some(at), Command::LeaseExpired { lease }),
            Effect::PlaceMore => send(None, Command::Place),
        }
    })
}

/// Send the commands of timers until the loop is gone.
pub(super) async fn run(shared: Shared, clock: Arc<dyn Clock>, mut later: mpsc::UnboundedReceiver<Later>) {
    while let Some(Later { at, command }) = later.recv().await {
        let wait = at.map_or(0, |at| at.0.saturating_sub(clock.now().0));
        let shared = shared.clone();
        shared.supervisor.clone().spawn("timer", Policy::Ordinary, async move {
            tokio::time::sleep(Duration::from_micros(wait)).await;
            fire(&shared, command).await;
        });
    }
}

async fn fire(shared: &Shared, command: Command) {
    loop {
        match shared.handle.send(command.clone()).await {
            Ok(Reply::Again) => continue,
            Ok(Reply::Done) => {
                if let Command::WorkerLost { worker, session } = &command {
                    tracing::warn!(worker = %worker, "worker lost");
                    shared.hub.forget(worker, *session);
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "a timer's command was not taken"),
        }
        return;
    }
}
