//! The stream on which small tasks go to a cluster manager of ours (`Cluster/SubmitTasks`): a call for each costs both sides three times as much.
//!
//! Used by `submitter`, one at a time for all jobs; order within a job is the submitter's, which awaits each answer. It must never take
//! the end of the stream for an answer: what was not answered is submitted again, and the manager knows a task it has.

use super::call::Failed;
use crate::machine::master::SubmitAnswer;
use crate::supervisor::{Policy, Supervisor};
use crate::wire::fedbroker::v1::cluster_client::ClusterClient;
use crate::wire::fedvision::framework::Task;
use crate::wire::metered::Channel;
use crate::wire::task_stream::TaskStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Mutex;

/// See the module.
pub(super) struct SmallTasks {
    supervisor: Supervisor,
    channel: Channel,
    line: Mutex<Line>,
    /// Something went wrong since the line was opened.
    stale: AtomicBool,
}

enum Line {
    Closed,
    Open(Arc<TaskStream>),
    /// The manager is of a release without it.
    NotOffered,
}

impl SmallTasks {
    pub(super) fn new(supervisor: &Supervisor, channel: Channel) -> Self {
        Self {
            supervisor: supervisor.clone(),
            channel,
            line: Mutex::new(Line::Closed),
            stale: AtomicBool::new(false),
        }
    }

    /// Submit a task, if the manager takes them so; it is given back otherwise.
    pub(super) async fn submit(&self, task: Task) -> Result<Result<SubmitAnswer, Failed>, Task> {
        let stream = match self.stream().await {
            Ok(Some(stream)) => stream,
            Ok(None) => return Err(task),
            Err(failed) => return Ok(Err(failed)),
        };
        Ok(match stream.submit(task).await {
            Ok(submitted) if submitted.taken => Ok(SubmitAnswer::Taken),
            Ok(submitted) => {
                tracing::debug!(reason = submitted.reason, "refused");
                Ok(SubmitAnswer::Refused)
            }
            // Whatever it says, it is about the stream and not about this task.
            Err(status) => Err(Failed::Passing(status.message().to_owned())),
        })
    }

    /// What is known of the manager may be wrong by now.
    pub(super) fn forget(&self) {
        self.stale.store(true, Ordering::Relaxed);
    }

    async fn stream(&self) -> Result<Option<Arc<TaskStream>>, Failed> {
        let mut line = self.line.lock().await;
        if self.stale.swap(false, Ordering::Relaxed) {
            *line = Line::Closed;
        }
        match &*line {
            Line::Open(stream) if !stream.is_over() => return Ok(Some(stream.clone())),
            Line::NotOffered => return Ok(None),
            Line::Open(_) | Line::Closed => {}
        }
        match TaskStream::open(ClusterClient::new(self.channel.clone())).await {
            Ok((stream, carry)) => {
                self.supervisor.spawn("small tasks", Policy::Passing, carry);
                let stream = Arc::new(stream);
                *line = Line::Open(stream.clone());
                Ok(Some(stream))
            }
            Err(status) if status.code() == tonic::Code::Unimplemented => {
                *line = Line::NotOffered;
                Ok(None)
            }
            Err(status) => Err(Failed::Passing(status.message().to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{metered, serve};
    use std::convert::Infallible;
    use std::future::{Ready, ready};
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Poll};
    use tonic::body::Body;
    use tonic::codegen::Service;
    use tonic::codegen::http::{Request, Response};
    use tonic::{Code, Status};

    /// Answers every call of the manager's service with an error, and counts them.
    #[derive(Clone)]
    struct Manager {
        answers: Code,
        calls: Arc<AtomicUsize>,
    }

    impl tonic::server::NamedService for Manager {
        const NAME: &'static str = "fedbroker.v1.Cluster";
    }

    impl Service<Request<Body>> for Manager {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            self.calls.fetch_add(1, Ordering::Relaxed);
            ready(Ok(Status::new(self.answers, "no").into_http()))
        }
    }

    async fn towards(answers: Code) -> (SmallTasks, Arc<AtomicUsize>) {
        let (listener, address) = serve::bind("127.0.0.1", 0).await.unwrap();
        let (supervisor, calls) = (Supervisor::new(), Arc::default());
        let manager = Manager {
            answers,
            calls: Arc::clone(&calls),
        };
        let served = serve::server().add_service(manager).serve_with_incoming(serve::incoming(listener));
        supervisor.spawn("manager", Policy::Ordinary, async { drop(served.await) });
        let channel = metered::channel(&address.to_string(), "cluster-manager", supervisor.metrics()).unwrap();
        (SmallTasks::new(&supervisor, channel), calls)
    }

    fn task() -> Task {
        Task {
            job_id: "j".to_owned(),
            ..Task::default()
        }
    }

    #[tokio::test]
    async fn a_manager_without_the_stream_is_asked_once_until_something_went_wrong() {
        let (small_tasks, calls) = towards(Code::Unimplemented).await;
        for _ in 0..3 {
            assert_eq!(small_tasks.submit(task()).await.err(), Some(task()));
        }
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        small_tasks.forget();
        assert_eq!(small_tasks.submit(task()).await.err(), Some(task()));
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }

    /// A call that says so of itself is refused for good; the stream carries the tasks of all jobs.
    #[tokio::test]
    async fn no_error_of_the_stream_refuses_a_task() {
        for code in [
            Code::InvalidArgument,
            Code::FailedPrecondition,
            Code::ResourceExhausted,
            Code::Unavailable,
        ] {
            let (small_tasks, calls) = towards(code).await;
            for n in 1..3 {
                assert!(matches!(small_tasks.submit(task()).await, Ok(Err(Failed::Passing(_)))), "{code}");
                assert_eq!(calls.load(Ordering::Relaxed), n);
            }
        }
    }
}
