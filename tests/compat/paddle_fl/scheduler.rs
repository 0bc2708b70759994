//! The service `fedvision.paddle_fl.Scheduler` and its client, as processes that the Python stand-ins start: this test binary run again with
//! the name of an ignored test. The rules are those of FedVision 0.1's aggregator.

use fedbroker::wire::fedvision::paddle_fl::scheduler_client::SchedulerClient;
use fedbroker::wire::fedvision::paddle_fl::scheduler_server::{Scheduler, SchedulerServer};
use fedbroker::wire::fedvision::paddle_fl::{init, worker_finish, worker_join};
use std::collections::BTreeSet;
use std::io::BufRead;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// The longest that a peer is waited for.
const DEADLINE: Duration = Duration::from_secs(60);

/// How to run this binary as one of the processes below; the name of the function comes behind it.
pub fn command() -> String {
    let exe = std::env::current_exe().unwrap();
    serde_json::to_string(&[exe.to_str().unwrap(), "--ignored", "--nocapture", "--exact"]).unwrap()
}

/// A setting of the process; `None` when somebody runs all ignored tests.
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[derive(Clone, Debug, Default)]
struct Rounds {
    /// All that have called Init.
    workers: BTreeSet<String>,
    step: u32,
    /// Those that have not finished this round.
    open: BTreeSet<String>,
    done: bool,
}

struct Served {
    worker_num: usize,
    max_iter: u32,
    rounds: watch::Sender<Rounds>,
}

impl Served {
    async fn until(&self, fits: impl FnMut(&Rounds) -> bool) -> Rounds {
        self.rounds.subscribe().wait_for(fits).await.unwrap().clone()
    }
}

#[tonic::async_trait]
impl Scheduler for Served {
    async fn init(&self, request: Request<init::Req>) -> Result<Response<init::Rep>, Status> {
        let name = request.into_inner().name;
        let mut status = init::Status::Reject;
        self.rounds.send_modify(|rounds| {
            if rounds.workers.len() < self.worker_num && rounds.workers.insert(name) {
                status = init::Status::Init;
                rounds.open.clone_from(&rounds.workers);
            }
        });
        Ok(Response::new(init::Rep { status: status.into() }))
    }

    async fn worker_join(&self, request: Request<worker_join::Req>) -> Result<Response<worker_join::Rep>, Status> {
        let worker_join::Req { name, step } = request.into_inner();
        if !self.rounds.borrow().workers.contains(&name) {
            return Ok(Response::new(worker_join::Rep::default()));
        }
        let ready = self.until(|rounds| rounds.workers.len() == self.worker_num).await;
        let next = step == ready.step + 1 && ready.step < self.max_iter;
        let accept = step == ready.step || next;
        if accept {
            self.until(|rounds| rounds.step >= step).await;
        }
        let status = if accept {
            worker_join::Status::Accept
        } else {
            worker_join::Status::Reject
        };
        Ok(Response::new(worker_join::Rep { status: status.into() }))
    }

    async fn worker_finish(&self, request: Request<worker_finish::Req>) -> Result<Response<worker_finish::Rep>, Status> {
        let name = request.into_inner().name;
        let mut status = worker_finish::Status::Reject;
        self.rounds.send_modify(|rounds| {
            if rounds.open.remove(&name) {
                status = worker_finish::Status::Done;
            }
            if rounds.open.is_empty() && !rounds.done {
                println!("\nall worker done, {}/{}", rounds.step, self.max_iter);
                rounds.done = rounds.step == self.max_iter;
                rounds.step += 1;
                rounds.open.clone_from(&rounds.workers);
            }
        });
        Ok(Response::new(worker_finish::Rep { status: status.into() }))
    }
}

#[tokio::test]
#[ignore = "a process of the Python stand-ins"]
async fn scheduler_process() {
    let Some(address) = setting("SCHEDULER_EP") else { return };
    let number = |name: &str| setting(name).unwrap().parse::<u32>().unwrap();
    let (rounds, _) = watch::channel(Rounds::default());
    let served = Served {
        worker_num: usize::try_from(number("WORKER_NUM")).unwrap(),
        max_iter: number("MAX_ITER"),
        rounds: rounds.clone(),
    };
    let mut watched = rounds.subscribe();
    let stopped = async move { drop(watched.wait_for(|rounds| rounds.done).await) };
    let server = tonic::transport::Server::builder().add_service(SchedulerServer::new(served));
    server.serve_with_shutdown(address.parse().unwrap(), stopped).await.unwrap();
    assert!(rounds.borrow().done);
}

#[tokio::test]
#[ignore = "a process of the Python stand-ins"]
async fn trainer_process() {
    let (Some(address), Some(name)) = (setting("SCHEDULER_EP"), setting("TRAINER_EP")) else {
        return;
    };
    let mut client = connected(&address).await;
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let status = match words[..] {
            ["init"] => client
                .init(init::Req { name: name.clone() })
                .await
                .unwrap()
                .into_inner()
                .status()
                .as_str_name(),
            ["join", step] => {
                let request = worker_join::Req {
                    name: name.clone(),
                    step: step.parse().unwrap(),
                };
                client.worker_join(request).await.unwrap().into_inner().status().as_str_name()
            }
            ["finish"] => {
                let reply = client.worker_finish(worker_finish::Req { name: name.clone() }).await.unwrap();
                reply.into_inner().status().as_str_name()
            }
            _ => panic!("no such call: {line:?}"),
        };
        println!("\n= {status}");
    }
}

/// The aggregator is submitted after the proposal has closed, so trainers may come first.
async fn connected(address: &str) -> SchedulerClient<tonic::transport::Channel> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match SchedulerClient::connect(format!("http://{address}")).await {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "{address}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
