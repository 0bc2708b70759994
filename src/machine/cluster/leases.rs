//! Decisions about leases: who gets a slot and ports, and when they come back.
//!
//! Called by `decide`. Changes nothing but through events.

use super::records::{ENDPOINTS_MAX, Lease, LeaseId, LeaseState, Worker};
use super::{Cluster, Effect, Event, Rejection, Reply, STEP_MAX};
use crate::machine::Out;
use crate::machine::ids::{JobId, Timestamp, WorkerId};

type Output = Out<Cluster>;

/// How many slots of a worker may go to leases: half, rounded up, so that aggregators alone never fill it and trainers can run.
pub(super) fn share(max_tasks: u16) -> u32 {
    u32::from(max_tasks).div_ceil(2)
}

impl Cluster {
    pub(super) fn acquire(&mut self, job: Option<JobId>, endpoints: u16, now: Timestamp, out: &mut Output) -> Result<Reply, Rejection> {
        let id = match job {
            Some(job) => LeaseId::Job(job),
            None => LeaseId::Anonymous(self.counters.anonymous + 1),
        };
        if let Some(reply) = self.granted(&id) {
            return Ok(reply);
        }
        let chosen = self.choose(endpoints).or_else(|_| {
            self.reclaim(now, out);
            self.choose(endpoints)
        });
        let (worker, ports) = match chosen {
            Ok(chosen) => chosen,
            Err(why) if out.events.is_empty() => return Err(why),
            // What was taken back is recorded, and was not enough; the next try may find more.
            Err(_) => return Ok(Reply::Again),
        };
        out.emit(
            self,
            Event::LeaseGranted {
                lease: id.clone(),
                worker,
                ports,
                at: now,
            },
        );
        if let LeaseId::Anonymous(_) = id {
            out.effect(Effect::LeaseExpiryAt {
                lease: id.clone(),
                at: now.plus_ms(self.rules.unbound_ms),
            });
        }
        Ok(self.granted(&id).unwrap_or(Reply::Void))
    }

    /// The answer that names a lease which is held.
    fn granted(&self, id: &LeaseId) -> Option<Reply> {
        let lease = self.leases.get(id).filter(|lease| lease.state != LeaseState::Lost)?;
        let ip = &self.workers.get(&lease.worker)?.profile.ip;
        let endpoints = lease.ports.iter().map(|port| format!("{ip}:{port}")).collect();
        Some(Reply::Lease {
            worker: lease.worker.clone(),
            endpoints,
        })
    }

    /// The worker with most free slots among those that can grant this, and the ports; or why there is none.
    fn choose(&self, endpoints: u16) -> Result<(WorkerId, Vec<u16>), Rejection> {
        if endpoints > ENDPOINTS_MAX {
            let why = format!("{endpoints} endpoints were asked for, a lease has at most {ENDPOINTS_MAX}");
            return Err(Rejection::NotGranted(why));
        }
        let attached = || self.index.rooms.attached.iter().filter_map(|id| Some((id, self.workers.get(id)?)));
        let most = attached().map(|(_, worker)| worker.profile.ports.len()).max();
        match most {
            None => return Err(Rejection::NotGranted("no worker is attached".to_owned())),
            Some(most) if most < u32::from(endpoints) => {
                return Err(Rejection::NotGranted(format!(
                    "{endpoints} endpoints were asked for, no worker has more than {most} ports"
                )));
            }
            Some(_) => {}
        }
        let mut with_slot: Vec<(&WorkerId, &Worker, u32)> = attached()
            .filter(|(id, worker)| self.leases_on(id) < share(worker.profile.max_tasks))
            .filter_map(|(id, worker)| Some((id, worker, *self.index.rooms.free.get(id)?)))
            .collect();
        if with_slot.is_empty() {
            return Err(Rejection::Busy("no worker has a free slot for a lease".to_owned()));
        }
        with_slot.sort_by(|(a_id, _, a), (b_id, _, b)| b.cmp(a).then_with(|| a_id.cmp(b_id)));
        let found = with_slot
            .into_iter()
            .find_map(|(id, worker, _)| Some((id.clone(), self.free_ports(id, worker, endpoints)?)));
        found.ok_or_else(|| Rejection::Busy(format!("no worker with a free slot has {endpoints} free ports")))
    }

    fn leases_on(&self, id: &WorkerId) -> u32 {
        self.index
            .load(id)
            .map_or(0, |load| u32::try_from(load.leases.len()).unwrap_or(u32::MAX))
    }

    /// The next ports in the circle that no lease has; `None` when there are too few.
    fn free_ports(&self, id: &WorkerId, worker: &Worker, wanted: u16) -> Option<Vec<u16>> {
        let range = worker.profile.ports;
        let taken = self.index.load(id).map(|load| &load.ports);
        let circle = (worker.next_port..range.end).chain(range.start..worker.next_port.min(range.end));
        let free = circle
            .filter_map(|port| u16::try_from(port).ok())
            .filter(|port| taken.is_none_or(|taken| !taken.contains(port)));
        let ports: Vec<u16> = free.take(usize::from(wanted)).collect();
        (ports.len() == usize::from(wanted)).then_some(ports)
    }

    pub(super) fn release(&mut self, job: JobId, out: &mut Output) -> Reply {
        let lease = LeaseId::Job(job);
        if !self.leases.contains_key(&lease) {
            return Reply::Void;
        }
        out.emit(self, Event::LeaseReleased { lease });
        Reply::Done
    }

    pub(super) fn expire(&mut self, lease: LeaseId, out: &mut Output) -> Reply {
        match (&lease, self.leases.get(&lease)) {
            (LeaseId::Anonymous(_), Some(held)) if held.is_unbound() => {
                out.emit(self, Event::LeaseReleased { lease });
                Reply::Done
            }
            _ => Reply::Void,
        }
    }

    /// Take back what masters that never came back still hold. Done when somebody needs it, so that no lease needs a timer of days.
    fn reclaim(&mut self, now: Timestamp, out: &mut Output) {
        let forgotten = |lease: &Lease| lease.bound().is_none() && now.ms_since(lease.granted_at) > self.rules.job_unbound_ms;
        let jobs = self
            .leases
            .iter()
            .filter(|(id, lease)| matches!(id, LeaseId::Job(_)) && forgotten(lease));
        let forgotten: Vec<LeaseId> = jobs.map(|(id, _)| id.clone()).take(STEP_MAX).collect();
        for lease in forgotten {
            out.emit(self, Event::LeaseReleased { lease });
        }
    }
}
