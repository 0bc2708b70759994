//! One connection to a Fedbroker cluster manager: `Cluster/Attach`.
//!
//! Brings orders in and reports out until the stream ends. Reports are sent until the manager acknowledges them: all of them again
//! at each attach, and again from time to time. Logs that the manager asks for go out behind them (`logs`).

use super::incoming::{Incoming, Misfit};
use super::logs::Requests;
use super::table::Attempt;
use super::{Ending, Worker};
use crate::machine::ids::{JobId, TaskKey};
use crate::machine::outcome::{End, Outcome};
use crate::wire::connect::MESSAGE_MAX;
use crate::wire::fedbroker::v1::{
    self, FromWorker, Heartbeat, KillTask, TaskAttempt, TaskReport, ToWorker, WorkerAttach, cluster_client::ClusterClient, from_worker,
    to_worker,
};
use crate::wire::metered::Channel;
use futures_util::stream::{PollNext, select_with_strategy};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;

/// Messages that may wait for the connection; more reports wait in the table.
const OUTGOING: usize = 64;
/// How long an outcome may stay unacknowledged on a live stream before it is sent again.
const REPEAT_EVERY: Duration = Duration::from_secs(10);
/// How long the manager may take to answer the attach.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Attach and serve until the stream ends.
pub(super) async fn session(worker: &Worker, channel: Channel) -> Ending {
    let (sender, receiver) = mpsc::channel(OUTGOING);
    let known = worker.tasks.known().into_iter().map(to_wire).collect();
    let options = &worker.options;
    let attach = WorkerAttach {
        worker_id: options.name.clone(),
        worker_ip: options.worker_ip.clone(),
        max_tasks: i32::try_from(options.max_tasks).unwrap_or(i32::MAX),
        port_start: options.port_start.into(),
        port_end: options.port_end.into(),
        instance: worker.instance.clone(),
        known,
        logs: true,
        pieces: true,
    };
    // The queue is empty and open.
    let _ = sender.send(message(from_worker::Message::Attach(attach))).await;
    let (log_sender, log_parts) = mpsc::channel(1);
    // Whatever else there is to say goes before a part of a log.
    let outgoing = select_with_strategy(ReceiverStream::new(receiver), ReceiverStream::new(log_parts), |(): &mut ()| {
        PollNext::Left
    });
    let requests = Requests::new(worker, log_sender);
    let mut client = ClusterClient::new(channel)
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let opening = async {
        let mut stream = client.attach(outgoing).await?.into_inner();
        let first = stream.message().await?;
        Ok::<_, tonic::Status>((stream, first))
    };
    let (stream, first) = match tokio::time::timeout(ANSWER_TIMEOUT, opening).await {
        Ok(Ok((stream, Some(first)))) => (stream, first),
        Ok(Ok((_, None))) => return Ending::not_attached("the stream ended without an answer"),
        Ok(Err(status)) => return Ending::not_attached(status.message()),
        Err(_) => return Ending::not_attached("the manager did not answer"),
    };
    let heartbeat = match first.message {
        // Twice as often as asked, so that one late heartbeat is no loss.
        Some(to_worker::Message::Attached(attached)) => Duration::from_millis(500) * attached.heartbeat_seconds.clamp(1, 3600),
        Some(to_worker::Message::Refused(refused)) => return Ending::not_attached(refused.reason),
        _ => return Ending::not_attached("the manager's first message is no answer to the attach"),
    };
    worker.attached();
    worker.tasks.repeat_reports();
    Ending::lost(converse(worker, stream, sender, requests, heartbeat).await)
}

