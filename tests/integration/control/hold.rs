//! What a job leaves behind is waited for before anything else of it begins, or is said to be over: a compile step that does not want to end.

use super::{closed, made, until_state};
use crate::gated;
use crate::support::Federation;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const MANIFEST: &str = r#"
timeout_seconds = 120
[compile]
argv = ["/bin/sh", "{program_dir}/run.sh", "{program_dir}"]
[trainer]
argv = ["/bin/true"]
[aggregator]
argv = ["/bin/true"]
"#;

/// Minds no SIGTERM, and says so when an earlier run is still there.
const SCRIPT: &str = r#"
trap '' TERM
home=$1
for pid in $(cat "$home/ran" 2>/dev/null); do
    if kill -0 "$pid" 2>/dev/null; then echo "$pid is still there" >> "$home/met"; fi
done
echo $$ >> "$home/ran"
while [ -e "$home/shut" ]; do sleep 0.05; done
"#;

struct Stubborn(PathBuf);

impl Stubborn {
    fn install(programs: &Path) -> Self {
        let dir = programs.join("stubborn");
        std::fs::create_dir_all(&dir).unwrap();
        for (name, text) in [("program.toml", MANIFEST), ("run.sh", SCRIPT), ("shut", "")] {
            std::fs::write(dir.join(name), text).unwrap();
        }
        Self(dir)
    }

    fn ran(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.0.join("ran")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    async fn until_runs(&self, times: usize) {
        gated::until(&format!("{times} compile steps have begun"), || self.ran().len() >= times).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_two_compile_steps_of_a_job_run_at_once_and_none_after_its_end() {
    let mut federation = Federation::start(1).await;
    let program = Stubborn::install(&federation.dir.path().join("programs"));
    let client = federation.client(0);
    let config = json!({ "program": "stubborn", "worker_num": 1, "proposal_wait_time": 1, "endpoints": 0 });
    let job = made(&client, &json!({ "job_type": "program", "job_config": config })).await;
    program.until_runs(1).await;
    for action in ["hold", "release"] {
        let (status, body) = client.post(&format!("/api/v1/jobs/{job}:{action}"), &json!({})).await.unwrap();
        assert_eq!(status, 200, "{body}");
    }
    // The second begins once the first is dead, which takes a SIGKILL.
    program.until_runs(2).await;
    // And so over a kill of the master.
    federation.parties[0].master.kill_and_start().await;
    program.until_runs(3).await;
    let (status, body) = client.post(&format!("/api/v1/jobs/{job}:cancel"), &json!({})).await.unwrap();
    assert_eq!(
        (status, &body["state"], &body["live"]),
        (200, &json!("cancelled"), &json!(true)),
        "{body}"
    );
    let (_, body) = client.get(&format!("/api/v1/jobs/{job}?wait=60s&until=closed")).await.unwrap();
    assert_eq!(body["live"], false, "{body}");
    let ran = program.ran();
    assert!(ran.iter().all(|pid| !gated::alive(pid)), "{ran:?}");
    assert_eq!(ran.len(), 3);
    let met = std::fs::read_to_string(program.0.join("met")).unwrap_or_default();
    assert_eq!(met, "");
    // Nothing of it is in the way of the next one.
    std::fs::remove_file(program.0.join("shut")).unwrap();
    let (status, again) = client.post(&format!("/api/v1/jobs/{job}:rerun"), &json!({})).await.unwrap();
    assert_eq!(status, 201, "{again}");
    let again = again["job_id"].as_str().unwrap();
    until_state(&client, again, "success").await;
    let ended: Value = closed(&client, again).await;
    assert_eq!(ended["state"], "success", "{ended}");
}
