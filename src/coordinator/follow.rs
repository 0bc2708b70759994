//! One follow stream: jobs are named as it goes, each is answered at once and whenever it has changed.
//!
//! Run as a task of its own by the door `federation`. First the hub is told, then the records are read: a change in between rings the bell, one
//! before it is in the records, so none is missed. Several changes may come as one news; the last one always comes.

use super::convert;
use super::federation::{Federation, assignments};
use super::hub::Bell;
use crate::machine::coordinator::{Course, Key, Record, Verdict};
use crate::machine::ids::JobId;
use crate::store;
use crate::wire::fedbroker::v1::{FollowRequest, JobNews, job_news};
use futures_util::stream::StreamExt;
use prost::Message;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

/// Requests taken, and jobs read by one blocking call, at most.
const CHUNK: usize = 256;
/// How long changes are gathered before the next look: a proposal with hundreds of parties must not be read hundreds of times at once.
const GATHER: Duration = Duration::from_millis(50);

type News = mpsc::Sender<Result<JobNews, Status>>;

struct Follow {
    federation: Federation,
    session: u64,
    owner: String,
    bell: Bell,
    /// What was said last of each job.
    jobs: HashMap<JobId, u64>,
    out: News,
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.federation.hub.unfollow(self.session, self.jobs.keys());
    }
}

/// Until the caller is gone or the role stops.
pub(super) async fn run(federation: Federation, owner: String, inbound: Streaming<FollowRequest>, out: News) {
    let mut follow = Follow {
        session: federation.hub.session(),
        bell: Bell::default(),
        jobs: HashMap::new(),
        federation,
        owner,
        out: out.clone(),
    };
    let (bell, stopped) = (follow.bell.clone(), follow.federation.supervisor.clone());
    let mut requests = inbound.ready_chunks(CHUNK);
    loop {
        let step = tokio::select! {
            chunk = requests.next() => match chunk {
                Some(chunk) => follow.ask(chunk).await,
                None => return,
            },
            () = bell.rung() => {
                let changed = bell.take().into_iter().collect();
                let step = follow.look(changed).await;
                tokio::time::sleep(GATHER).await;
                step
            }
            () = out.closed() => return,
            () = stopped.stopped() => return,
        };
        if let Err(status) = step {
            let _ = out.send(Err(status)).await;
            return;
        }
    }
}

impl Follow {
    async fn ask(&mut self, requests: Vec<Result<FollowRequest, Status>>) -> Result<(), Status> {
        let mut fresh = Vec::with_capacity(requests.len());
        for request in requests {
            let FollowRequest { job_id, after } = request?;
            let job = JobId::parse(job_id).map_err(|error| convert::bad_id(&error))?;
            self.jobs.insert(job.clone(), after);
            if !self.federation.hub.follow(self.session, &self.bell, &job) {
                return Err(Status::unavailable("too many jobs are followed; try again later"));
            }
            fresh.push(job);
        }
        self.look(fresh).await
    }

    /// Read the records and tell what has changed.
    async fn look(&mut self, jobs: Vec<JobId>) -> Result<(), Status> {
        for some in jobs.chunks(CHUNK) {
            let some: Vec<JobId> = some.iter().filter(|job| self.jobs.contains_key(*job)).cloned().collect();
            let owner = self.owner.clone();
            let read = move |federation: &Federation| {
                let news = some.into_iter().map(|job| Ok((news(federation, &job, &owner)?, job)));
                news.collect::<Result<Vec<_>, store::Error>>()
            };
            for (news, job) in self.federation.read(read).await? {
                self.tell(news, job).await?;
            }
        }
        Ok(())
    }

    async fn tell(&mut self, news: JobNews, job: JobId) -> Result<(), Status> {
        let (revision, over) = (news.revision, news.r#final);
        let Some(last) = self.jobs.get_mut(&job) else { return Ok(()) };
        let is_new = std::mem::replace(last, revision) != revision;
        if over {
            self.jobs.remove(&job);
            self.federation.hub.unfollow(self.session, [&job].into_iter());
        }
        if is_new && self.out.send(Ok(news)).await.is_err() {
            return Err(Status::cancelled("the caller is gone"));
        }
        Ok(())
    }
}

/// How a job stands. The proposal is read first: what belongs to a verdict is there before the verdict is seen. Blocks.
fn news(federation: &Federation, job: &JobId, owner: &str) -> Result<JobNews, store::Error> {
    let reader = federation.handle.reader();
    let proposal = reader.get(&Key::Proposal(job.clone()))?;
    let course = reader.get(&Key::Course(job.clone()))?;
    let news = match (proposal, course) {
        (Some(Record::Proposal(proposal)), Some(Record::Course(Course { owner: Some(of), tally }))) if of == owner => {
            let status = match proposal.verdict() {
                None => job_news::Status::Open,
                Some((Verdict::Success, _)) => job_news::Status::Accepted,
                Some((Verdict::Cancelled, _)) => job_news::Status::WasCancelled,
                Some(_) => job_news::Status::Refused,
            };
            let chosen = if tally.is_some_and(|tally| tally.chosen > 0) {
                assignments(federation.handle.reader(), job)?
            } else {
                Vec::new()
            };
            let chosen: Vec<_> = chosen
                .iter()
                .map(|(party, assignment)| convert::chosen(party, assignment))
                .collect();
            JobNews {
                proposal_id: proposal.id.to_string(),
                status: status.into(),
                reason: proposal.verdict().map(|(_, reason)| reason.to_owned()).unwrap_or_default(),
                asked: proposal.offered,
                accepted: tally.unwrap_or_default().accepted,
                r#final: !proposal.is_open() && chosen.iter().all(|party| party.r#final),
                chosen,
                ..JobNews::default()
            }
        }
        _ => JobNews {
            status: job_news::Status::NotKnown.into(),
            ..JobNews::default()
        },
    };
    Ok(revised(JobNews {
        job_id: job.to_string(),
        ..news
    }))
}

/// With a number made of all that is in it: the same after a restart, of either side.
fn revised(news: JobNews) -> JobNews {
    let hash: [u8; 32] = Sha256::digest(news.encode_to_vec()).into();
    let revision = hash.iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
    JobNews {
        // 0 is for none.
        revision: revision.max(1),
        ..news
    }
}
