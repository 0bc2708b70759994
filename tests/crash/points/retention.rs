//! Roles that let go of what ended longer ago than is kept, killed while they do: nobody waits thirty days for this, the directory says that they are
//! over.

use super::cluster::{self as of_cluster, open_of_manager};
use super::coordinator::{self as of_coordinator, points};
use super::paper::row_of;
use super::{at_rest, died, past, skipped, start_again, start_doomed};
use crate::federation::remains::History;
use crate::support::Role;
use fedbroker::machine::cluster::{self, Cluster, Submission};
use fedbroker::machine::content::Content;
use fedbroker::machine::coordinator::{self, Coordinator};
use fedbroker::machine::ids::{JobId, TaskId, TaskKey, TypeName};
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
        past::make(&data, "coordinator", of_coordinator::machine(), LONG_AGO, commands).await;
        let args = ["coordinator", "--port", "0", "--data-dir", data.to_str().unwrap()];
        let mut role = Role::new("coordinator", dir.path(), &args);
        killed_once(&mut role, &point).await;
        let still = |history: &History<Coordinator>| {
            let proposals = history.records.keys().filter(|key| matches!(key, coordinator::Key::Proposal(_)));
            proposals.map(|key| format!("{key:?}")).collect()
        };
        let left = at_rest(&mut role, &data, "coordinator", still).await;
        let forgotten = left
            .events
            .iter()
            .filter(|event| matches!(event, coordinator::Event::Forgotten { .. }));
        assert_eq!(forgotten.count(), MANY, "after {point}: each once");
        left.check_replay("coordinator", of_coordinator::machine());
    }
}
