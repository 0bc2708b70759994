//! The load: submitters that send dummy jobs to the masters without a pause for anything that happens to them.
//!
//! Every submission carries a text of its own (as `algorithm_config`), so that a job found in a store tells which submission it came from,
//! also when that one was never answered.

use crate::support::{Client, Federation};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;

/// Submitters at each master.
const SUBMITTERS: u64 = 2;
/// Submissions of a burst, at each master.
const BURST: usize = 8;
/// Window of the jobs that are submitted while roles are killed, seconds: the shortest there is.
const WINDOW_S: u32 = 1;
/// Window of the jobs that must succeed, seconds: a busy machine must get an offer to both parties in it.
const QUIET_WINDOW_S: u32 = 6;

/// A job as it was asked for.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Index of the party.
    pub party: usize,
    /// Trainers, each at a party of its own.
    pub workers: u32,
    /// Its tasks shall fail.
    pub fail: bool,
    /// Submitted when nothing was killed any more.
    pub quiet: bool,
    /// How long its tasks take.
    pub sleep_ms: u32,
    /// Length of its proposal's window.
    pub window_s: u32,
    /// Endpoints it asks for.
    pub endpoints: u16,
    /// The job's id; `None` when no answer came, so that it may be there or not.
    pub answer: Option<String>,
}

impl Submission {
    /// Its `job_config`.
    pub fn config(&self) -> Value {
        let mut config = json!({ "worker_num": self.workers, "sleep_ms": self.sleep_ms, "fail": self.fail });
        if self.endpoints > 0 {
            config["endpoints"] = json!(self.endpoints);
        }
        if self.workers > 0 {
            config["proposal_wait_time"] = json!(self.window_s);
        }
        config
    }

    fn random(party: usize, random: &mut StdRng) -> Self {
        Self {
            party,
            workers: random.random_range(0..=2),
            fail: random.random_ratio(1, 8),
            quiet: false,
            sleep_ms: if random.random_ratio(1, 2) {
                0
            } else {
                random.random_range(1..600)
            },
            window_s: WINDOW_S,
            endpoints: 0,
            answer: None,
        }
    }
}

/// The text that only this submission carries. Every third is too long for a record and becomes a payload file.
pub fn text(number: usize) -> String {
    let filling = if number.is_multiple_of(3) { 700 + number % 5000 } else { 0 };
    format!("submission {number} {}", "x".repeat(filling))
}

/// All submissions by number.
pub type Ledger = Arc<Mutex<Vec<Submission>>>;

/// Enter a submission, send it, and note the answer if there is one.
pub async fn submit(client: &Client, ledger: &Ledger, submission: Submission) {
    let number = {
        let mut ledger = ledger.lock().unwrap();
        ledger.push(submission.clone());
        ledger.len() - 1
    };
    let body = json!({ "job_type": "dummy", "job_config": submission.config(), "algorithm_config": text(number) });
    match client.post("/submit", &body).await {
        // A master that dies while it answers may leave a status without a body.
        Ok((200, body)) => {
            ledger.lock().unwrap()[number].answer = body["job_id"].as_str().map(str::to_owned);
        }
        Ok((503, _)) | Err(_) => {}
        Ok((status, body)) => panic!("{submission:?} was answered with {status} {body}"),
    }
}

/// Submitters at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    submitters: JoinSet<()>,
    ledger: Ledger,
    clients: Vec<Client>,
}

impl Load {
    /// Begin.
    pub fn start(federation: &Federation, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ledger = Ledger::default();
        let mut submitters = JoinSet::new();
        for party in 0..federation.parties.len() {
            for n in 0..SUBMITTERS {
                let (client, stop, ledger) = (federation.client(party), stop.clone(), ledger.clone());
                let mut random = StdRng::seed_from_u64(seed ^ (1 + n + SUBMITTERS * party as u64));
                submitters.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        submit(&client, &ledger, Submission::random(party, &mut random)).await;
                        tokio::time::sleep(Duration::from_millis(random.random_range(20..500))).await;
                    }
                });
            }
        }
        let clients = (0..federation.parties.len()).map(|party| federation.client(party)).collect();
        Self {
            stop,
            submitters,
            ledger,
            clients,
        }
    }

    /// Begin to submit many jobs at once, so that a kill that follows finds some of them on their way.
    pub fn burst(&mut self, random: &mut StdRng) {
        for (party, client) in self.clients.iter().enumerate() {
            for _ in 0..BURST {
                let (client, ledger, submission) = (client.clone(), self.ledger.clone(), Submission::random(party, random));
                self.submitters.spawn(async move { submit(&client, &ledger, submission).await });
            }
        }
    }

    /// End; fails if a submitter did.
    pub async fn end(mut self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.submitters.join_next().await {
            ended.unwrap();
        }
        self.ledger
    }
}

/// Wait until each party's worker runs what its master submits: the damage may still be felt for a moment after the last kill.
pub async fn workers_work(federation: &Federation, ledger: &Ledger) {
    for party in 0..federation.parties.len() {
        let client = federation.client(party);
        loop {
            let probe = Submission {
                party,
                workers: 0,
                fail: false,
                quiet: false,
                sleep_ms: 0,
                window_s: 0,
                endpoints: 0,
                answer: None,
            };
            submit(&client, ledger, probe).await;
            let job = ledger.lock().unwrap().last().and_then(|probe| probe.answer.clone());
            if client.ended(&job.expect("nothing is killed any more")).await["state"] == "success" {
                break;
            }
        }
    }
}

/// Submit jobs of every shape when nothing is killed any more: each must be answered.
pub async fn quiet(federation: &Federation, ledger: &Ledger) {
    let mut calls = JoinSet::new();
    for party in 0..federation.parties.len() {
        for (workers, fail) in [(0, false), (1, false), (2, false), (0, true), (2, true), (1, false)] {
            let (client, ledger) = (federation.client(party), ledger.clone());
            let submission = Submission {
                party,
                workers,
                fail,
                quiet: true,
                sleep_ms: 50,
                window_s: QUIET_WINDOW_S,
                endpoints: 0,
                answer: None,
            };
            calls.spawn(async move { submit(&client, &ledger, submission).await });
        }
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    let ledger = ledger.lock().unwrap();
    assert!(
        ledger.iter().all(|submission| !submission.quiet || submission.answer.is_some()),
        "a submission was not answered, and nothing was killed"
    );
}
