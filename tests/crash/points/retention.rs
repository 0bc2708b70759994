//! Roles that let go of what ended longer ago than is kept, killed while they do: nobody waits thirty days for this, the directory says that they are
//! over.

use super::cluster::{self as of_cluster, open_of_manager};
use super::coordinator::{self as of_coordinator, points};
use super::master::{self as of_master, Scenario};
use super::paper::row_of;
use super::{at_rest, died, open_of_master, past, skipped, start_again, start_doomed};
use crate::federation::remains::History;
use crate::support::{Federation, Role};
use fedbroker::machine::cluster::{self, Cluster, Submission};
use fedbroker::machine::content::Content;
use fedbroker::machine::coordinator::{self, Coordinator};
use fedbroker::machine::ids::{JobId, PartyId, ProposalId, TaskId, TaskKey, Timestamp, TypeName};
use fedbroker::machine::master::rule::ProposalAcceptRule;
use fedbroker::machine::master::spec::{KeyHash, Provenance, Spec};
use fedbroker::machine::master::{self, Master};
use fedbroker::machine::plan::Plan;
use std::path::Path;
use std::time::Duration;

/// More than one command lets go of.
const MANY: usize = 100;
const LONG_AGO: Duration = Duration::from_secs(40 * 24 * 3600);

async fn killed_once(role: &mut Role, point: &str) {
    assert_eq!(
        row_of(point),
        "records that ended long ago are let go, at the cluster manager or the coordinator"
    );
    if start_doomed(role, point).await {
        died(role).await;
    }
    start_again(role).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_cluster_manager_with_old_tasks() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let points = of_cluster::every_point().into_iter();
    for (point, _) in points.filter(|(_, scenario)| *scenario == of_cluster::Scenario::Forgotten) {
        let data = dir.path().join(&point);
        let mut commands = vec![cluster::Command::Started];
        for n in 0..=MANY {
            let key = TaskKey::parse("job", format!("t{n:03}")).unwrap();
            let submission = Submission {
                key: key.clone(),
                task_type: TypeName::parse("dummy_trainer").unwrap(),
                content: Content::Inline(vec![1; 100]),
                fingerprint: [1; 32],
                assignee: None,
            };
            commands.push(cluster::Command::Submit(submission));
            // The last one waits for a worker that never comes.
            if n < MANY {
                let reason = "not wanted".into();
                commands.push(cluster::Command::Cancel { key, reason });
            }
        }
        let machine = || Cluster::new(cluster::Rules::default());
        past::make(&data, "cluster-manager", machine(), LONG_AGO, commands).await;
        let args = ["cluster-manager", "--port", "0", "--data-dir", data.to_str().unwrap()];
        let mut manager = Role::new("manager", dir.path(), &args);
        killed_once(&mut manager, &point).await;
        let still = |history: &History<Cluster>| {
            let tasks = history.records.keys().filter(|key| matches!(key, cluster::Key::Task(_)));
            let mut left: Vec<String> = tasks.map(|key| format!("{key:?}")).collect();
            left.retain(|name| !name.contains("t100"));
            left
        };
        let left = at_rest(&mut manager, &data, "cluster-manager", still).await;
        assert_eq!(open_of_manager(&left).len(), 1, "after {point} the task that waits is there");
        let forgotten = left
            .events
            .iter()
            .filter(|event| matches!(event, cluster::Event::TaskForgotten { .. }));
        assert_eq!(forgotten.count(), MANY, "after {point}: each once");
        left.check_replay("manager", machine());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_coordinator_with_old_verdicts() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (point, _) in points(&[of_coordinator::Scenario::Forgotten]) {
        let data = dir.path().join(&point);
        let mut commands = vec![coordinator::Command::Started];
        for n in 0..MANY {
            // Nobody is there: each is refused, which is a verdict.
            commands.push(coordinator::Command::Propose {
                job_id: JobId::parse(format!("job{n}")).unwrap(),
                job_type: TypeName::parse("dummy").unwrap(),
                tasks: vec![(TaskId::parse("t").unwrap(), Content::Inline(vec![1; 100]))],
                wait_s: 3,
                min: 1,
                max: 1,
                fingerprint: [1; 32],
                owner: None,
            });
        }
        commands.extend(long_cancelled());
        past::make(&data, "coordinator", of_coordinator::machine(), LONG_AGO, commands).await;
        let args = ["coordinator", "--port", "0", "--data-dir", data.to_str().unwrap()];
        let mut role = Role::new("coordinator", dir.path(), &args);
        killed_once(&mut role, &point).await;
        let still = |history: &History<Coordinator>| {
            let stays = |key: &&coordinator::Key| matches!(key, coordinator::Key::Counters | coordinator::Key::Party(_));
            let goes = history.records.keys().filter(|key| !stays(key));
            goes.map(|key| format!("{key:?}")).collect()
        };
        let left = at_rest(&mut role, &data, "coordinator", still).await;
        let forgotten = left
            .events
            .iter()
            .filter(|event| matches!(event, coordinator::Event::Forgotten { .. }));
        assert_eq!(forgotten.count(), MANY + 1, "after {point}: each once");
        left.check_replay("coordinator", of_coordinator::machine());
    }
}

/// A proposal with three parties that was cancelled; the last never heard of it.
fn long_cancelled() -> Vec<coordinator::Command> {
    use coordinator::Command;
    let (job, job_type) = (JobId::parse("late").unwrap(), TypeName::parse("dummy").unwrap());
    let party = |n: u64| PartyId::parse(format!("p{n}")).unwrap();
    let (instance, reason) = (|n: u64| format!("of {n}"), "not needed".to_owned());
    let mut commands: Vec<Command> = (0..3)
        .map(|n| Command::Subscribe {
            party: party(n),
            session: n + 1,
            job_types: vec![job_type.clone()],
            instance: Some(instance(n)),
        })
        .collect();
    let task = |n: u64| (TaskId::parse(format!("t{n}")).unwrap(), Content::Inline(vec![1; 100]));
    commands.push(Command::Propose {
        job_id: job.clone(),
        job_type: job_type.clone(),
        tasks: (0..3).map(task).collect(),
        wait_s: 60,
        min: 3,
        max: 3,
        fingerprint: [1; 32],
        owner: Some("me".to_owned()),
    });
    let proposal = ProposalId::parse(format!("late-coo_{}", MANY + 1)).unwrap();
    commands.extend((0..3).map(|n| Command::Fetch {
        party: party(n),
        proposal: proposal.clone(),
    }));
    commands.push(Command::Close { job: job.clone() });
    commands.push(Command::Cancel {
        job: job.clone(),
        job_type,
        owner: "me".to_owned(),
        reason: reason.clone(),
    });
    commands.push(Command::Stop {
        job: job.clone(),
        party: party(2),
        reason,
    });
    commands.push(Command::Expire { job });
    commands
}

/// What a master did long ago: proposals that it lost, and jobs that were cancelled and purged, with a key each.
fn old_history() -> Vec<master::Command> {
    let mut commands = Vec::new();
    for n in 1..=MANY {
        let proposal = ProposalId::parse(format!("p{n:03}")).unwrap();
        let job_type = TypeName::parse("dummy").unwrap();
        commands.push(master::Command::Offered {
            proposal: proposal.clone(),
            job_type,
        });
        let result = Err("drawn out".to_owned());
        commands.push(master::Command::Fetched { proposal, result });
        let config = Content::Inline(b"{}".to_vec());
        let plan = Plan {
            endpoints: 0,
            workers: 0,
            wait_s: 0,
        };
        let plain = Spec::plain(TypeName::parse("dummy").unwrap(), config, None, plan);
        let spec = Spec {
            not_before: Some(Timestamp(u64::MAX / 2)),
            ..plain
        };
        let provenance = Provenance {
            key: Some(KeyHash([u8::try_from(n).unwrap(); 32])),
            ..Provenance::unknown()
        };
        let fingerprint = [1; 32];
        let job = JobId::parse(format!("p1-{}-{n}", past::STAMP)).unwrap();
        commands.push(master::Command::Submit {
            spec,
            provenance,
            fingerprint,
        });
        let reason = String::new();
        commands.push(master::Command::Cancel { job: job.clone(), reason });
        let (tasks, parties) = (Vec::new(), Vec::new());
        let purged = job.clone();
        commands.push(master::Command::Purge {
            job: purged,
            tasks,
            parties,
        });
        commands.push(master::Command::Forgotten { job });
    }
    commands
}

/// A directory once more.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

pub fn rules() -> master::Rules {
    master::Rules {
        party: PartyId::parse("p1").unwrap(),
        accept: ProposalAcceptRule::default(),
        propose_again: false,
        submit_tries: 10,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_master_with_old_proposals_and_keys() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("old");
    past::make(&old, "master", Master::new(rules()), LONG_AGO, old_history()).await;
    for (point, _) in of_master::every_point()
        .into_iter()
        .filter(|(_, scenario)| *scenario == Scenario::Old)
    {
        assert_eq!(
            row_of(&point),
            "proposals and used keys that ended long ago are let go, at the master"
        );
        let mut federation = Federation::planned(1, &[], &[]);
        federation.coordinator.start().await;
        let data = federation.dir.path().join("p1-master");
        copy(&old, &data);
        let party = &mut federation.parties[0];
        party.manager.start().await;
        if start_doomed(&mut party.master, &point).await {
            died(&mut party.master).await;
        }
        start_again(&mut party.master).await;
        let still = |history: &History<Master>| {
            let old = |key: &&master::Key| matches!(key, master::Key::Participation(_) | master::Key::Submission(_));
            let left = history.records.keys().filter(old).map(|key| format!("{key:?}"));
            left.chain(open_of_master(history)).collect()
        };
        let left = at_rest(&mut party.master, &data, "master", still).await;
        let times = |fits: fn(&master::Event) -> bool| left.events.iter().filter(|event| fits(event)).count();
        let proposals = times(|event| matches!(event, master::Event::ProposalPurged { .. }));
        let keys = times(|event| matches!(event, master::Event::KeyDropped { .. }));
        assert_eq!((proposals, keys), (MANY, MANY), "after {point}: each once");
        left.check_replay("p1", Master::new(rules()));
    }
}
