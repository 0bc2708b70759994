//! A client that asks a master for pages of its lists, one kind after the other, and checks each answer against what the store was made with.
//!
//! Used by `history`. Times the request only: what the check costs is not in the latencies.

use super::drive::Client;
use super::http::Connection;
use super::made::{self, Group, PARTY};
use crate::engine::clock::{Clock, SystemClock};
use anyhow::Context;
use serde::Deserialize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Items of a page, as the lists give them unless asked otherwise.
const LIMIT: usize = 50;
/// Jobs of a window of time: an hour.
const HOUR: u64 = 3600;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Newest,
    Deep,
    State,
    StateAscending,
    JobType,
    Label,
    FewHaveIt,
    Together,
    Window,
    FarWindow,
    IdPrefix,
    NobodyHasIt,
    AfterAll,
    Tasks,
    TasksInState,
    TasksUnderWay,
    TasksOfJob,
    TasksNobodyHas,
    Proposals,
    ProposalsInState,
}

/// A request, and what the store was made with that fits it.
struct Ask {
    path: String,
    group: Group,
    but: Option<Group>,
    within: Range<u64>,
    descending: bool,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Kind; 20] = [
        Kind::Newest,
        Kind::Deep,
        Kind::State,
        Kind::StateAscending,
        Kind::JobType,
        Kind::Label,
        Kind::FewHaveIt,
        Kind::Together,
        Kind::Window,
        Kind::FarWindow,
        Kind::IdPrefix,
        Kind::NobodyHasIt,
        Kind::AfterAll,
        Kind::Tasks,
        Kind::TasksInState,
        Kind::TasksUnderWay,
        Kind::TasksOfJob,
        Kind::TasksNobodyHas,
        Kind::Proposals,
        Kind::ProposalsInState,
    ];

    /// For a reader.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Newest => "jobs, the newest",
            Kind::Deep => "jobs, deep cursor",
            Kind::State => "jobs, state",
            Kind::StateAscending => "jobs, state, oldest first",
            Kind::JobType => "jobs, type",
            Kind::Label => "jobs, label",
            Kind::FewHaveIt => "jobs, label of few",
            Kind::Together => "jobs, state type label",
            Kind::Window => "jobs, an hour",
            Kind::FarWindow => "jobs, state, first minutes",
            Kind::IdPrefix => "jobs, id prefix",
            Kind::NobodyHasIt => "jobs, label of none",
            Kind::AfterAll => "jobs, time of none",
            Kind::Tasks => "tasks",
            Kind::TasksInState => "tasks, state",
            Kind::TasksUnderWay => "tasks, under way",
            Kind::TasksOfJob => "tasks of a job",
            Kind::TasksNobodyHas => "tasks, type of none",
            Kind::Proposals => "proposals",
            Kind::ProposalsInState => "proposals, state",
        }
    }

    /// Only jobs come in exactly the pages asked for; of the others a page may be short.
    fn is_of_jobs(self) -> bool {
        (self as usize) < Kind::Tasks as usize
    }

    /// The next page of the same list comes with the next request, or else the first one of another list of this kind.
    fn walks(self) -> bool {
        !matches!(
            self,
            Kind::Newest | Kind::Deep | Kind::Label | Kind::TasksOfJob | Kind::Together | Kind::Window | Kind::IdPrefix
        )
    }

    /// What to ask, of a store of so many finished jobs; `pick` is any number.
    fn ask(self, finished: u64, pick: u64) -> Ask {
        let ask = |path: String, group: Group| Ask {
            path,
            group,
            but: None,
            within: 0..finished,
            descending: self.is_of_jobs(),
        };
        let jobs = |query: &str, group| ask(format!("/api/v1/jobs?{query}"), group);
        let n = pick % finished;
        match self {
            Kind::Newest | Kind::Deep => jobs("order=created_desc", Group::ALL),
            Kind::State => Ask {
                but: Some(Group::FAILED),
                ..jobs("state=success", Group::ALL)
            },
            Kind::StateAscending => Ask {
                descending: false,
                ..jobs("state=failed&order=created_asc", Group::FAILED)
            },
            Kind::JobType => jobs("job_type=program", Group::PROGRAMS),
            Kind::Label => jobs(&format!("label=run:{}", pick % 1000), Group::run(pick % 1000)),
            Kind::FewHaveIt => jobs("label=rare", Group::RARE),
            Kind::Together => {
                let run = pick % 100 * 10 + 9;
                jobs(
                    &format!("state=failed&state=cancelled&job_type=dummy&label=run:{run}"),
                    Group::run(run),
                )
            }
            Kind::Window => {
                let (after, before) = (instant(n), instant(n + HOUR));
                let path = format!("created_after={after}&created_before={before}&order=created_asc");
                let within = n..finished.min(n + HOUR);
                Ask {
                    within,
                    descending: false,
                    ..jobs(&path, Group::ALL)
                }
            }
            Kind::FarWindow => Ask {
                within: 0..finished.min(300),
                ..jobs(&format!("state=failed&created_before={}", instant(300)), Group::FAILED)
            },
            Kind::IdPrefix => {
                // The stamp up to the hour.
                let first = n - n % HOUR;
                let prefix = &stamp(n)[..10];
                Ask {
                    within: first..finished.min(first + HOUR),
                    ..jobs(&format!("q={PARTY}-{prefix}"), Group::ALL)
                }
            }
            Kind::NobodyHasIt => Ask {
                within: 0..0,
                ..jobs("state=success&label=nobody", Group::ALL)
            },
            Kind::AfterAll => Ask {
                within: 0..0,
                ..jobs("created_after=2100-01-01T00:00:00Z", Group::ALL)
            },
            Kind::Tasks => ask("/api/v1/tasks?limit=50".to_owned(), Group::ALL),
            Kind::TasksInState => ask("/api/v1/tasks?state=failed".to_owned(), Group::FAILED),
            Kind::TasksUnderWay => Ask {
                within: 0..0,
                ..ask("/api/v1/tasks?state=submitted&state=queued".to_owned(), Group::ALL)
            },
            Kind::TasksOfJob => Ask {
                within: n..n + 1,
                ..ask(format!("/api/v1/tasks?job_id={PARTY}-{}-{}", stamp(n), n + 1), Group::ALL)
            },
            Kind::TasksNobodyHas => Ask {
                within: 0..0,
                ..ask("/api/v1/tasks?task_type=nobody".to_owned(), Group::ALL)
            },
            Kind::Proposals => ask("/api/v1/proposals?limit=50".to_owned(), Group::PROPOSED),
            Kind::ProposalsInState => ask("/api/v1/proposals?state=missed".to_owned(), Group::MISSED),
        }
    }
}

