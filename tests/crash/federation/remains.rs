//! What is left on disk when every process is gone: records and events of each durable role, read with the library.

use super::load::{Ledger, Submission};
use crate::support::{Federation, beginning};
use fedbroker::engine::reader::Reader;
use fedbroker::machine::cluster::records::Task as ClusterTask;
use fedbroker::machine::cluster::{self, Cluster};
use fedbroker::machine::content::{Content, PayloadRef};
use fedbroker::machine::coordinator::{self, Coordinator};
use fedbroker::machine::ids::{JobId, PartyId, ProposalId, TaskKey};
use fedbroker::machine::master::records::{Job, Participation, ParticipationState, Task, TaskState};
use fedbroker::machine::master::{self, Master, rule::ProposalAcceptRule};
use fedbroker::machine::{Changes, Machine};
use fedbroker::store::directory::Directory;
use fedbroker::store::payload::Payloads;
use fedbroker::store::sled_store::SledStore;
use fedbroker::store::{Store, codec};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

/// Records and events of one role.
pub struct History<M: Machine> {
    /// All records, live and ended.
    pub records: BTreeMap<M::Key, M::Record>,
    /// All events.
    pub events: Vec<M::Event>,
    /// How many records refer to each payload file, as the store counts them.
    counts: HashMap<PayloadRef, u32>,
    payloads: Payloads,
}

impl<M: Machine> History<M> {
    /// Read a data directory that no process has open.
    pub fn read(dir: &Path, role: &str) -> Self {
        let _alone = beginning();
        let directory = Directory::open(dir, role, [0; 16]).unwrap();
        let payloads = Payloads::open(&directory.payload_dir(), 1 << 30).unwrap();
        let store = Arc::new(SledStore::open(&directory).unwrap());
        let counts = store.scan(b"p", None, usize::MAX).unwrap();
        let counts = counts.into_iter().map(|(_, value)| codec::decode(&value).unwrap()).collect();
        let reader = Reader::<M>::new(store);
        let mut records = BTreeMap::new();
        let each = |key: M::Key, record| {
            assert!(
                records.insert(key.clone(), record).is_none(),
                "{role}: {key:?} is both live and ended"
            );
            true
        };
        reader.scan(b"", each).unwrap();
        let mut events = Vec::new();
        loop {
            let page = reader.events(events.len() as u64 + 1, 1000).unwrap();
            if page.is_empty() {
                break;
            }
            events.extend(page.into_iter().map(|(_, event)| event));
        }
        Self {
            records,
            events,
            counts,
            payloads,
        }
    }

    /// The bytes of a record's content.
    pub fn content(&self, content: &Content) -> Vec<u8> {
        match content {
            Content::Inline(bytes) => bytes.clone(),
            Content::Stored(payload) => self.payloads.get(payload).unwrap(),
        }
    }

    /// All events once more, in a fresh machine, must give all records and nothing else; payload files are counted as the records refer to them.
    pub fn check_replay(&self, who: &str, mut machine: M) {
        let mut changes = Changes::default();
        for event in &self.events {
            changes.seq += 1;
            machine.apply(event, &mut changes);
        }
        for key in changes.keys.iter().chain(self.records.keys()) {
            assert_eq!(
                machine.record(key).as_ref(),
                self.records.get(key),
                "{who}: the events say otherwise than the record {key:?}"
            );
        }
        let mut counts: HashMap<PayloadRef, u32> = HashMap::new();
        for payload in self.records.values().flat_map(M::payloads) {
            assert!(self.payloads.get(&payload).is_ok(), "{who}: the file of {payload:?} is gone");
            *counts.entry(payload).or_default() += 1;
        }
        assert_eq!(counts, self.counts, "{who}: references to payload files");
    }
}

/// One party's remains.
pub struct PartyRemains {
    /// Its id.
    pub id: String,
    /// Its master.
    pub master: History<Master>,
    /// Its cluster manager.
    pub cluster: History<Cluster>,
}

