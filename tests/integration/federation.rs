//! Jobs from REST to their end through real processes of all roles.

use crate::support::Federation;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_dummy_job_runs_from_rest_to_success() {
    let federation = Federation::start(2).await;
    let client = federation.client(0);
    let job = client.submit("dummy", &json!({ "worker_num": 2, "proposal_wait_time": 1 })).await;
    let ended = client.ended(&job).await;
    assert_eq!(ended["state"], "success", "{ended}");
    let (_, answer) = client.post("/query", &json!({ "job_id": job })).await.unwrap();
    assert_eq!(answer, json!({ "job_id": job, "status": "_JobStatus.SUCCESS" }));
}
