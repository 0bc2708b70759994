//! The caller's end of `fedbroker.v1.Cluster/SubmitTasks`: many tasks on one stream, each with its own answer.
//!
//! Used by a master (`master/small_tasks.rs`) and by `benches/peers`. Knows nothing of retries: when the stream ends, whoever has no answer is told, and a new one
//! may be opened.

use super::fedbroker::v1::cluster_client::ClusterClient;
use super::fedbroker::v1::{SubmitTask, TaskSubmitted};
use super::fedvision::framework::Task;
use std::collections::{HashMap, VecDeque};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};
use tonic::{Status, Streaming};

/// The largest task of a stream, encoded, in bytes: one holds up those behind it. Larger ones go by FedVision's TaskSubmit.
pub const TASK_MAX: usize = 64 * 1024;
/// Tasks on their way to the connection; who comes later waits.
const OUTGOING: usize = 256;
/// Taken at once.
const CHUNK: usize = 64;

type Answer = oneshot::Sender<Result<TaskSubmitted, Status>>;

/// An open stream. It ends when this is dropped and all is answered.
#[derive(Debug)]
pub struct TaskStream {
    asked: mpsc::Sender<(Task, Answer)>,
}

impl TaskStream {
    /// Open one. The future carries it, and must be run.
    ///
    /// # Errors
    /// The call fails; UNIMPLEMENTED from a manager that has no such stream.
    pub async fn open<C>(mut client: ClusterClient<C>) -> Result<(Self, impl Future<Output = ()>), Status>
    where
        C: GrpcService<Body>,
        C::Error: Into<StdError>,
        C::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
        <C::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
    {
        let (out, outgoing) = mpsc::channel(OUTGOING);
        let answers = client.submit_tasks(ReceiverStream::new(outgoing)).await?.into_inner();
        let (asked, asks) = mpsc::channel(OUTGOING);
        Ok((Self { asked }, carry(asks, out, answers)))
    }

    /// Submit a task and wait for its answer.
    ///
    /// # Errors
    /// Why the stream has ended; whether the task was taken is not known then.
    pub async fn submit(&self, task: Task) -> Result<TaskSubmitted, Status> {
        let (answer, answered) = oneshot::channel();
        let ended = || Status::unavailable("the stream of tasks has ended");
        self.asked.send((task, answer)).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    /// Whether nothing can be submitted any more.
    pub fn is_over(&self) -> bool {
        self.asked.is_closed()
    }
}

async fn carry(mut asks: mpsc::Receiver<(Task, Answer)>, out: mpsc::Sender<SubmitTask>, mut answers: Streaming<TaskSubmitted>) {
    let mut out = Some(out);
    let mut waiting: HashMap<u64, Answer> = HashMap::new();
    let (mut chunk, mut taken) = (Vec::with_capacity(CHUNK), VecDeque::new());
    let mut number = 0;
    let why = loop {
        let over = tokio::select! {
            answer = answers.message() => match answer {
                // One that nobody asked for, or waits for any more, is for nobody.
                Ok(Some(answer)) => {
                    drop(waiting.remove(&answer.number).map(|to| to.send(Ok(answer))));
                    false
                }
                Ok(None) => break Status::unavailable("the manager has ended the stream of tasks"),
                Err(status) => break status,
            },
            count = asks.recv_many(&mut chunk, CHUNK), if out.is_some() && taken.is_empty() => count == 0,
            // Never waited for alone: a manager that must get rid of answers first takes no tasks meanwhile.
            over = pass_on(out.as_ref(), &mut taken), if out.is_some() && !taken.is_empty() => over,
        };
        for (task, answer) in chunk.drain(..) {
            number += 1;
            waiting.insert(number, answer);
            taken.push_back(SubmitTask { number, task: Some(task) });
        }
        if over {
            out = None;
        }
    };
    // First, so that nobody adds one that is not told.
    asks.close();
    while let Ok((_, answer)) = asks.try_recv() {
        let _ = answer.send(Err(why.clone()));
    }
    for answer in waiting.into_values() {
        let _ = answer.send(Err(why.clone()));
    }
}

/// Hand as many tasks to the connection as it has places for, one at least. True when it takes nothing any more: the answers will say why.
async fn pass_on(out: Option<&mpsc::Sender<SubmitTask>>, taken: &mut VecDeque<SubmitTask>) -> bool {
    let Some(out) = out else { return true };
    let Ok(first) = out.reserve().await else { return true };
    let mut place = Some(first);
    while let Some(free) = place.take().or_else(|| out.try_reserve().ok())
        && let Some(task) = taken.pop_front()
    {
        free.send(task);
    }
    false
}