impl PartyRemains {
    /// The jobs of its master.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.master.records.values().filter_map(|record| match record {
            master::Record::Job(job) => Some(job),
            _ => None,
        })
    }

    /// The task queue of its master.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.master.records.values().filter_map(|record| match record {
            master::Record::Task(task) => Some(task),
            _ => None,
        })
    }

    /// The proposals its master was offered.
    pub fn participations(&self) -> impl Iterator<Item = &Participation> {
        self.master.records.values().filter_map(|record| match record {
            master::Record::Participation(participation) => Some(participation),
            _ => None,
        })
    }

    /// What its master did about a proposal.
    pub fn participation(&self, proposal: &ProposalId) -> Option<&ParticipationState> {
        match self.master.records.get(&master::Key::Participation(proposal.clone())) {
            Some(master::Record::Participation(participation)) => Some(&participation.state),
            _ => None,
        }
    }

    /// The tasks of its cluster manager.
    pub fn cluster_tasks(&self) -> impl Iterator<Item = (&TaskKey, &ClusterTask)> {
        self.cluster.records.iter().filter_map(|(key, record)| match (key, record) {
            (cluster::Key::Task(key), cluster::Record::Task(task)) => Some((key, &**task)),
            _ => None,
        })
    }

    /// Their events give their records.
    pub fn check_replay(&self) {
        let rules = master::Rules {
            party: PartyId::parse(self.id.clone()).unwrap(),
            accept: ProposalAcceptRule::default(),
            propose_again: false,
            submit_tries: 10,
        };
        self.master.check_replay(&format!("{} master", self.id), Master::new(rules));
        let machine = Cluster::new(cluster::Rules::default());
        self.cluster.check_replay(&format!("{} manager", self.id), machine);
    }
}

/// Everything that is left.
pub struct Remains {
    /// The coordinator.
    pub coordinator: History<Coordinator>,
    /// The parties.
    pub parties: Vec<PartyRemains>,
    /// All submissions.
    pub submissions: Vec<Submission>,
}

impl Remains {
    /// Read all stores; no process may have them open.
    pub fn read(federation: &Federation, ledger: &Ledger) -> Self {
        let dir = federation.dir.path();
        let parties = federation.parties.iter().map(|party| PartyRemains {
            id: party.id.clone(),
            master: History::read(&dir.join(format!("{}-master", party.id)), "master"),
            cluster: History::read(&dir.join(format!("{}-manager", party.id)), "cluster-manager"),
        });
        Self {
            coordinator: History::read(&dir.join("coordinator"), "coordinator"),
            parties: parties.collect(),
            submissions: ledger.lock().unwrap().clone(),
        }
    }

    /// The coordinator's record of a job's proposal.
    pub fn proposal(&self, job: &JobId) -> Option<&coordinator::Proposal> {
        match self.coordinator.records.get(&coordinator::Key::Proposal(job.clone())) {
            Some(coordinator::Record::Proposal(proposal)) => Some(proposal),
            _ => None,
        }
    }

    /// Who got which task of a job's proposal.
    pub fn chosen(&self, job: &JobId) -> Vec<(PartyId, u32)> {
        let chosen = |(key, record): (&coordinator::Key, &coordinator::Record)| match (key, record) {
            (coordinator::Key::Participant(of, party), coordinator::Record::Participant(participant)) if of == job => {
                participant.chosen.map(|index| (party.clone(), index))
            }
            _ => None,
        };
        self.coordinator.records.iter().filter_map(chosen).collect()
    }

    /// What has not come to its end yet.
    pub fn unsettled(&self) -> Vec<String> {
        let mut open = Vec::new();
        for party in &self.parties {
            let jobs = party.jobs().filter(|job| !job.state.is_final() || job.lease.is_some());
            open.extend(jobs.map(|job| format!("job {}: {:?}, {:?}", job.id, job.state, job.note)));
            let tasks = party.tasks().filter(|task| !matches!(task.state, TaskState::Ended(_)));
            open.extend(tasks.map(|task| format!("task {} of {}'s master: {:?}", task.key, party.id, task.state)));
            let offered = party.participations().filter(|p| p.state == ParticipationState::Offered);
            open.extend(offered.map(|p| format!("proposal {} at {}", p.proposal, party.id)));
            let tasks = party.cluster_tasks().filter(|(_, task)| !task.is_ended());
            open.extend(tasks.map(|(key, task)| format!("task {key} of {}'s manager: {:?}", party.id, task.state)));
        }
        open
    }

    /// For every role: the events say what the records say.
    pub fn check_replay(&self) {
        let rules = coordinator::Rules {
            settle_ms: 0,
            party_lease_ms: 0,
            keep_closed_ms: 0,
        };
        self.coordinator.check_replay("coordinator", Coordinator::new(rules));
        self.parties.iter().for_each(PartyRemains::check_replay);
    }
}