/// Both directions, until the stream ends; says why it did.
async fn converse(
    worker: &Worker,
    mut stream: tonic::Streaming<ToWorker>,
    sender: mpsc::Sender<FromWorker>,
    mut requests: Requests,
    heartbeat: Duration,
) -> String {
    let mut beat = tokio::time::interval_at(Instant::now() + heartbeat, heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut repeat = tokio::time::interval_at(Instant::now() + REPEAT_EVERY, REPEAT_EVERY);
    repeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (tasks, mut pieces) = (&worker.tasks, Incoming::default());
    loop {
        let pending = tasks.has_reports();
        tokio::select! {
            incoming = stream.message() => match incoming {
                Ok(Some(order)) => if let Some(order) = order.message
                    && let Err(misfit) = obey(worker, &mut requests, &mut pieces, order)
                {
                    return misfit.to_string();
                },
                Ok(None) => return "the manager ended the stream".to_owned(),
                Err(status) => return status.message().to_owned(),
            },
            permit = sender.reserve(), if pending => match permit {
                Ok(permit) => if let Some((attempt, outcome)) = tasks.next_report() {
                    permit.send(report(worker, attempt, outcome));
                },
                Err(_) => return "the connection was lost".to_owned(),
            },
            () = tasks.reports.notified(), if !pending => {}
            // A full queue is a sign of life by itself once it moves.
            _ = beat.tick() => drop(sender.try_send(message(from_worker::Message::Heartbeat(Heartbeat {})))),
            _ = repeat.tick() => tasks.repeat_reports(),
        }
    }
}

fn obey(worker: &Worker, requests: &mut Requests, pieces: &mut Incoming, order: to_worker::Message) -> Result<(), Misfit> {
    match order {
        to_worker::Message::Run(run) => match run.task {
            Some(task) => worker.tasks.run(task, Some(run.attempt)),
            None if run.content_bytes > 0 => pieces.announce(run.attempt, run.content_bytes)?,
            None => tracing::warn!("the manager sent a task without content"),
        },
        to_worker::Message::Piece(piece) => {
            if let Some((task, attempt)) = pieces.piece(&piece)? {
                worker.tasks.run(task, Some(attempt));
            }
        }
        to_worker::Message::Kill(KillTask { task, reason }) => {
            if let Some(attempt) = task.and_then(from_wire) {
                worker.tasks.kill(&attempt, reason);
            }
        }
        to_worker::Message::Acknowledged(task) => {
            if let Some(attempt) = from_wire(task) {
                worker.tasks.acknowledged(&attempt);
            }
        }
        to_worker::Message::FetchLogs(request) => {
            let attempt = request.task.clone().and_then(from_wire);
            requests.fetch(&request, attempt);
        }
        to_worker::Message::MoreLogs(more) => requests.more(more.request_id, more.parts),
        to_worker::Message::StopLogs(stop) => requests.stop(stop.request_id),
        to_worker::Message::RemoveJob(remove) => match JobId::parse(remove.job_id) {
            Ok(job) => worker.forget(job),
            Err(error) => tracing::warn!(%error, "order refused"),
        },
        to_worker::Message::Attached(_) | to_worker::Message::Refused(_) => {
            tracing::warn!("the manager answered the attach twice");
        }
    }
    Ok(())
}

fn message(message: from_worker::Message) -> FromWorker {
    FromWorker { message: Some(message) }
}

fn report(worker: &Worker, attempt: Attempt, outcome: Outcome) -> FromWorker {
    let state = match outcome.end {
        End::Succeeded => v1::outcome::State::Succeeded,
        End::Failed => v1::outcome::State::Failed,
        End::Cancelled => v1::outcome::State::Cancelled,
    };
    message(from_worker::Message::Report(TaskReport {
        outcome: Some(v1::Outcome {
            state: state.into(),
            reason: outcome.reason,
            exit_code: outcome.exit_code,
            stderr_tail: outcome.stderr_tail,
            worker_id: worker.options.name.clone(),
            attempt: attempt.number,
        }),
        task: Some(to_wire(attempt)),
    }))
}

fn to_wire(attempt: Attempt) -> TaskAttempt {
    TaskAttempt {
        job_id: attempt.key.job.to_string(),
        task_id: attempt.key.task.to_string(),
        attempt: attempt.number,
    }
}

fn from_wire(task: TaskAttempt) -> Option<Attempt> {
    let key = TaskKey::parse(task.job_id, task.task_id);
    key.inspect_err(|error| tracing::warn!(%error, "order refused"))
        .ok()
        .map(|key| Attempt { key, number: task.attempt })
}
