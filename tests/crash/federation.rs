//! Rounds of load, SIGKILL of random roles and restart of a real federation; then everything that is left is held against an oracle.
//!
//! `FEDBROKER_CRASH_SEED` repeats the choices of a run (not its timing), `FEDBROKER_CRASH_ROUNDS` makes a soak of it:
//!
//! ```text
//! FEDBROKER_CRASH_ROUNDS=500 cargo test --test crash federation -- --nocapture
//! ```

mod kills;
pub mod load;
pub mod oracle;
pub mod remains;

use crate::support::{DEADLINE, Federation, Role};
use futures_util::future::join_all;
use kills::Killer;
use load::{Ledger, Load};
use rand::SeedableRng;
use rand::rngs::StdRng;
use remains::Remains;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// About a minute of damage.
const ROUNDS: u64 = 45;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

/// Seconds each start of a master took to read its records back, by party and epoch.
type Recoveries = Arc<Mutex<BTreeMap<(usize, u64), f64>>>;

/// Ask the masters what their starts found, for ever.
fn watch_recoveries(federation: &Federation, seen: &Recoveries) -> JoinSet<()> {
    let mut watchers = JoinSet::new();
    for party in 0..federation.parties.len() {
        let (client, seen) = (federation.client(party), seen.clone());
        watchers.spawn(async move {
            loop {
                if let Ok((200, status)) = client.get("/api/v1/status").await
                    && let (Some(epoch), Some(seconds)) = (status["recovery"]["epoch"].as_u64(), status["recovery"]["seconds"].as_f64())
                {
                    seen.lock().unwrap().insert((party, epoch), seconds);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    watchers
}

/// Every job whose submission was answered must end.
async fn answered_jobs_end(federation: &Federation, ledger: &Ledger) {
    let submissions = ledger.lock().unwrap().clone();
    for submission in submissions {
        if let Some(job) = submission.answer {
            federation.client(submission.party).ended(&job).await;
        }
    }
}

/// Cut the power and look; as long as something is still on its way (a job of an unanswered submission, a task of another party's job), let
/// it go on.
pub async fn settle(federation: &mut Federation, ledger: &Ledger) -> Remains {
    let deadline = Instant::now() + 2 * DEADLINE;
    loop {
        join_all(federation.roles().into_iter().map(Role::kill)).await;
        let remains = Remains::read(federation, ledger);
        let unsettled = remains.unsettled();
        if unsettled.is_empty() {
            return remains;
        }
        assert!(Instant::now() < deadline, "this never comes to an end: {unsettled:#?}");
        federation.start_all().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
}

/// How often each attempt was begun, as the workers' logs tell.
pub fn started(federation: &Federation) -> HashMap<(String, u32), u32> {
    let mut counts = HashMap::new();
    for party in &federation.parties {
        let log = party.worker.log();
        for line in log.lines().filter_map(|line| line.split_once("task started task=")) {
            let (task, attempt) = line.1.split_once(" attempt=").unwrap();
            *counts.entry((task.to_owned(), attempt.trim().parse().unwrap())).or_default() += 1;
        }
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_federation_that_is_killed_again_and_again_keeps_its_word() {
    let seed = number("FEDBROKER_CRASH_SEED").unwrap_or_else(rand::random);
    let rounds = number("FEDBROKER_CRASH_ROUNDS").unwrap_or(ROUNDS);
    let began = Instant::now();
    let grace = kills::GRACE_S.to_string();
    let mut federation = Federation::planned(2, &["--worker-grace", &grace], &[]);
    // Kept for whoever looks into a failure.
    federation.dir.disable_cleanup(true);
    eprintln!(
        "FEDBROKER_CRASH_SEED={seed} FEDBROKER_CRASH_ROUNDS={rounds}, logs and stores in {}",
        federation.dir.path().display()
    );
    let mut killer = Killer::new(StdRng::seed_from_u64(seed));
    killer.births(&mut federation).await;
    federation.start_all().await;
    let recoveries = Recoveries::default();
    let mut watchers = watch_recoveries(&federation, &recoveries);
    let mut load = Load::start(&federation, seed);
    for _ in 0..rounds {
        killer.round(&mut federation, &mut load).await;
    }
    killer.bring_back(&mut federation);
    let damage = began.elapsed();
    let ledger = load.end().await;
    federation.subscribed().await;
    load::workers_work(&federation, &ledger).await;
    load::quiet(&federation, &ledger).await;
    answered_jobs_end(&federation, &ledger).await;
    killer.all_run(&mut federation);
    watchers.shutdown().await;
    let remains = settle(&mut federation, &ledger).await;
    let tally = oracle::check(&remains, &started(&federation));
    eprintln!(
        "{rounds} rounds in {:.0} s, {:.0} s in all",
        damage.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    eprintln!("{:?}\n{tally:?}", killer.tally);
    let mut seconds: Vec<f64> = recoveries.lock().unwrap().values().copied().collect();
    seconds.sort_by(f64::total_cmp);
    let (median, longest) = (seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
    eprintln!(
        "{} starts of masters seen, read back in {:.1} ms (median), {:.1} ms (longest)",
        seconds.len(),
        median * 1e3,
        longest * 1e3
    );
    assert!(tally.succeeded > 0 && tally.jobs as u64 > rounds, "hardly anything ran: {tally:?}");
    federation.dir.disable_cleanup(false);
}