impl Ask {
    /// The first ones beyond `after` that must come, one more than a page.
    fn expected(&self, after: Option<u64>) -> Vec<u64> {
        let mut found = Vec::with_capacity(LIMIT + 1);
        let next = |n: u64| if self.descending { n.checked_sub(1) } else { Some(n + 1) };
        let mut at = match after {
            Some(after) => next(after),
            None if self.descending => self.within.end.checked_sub(1),
            None => Some(self.within.start),
        };
        while found.len() <= LIMIT {
            let Some(from) = at else { break };
            let near = if self.descending {
                self.group.last(from)
            } else {
                Some(self.group.next(from))
            };
            let Some(n) = near.filter(|n| self.within.contains(n)) else { break };
            if self.but.is_none_or(|but| !but.has(n)) {
                found.push(n);
            }
            at = next(n);
        }
        found
    }
}

/// The middle part of the id of a job.
fn stamp(n: u64) -> String {
    SystemClock.stamp(made::accepted_at(n))
}

/// When a job was accepted, for a query.
fn instant(n: u64) -> String {
    let stamp = stamp(n);
    let part = |from: usize, to: usize| &stamp[from..to];
    format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4),
        part(4, 6),
        part(6, 8),
        part(8, 10),
        part(10, 12),
        part(12, 14)
    )
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Item>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    job_id: Option<String>,
    proposal_id: Option<String>,
}

impl Item {
    /// Which job it is, or which it is of.
    fn n(&self) -> Option<u64> {
        let id = self
            .job_id
            .as_deref()
            .or_else(|| self.proposal_id.as_deref()?.strip_suffix("-coo_1"))?;
        id.rsplit('-').next()?.parse::<u64>().ok()?.checked_sub(1)
    }
}

/// A page as it came.
struct Got {
    items: Vec<u64>,
    next: Option<String>,
    micros: u32,
}

async fn get(connection: &mut Connection, path: &str) -> anyhow::Result<Got> {
    let began = Instant::now();
    let answer = connection.get(path).await?;
    let micros = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
    anyhow::ensure!(answer.status == 200, "{path} was answered {}: {}", answer.status, answer.body);
    let page: Page = serde_json::from_str(&answer.body).with_context(|| format!("{path} was answered with no page"))?;
    let items = page.items.iter().map(|item| item.n().context("an item has no id of a made store"));
    Ok(Got {
        items: items.collect::<anyhow::Result<_>>()?,
        next: page.next_cursor,
        micros,
    })
}

/// How many jobs there are, by the number of the newest.
///
/// # Errors
/// The master does not say.
pub(super) async fn jobs(connection: &mut Connection) -> anyhow::Result<u64> {
    let page = get(connection, "/api/v1/jobs?limit=1").await?;
    Ok(page.items.first().map_or(0, |n| n + 1))
}

/// Where a walk stands: a cursor, and the last one that was shown before it.
pub(super) type Cursor = (String, u64);

