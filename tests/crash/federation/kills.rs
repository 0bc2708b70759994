//! The damage: SIGKILL of one role, of two at once, of all that are durable, at any moment, also while they come back.

use super::load::Load;
use crate::support::{Federation, Role};
use futures_util::future::join_all;
use rand::RngExt;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long a cluster manager waits for its worker, seconds. A worker knocks at a manager that is away for [`DOWN_MS`] again within two seconds;
/// the rest is for a busy machine.
pub const GRACE_S: u64 = 6;
/// The longest a role stays down, ms.
const DOWN_MS: u64 = 1000;
/// The longest pause between two kills, ms.
const PAUSE_MS: u64 = 1900;
/// A kill follows a burst of submissions within this time, ms: about as long as the master has to do with them.
const BURST_MS: u64 = 40;

/// Times that all durable roles are killed while they make their data directories.
const BIRTHS: u32 = 4;
/// The latest moment of that, ms after the start: about when a debug build is ready.
const BIRTH_MS: u64 = 400;

/// What was done.
#[derive(Default, Debug)]
pub struct Tally {
    /// SIGKILLs by kind of role.
    pub by_role: BTreeMap<String, u32>,
    /// Times that all durable roles went at once.
    pub power_cuts: u32,
    /// SIGKILLs that hit a role less than 400 ms after its start.
    pub in_recovery: u32,
    /// Workers that stayed away until they were given up.
    pub workers_away: u32,
}

/// Kills and starts; remembers who is down on purpose.
pub struct Killer {
    random: StdRng,
    /// Worker that stays away longer than its grace time, and until when.
    away: Option<(usize, Instant)>,
    /// What was done.
    pub tally: Tally,
}

fn kind(role: &Role) -> &str {
    role.name.split_once('-').map_or(&role.name, |(_, kind)| kind)
}

impl Killer {
    /// One that follows this sequence of choices.
    pub fn new(random: StdRng) -> Self {
        Self {
            random,
            away: None,
            tally: Tally::default(),
        }
    }

    /// Kill every durable role on its first starts; whatever it leaves, the next start must go on from there.
    pub async fn births(&mut self, federation: &mut Federation) {
        let roles = federation.roles();
        let durable: Vec<usize> = (0..roles.len()).filter(|i| kind(roles[*i]) != "worker").collect();
        for _ in 0..BIRTHS {
            self.start(federation, &durable);
            self.sleep(BIRTH_MS).await;
            Self::all_run_of(federation, &durable);
            self.tally.in_recovery += u32::try_from(durable.len()).unwrap();
            self.kill(federation, &durable).await;
        }
    }

    /// Let it work, kill, wait, start, and sometimes kill again what is coming up.
    pub async fn round(&mut self, federation: &mut Federation, load: &mut Load) {
        self.sleep(PAUSE_MS).await;
        if self.away.is_some_and(|(_, until)| Instant::now() >= until) {
            self.bring_back(federation);
        }
        self.all_run(federation);
        let victims = self.victims(federation);
        if self.random.random_ratio(1, 3) {
            load.burst(&mut self.random);
            self.sleep(BURST_MS).await;
        }
        self.kill(federation, &victims).await;
        if self.random.random_ratio(1, 2) {
            self.sleep(DOWN_MS).await;
        }
        self.start(federation, &victims);
        if self.random.random_ratio(1, 3) {
            let moment = self.random.random_range(0..300);
            tokio::time::sleep(Duration::from_millis(moment)).await;
            let again: Vec<usize> = victims.iter().copied().filter(|i| !self.is_away(*i)).collect();
            self.all_run(federation);
            self.kill(federation, &again).await;
            self.tally.in_recovery += u32::try_from(again.len()).unwrap();
            self.start(federation, &again);
        }
    }

    /// Start who is still away.
    pub fn bring_back(&mut self, federation: &mut Federation) {
        if let Some((worker, _)) = self.away.take() {
            federation.roles()[worker].start_unready();
        }
    }

    async fn sleep(&mut self, at_most_ms: u64) {
        let ms = self.random.random_range(0..at_most_ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    fn is_away(&self, index: usize) -> bool {
        self.away.is_some_and(|(away, _)| away == index)
    }

    /// A role that ends by itself is a failure, whatever was done to the others.
    pub fn all_run(&self, federation: &mut Federation) {
        let all: Vec<usize> = (0..federation.roles().len()).filter(|i| !self.is_away(*i)).collect();
        Self::all_run_of(federation, &all);
    }

    fn all_run_of(federation: &mut Federation, of: &[usize]) {
        for (_, role) in federation.roles().into_iter().enumerate().filter(|(i, _)| of.contains(i)) {
            assert!(role.runs(), "{} has ended by itself; its log:\n{}", role.name, role.log());
        }
    }

    fn victims(&mut self, federation: &mut Federation) -> Vec<usize> {
        let roles = federation.roles();
        let any = |random: &mut StdRng| random.random_range(0..roles.len());
        let mut victims: Vec<usize> = match self.random.random_range(0..10) {
            0 => {
                self.tally.power_cuts += 1;
                let with_workers = self.random.random_ratio(1, 3);
                (0..roles.len()).filter(|i| with_workers || kind(roles[*i]) != "worker").collect()
            }
            1 | 2 => vec![any(&mut self.random), any(&mut self.random)],
            _ => vec![any(&mut self.random)],
        };
        victims.sort_unstable();
        victims.dedup();
        victims.retain(|i| !self.is_away(*i));
        victims
    }

    async fn kill(&mut self, federation: &mut Federation, victims: &[usize]) {
        let roles = federation.roles().into_iter().enumerate();
        let victims: Vec<&mut Role> = roles.filter(|(i, _)| victims.contains(i)).map(|(_, role)| role).collect();
        for role in &victims {
            *self.tally.by_role.entry(kind(role).to_owned()).or_default() += 1;
        }
        join_all(victims.into_iter().map(Role::kill)).await;
    }

    fn start(&mut self, federation: &mut Federation, victims: &[usize]) {
        for (index, role) in federation.roles().into_iter().enumerate().filter(|(i, _)| victims.contains(i)) {
            if kind(role) == "worker" && self.away.is_none() && self.random.random_ratio(1, 4) {
                let seconds = self.random.random_range(GRACE_S..GRACE_S + 4);
                self.away = Some((index, Instant::now() + Duration::from_secs(seconds)));
                self.tally.workers_away += 1;
            } else {
                role.start_unready();
            }
        }
    }
}
