//! One connection to a FedVision 0.1 cluster manager: `ClusterManager/Enroll` and `UpdateTaskStatus`.
//!
//! As its own worker does it (docs of FedVision 0.1, sections 3.3 and 8): a heartbeat one second after the last report, results as
//! TASK_FINISH or TASK_EXCEPTION. Unlike it, this one enrolls again whenever the stream ends, and when the manager has dropped it.
//! There are no kills, and no attempts: a repetition of a task runs again, unless it is still running.

use super::attach::ANSWER_TIMEOUT;
use super::table::Attempt;
use super::{Ending, Worker};
use crate::machine::outcome::{End, Outcome};
use crate::wire::connect::MESSAGE_MAX;
use crate::wire::fedvision::framework::cluster::cluster_manager_client::ClusterManagerClient;
use crate::wire::fedvision::framework::cluster::{enroll, update_status};
use crate::wire::metered::Channel;
use std::time::Duration;
use tokio::time::Instant;

/// The manager drops a worker after five silent seconds.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long the manager may take to take a report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

type Client = ClusterManagerClient<Channel>;

/// Enroll and serve until the stream ends.
pub(super) async fn session(worker: &Worker, channel: Channel) -> Ending {
    let mut client = Client::new(channel)
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let options = &worker.options;
    let request = enroll::Req {
        worker_id: options.name.clone(),
        worker_ip: options.worker_ip.clone(),
        max_tasks: i32::try_from(options.max_tasks).unwrap_or(i32::MAX),
        port_start: options.port_start.into(),
        port_end: options.port_end.into(),
    };
    let opening = async {
        let mut stream = client.enroll(request).await?.into_inner();
        let first = stream.message().await?;
        Ok::<_, tonic::Status>((stream, first))
    };
    let (stream, first) = match tokio::time::timeout(ANSWER_TIMEOUT, opening).await {
        Ok(Ok((stream, Some(first)))) => (stream, first),
        Ok(Ok((_, None))) => return Ending::not_attached("the stream ended without an answer"),
        Ok(Err(status)) => return Ending::not_attached(status.message()),
        Err(_) => return Ending::not_attached("the manager does not answer"),
    };
    match first.status() {
        enroll::Status::EnrollSuccess | enroll::Status::TaskReady => {}
        // Our own earlier connection: the manager forgets it 5 to 10 s after its last heartbeat.
        enroll::Status::AlreadyEnroll => return Ending::not_attached("a worker of this name is enrolled already"),
        enroll::Status::Unknown => return Ending::not_attached("the manager refused without a reason"),
    }
    worker.attached();
    worker.tasks.repeat_reports();
    take(worker, first);
    Ending::lost(converse(worker, client, stream).await)
}

/// Both directions, until the stream ends; says why it did.
async fn converse(worker: &Worker, mut client: Client, mut stream: tonic::Streaming<enroll::Rep>) -> String {
    let mut beat = Instant::now() + HEARTBEAT;
    loop {
        let pending = worker.tasks.has_reports();
        tokio::select! {
            incoming = stream.message() => match incoming {
                Ok(Some(order)) => take(worker, order),
                Ok(None) => return "the manager ended the stream".to_owned(),
                Err(status) => return status.message().to_owned(),
            },
            () = std::future::ready(()), if pending => {
                if let Some((attempt, outcome)) = worker.tasks.next_report() {
                    match update(&mut client, report(worker, &attempt, outcome)).await {
                        // FAILED too: it means a repeated task id, of any job, and the manager keeps the first. Nobody reads them.
                        Ok(_) => worker.tasks.acknowledged(&attempt),
                        Err(error) => return error,
                    }
                    beat = Instant::now() + HEARTBEAT;
                }
            }
            () = worker.tasks.reports.notified(), if !pending => {}
            () = tokio::time::sleep_until(beat) => {
                let heartbeat = update_status::Req { worker_id: worker.options.name.clone(), ..Default::default() };
                match update(&mut client, heartbeat).await {
                    Ok(update_status::Status::Failed) => return "the manager has dropped this worker".to_owned(),
                    Ok(_) => beat = Instant::now() + HEARTBEAT,
                    Err(error) => return error,
                }
            }
        }
    }
}

fn take(worker: &Worker, order: enroll::Rep) {
    if order.status() == enroll::Status::TaskReady {
        match order.task {
            Some(task) => worker.tasks.run(task, None),
            None => tracing::warn!("the manager sent a task without content"),
        }
    }
}

async fn update(client: &mut Client, request: update_status::Req) -> Result<update_status::Status, String> {
    match tokio::time::timeout(REPORT_TIMEOUT, client.update_task_status(request)).await {
        Ok(Ok(reply)) => Ok(reply.into_inner().status()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err("the manager did not answer a report".to_owned()),
    }
}

fn report(worker: &Worker, attempt: &Attempt, outcome: Outcome) -> update_status::Req {
    let task = &attempt.key.task;
    let exception = match (outcome.end, outcome.exit_code) {
        (End::Succeeded, _) => String::new(),
        (_, Some(code)) => format!("execute task: {task} failed, return code: {code}"),
        (_, None) => format!("execute task: {task} failed, {}", outcome.reason),
    };
    let status = match outcome.end {
        End::Succeeded => update_status::TaskStatus::TaskFinish,
        End::Failed => update_status::TaskStatus::TaskException,
        End::Cancelled => update_status::TaskStatus::TaskCancel,
    };
    update_status::Req {
        worker_id: worker.options.name.clone(),
        job_id: attempt.key.job.to_string(),
        task_id: task.to_string(),
        task_status: status.into(),
        exception_id: String::new(),
        exception,
        exec_result: None,
    }
}