/// Cursors of the list of all jobs, from its begin into a tenth of it and at most a hundred thousand jobs deep.
///
/// # Errors
/// The master does not answer as it should.
pub(super) async fn deep_cursors(connection: &mut Connection, finished: u64) -> anyhow::Result<Vec<Cursor>> {
    let limit = (finished / 20).clamp(1, 500);
    let path = format!("/api/v1/jobs?order=created_desc&fields=job_id&limit={limit}");
    let mut cursors: Vec<Cursor> = Vec::new();
    while (cursors.len() as u64) < (finished / 10 / limit).clamp(1, 200) {
        let after = cursors.last().map(|(cursor, _)| format!("&cursor={cursor}")).unwrap_or_default();
        let page = get(connection, &format!("{path}{after}")).await?;
        let (Some(next), Some(last)) = (page.next, page.items.last()) else {
            break;
        };
        cursors.push((next, *last));
    }
    anyhow::ensure!(!cursors.is_empty(), "there are too few jobs for a cursor");
    Ok(cursors)
}

/// Asks for pages.
pub(super) struct Pager {
    connection: Connection,
    finished: u64,
    deep: Arc<[Cursor]>,
    /// Which kind comes first.
    first: u64,
    /// Where the walk of each kind stands.
    walks: [Option<(String, Option<u64>)>; Kind::ALL.len()],
    /// For each kind how long each page took, microseconds.
    pub(super) took: [Vec<u32>; Kind::ALL.len()],
    /// For each kind how many items came.
    pub(super) items: [u64; Kind::ALL.len()],
    /// Numbers without a pattern that matters here.
    random: u64,
}

impl Pager {
    /// One that begins with the `nth` kind.
    pub(super) fn new(connection: Connection, finished: u64, deep: Arc<[Cursor]>, nth: u64) -> Self {
        Self {
            connection,
            finished,
            deep,
            first: nth,
            walks: Default::default(),
            took: Default::default(),
            items: Default::default(),
            random: 0x9e37_79b9_7f4a_7c15 ^ (nth << 32),
        }
    }

    fn pick(&mut self) -> u64 {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 8
    }

    async fn page(&mut self, at: usize) -> anyhow::Result<()> {
        let (kind, pick) = (Kind::ALL[at], self.pick());
        let ask = kind.ask(self.finished, pick);
        let place = match kind {
            Kind::Deep => {
                let (cursor, last) = &self.deep[usize::try_from(pick)? % self.deep.len()];
                Some((cursor.clone(), Some(*last)))
            }
            _ => self.walks[at].take(),
        };
        let after = place.as_ref().and_then(|(_, last)| *last);
        let cursor = place.map(|(cursor, _)| format!("&cursor={cursor}")).unwrap_or_default();
        let path = format!("{}{cursor}", ask.path);
        let page = get(&mut self.connection, &path).await?;
        self.took[at].push(page.micros);
        self.items[at] += page.items.len() as u64;
        if kind == Kind::Newest {
            return newest(&page.items, self.finished).with_context(|| path);
        }
        let whole = check(kind, &ask.expected(after), &page, self.finished);
        whole.with_context(|| format!("{path}: {:?} came after {after:?}", page.items))?;
        if kind.walks() {
            self.walks[at] = page.next.map(|next| (next, page.items.last().copied().or(after)));
        }
        Ok(())
    }
}

/// The newest jobs are submitted right now; none is left out among them.
fn newest(items: &[u64], finished: u64) -> anyhow::Result<()> {
    let first = items.first().copied().unwrap_or_default();
    anyhow::ensure!(first + 1 >= finished, "the newest job is {first}");
    let without_gap = (0..=first).rev().take(LIMIT);
    anyhow::ensure!(items.iter().copied().eq(without_gap), "there is a gap: {items:?}");
    Ok(())
}

fn check(kind: Kind, expected: &[u64], page: &Got, finished: u64) -> anyhow::Result<()> {
    let whole = &expected[..expected.len().min(LIMIT)];
    if kind.is_of_jobs() {
        anyhow::ensure!(page.items == whole, "{whole:?} should come");
    } else {
        // The tasks of what is submitted now come last.
        let made = page.items.partition_point(|n| *n < finished);
        let made = &page.items[..made];
        anyhow::ensure!(whole.starts_with(made), "the first ones of {whole:?} should come");
        let ends = page.next.is_none() || page.items.len() > made.len();
        anyhow::ensure!(made == whole || !ends, "the list ends before {whole:?}");
    }
    anyhow::ensure!(page.next.is_some() || expected.len() <= LIMIT, "the list ends and there is more");
    Ok(())
}

impl Client for Pager {
    async fn ask(&mut self, n: u64) -> anyhow::Result<()> {
        self.page(usize::try_from((self.first + n) % Kind::ALL.len() as u64)?).await
    }
}
