//! What `/api/v1` says to bad requests: a problem with a stable code, and never a 500.

use super::{Http, master};

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_below_api_v1_is_a_problem() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let http = Http::new(&master.address);
    let cases = [
        ("GET", "/api/v1", 404, "route_not_found", ""),
        ("GET", "/api/v1/", 404, "route_not_found", ""),
        ("POST", "/api/v1/nope/%ff", 404, "route_not_found", ""),
        ("GET", "/api/v1/jobs/", 404, "route_not_found", ""),
        ("GET", "/api/v1/jobs/nope", 404, "job_not_found", ""),
        ("GET", "/api/v1/jobs/..%2f..%2fetc%2fpasswd", 404, "job_not_found", ""),
        ("GET", "/api/v1/jobs/%00%1b%5b2J", 404, "job_not_found", ""),
        ("GET", "/api/v1/jobs/%ff", 400, "invalid_path", ""),
        ("GET", "/api/v1/jobs/nope?fiels=a", 400, "unknown_parameter", "?fiels"),
        ("GET", "/api/v1/jobs/a/tasks/%ff", 400, "invalid_path", ""),
        ("GET", "/api/v1/jobs/a/tasks/b", 404, "task_not_found", ""),
        ("GET", "/api/v1/jobs/a/tasks?job_id=b", 400, "unknown_parameter", "?job_id"),
        ("GET", "/api/v1/proposals/a", 404, "proposal_not_found", ""),
        ("PATCH", "/api/v1/status", 405, "method_not_allowed", ""),
        ("PUT", "/api/v1/jobs/nope", 405, "method_not_allowed", ""),
        ("GET", "/api/v1/backup", 405, "method_not_allowed", ""),
        ("GET", "/api/v1/tasks?state=nope", 400, "invalid_parameter", "?state"),
        ("GET", "/api/v1/tasks?limit=0", 400, "invalid_parameter", "?limit"),
        ("GET", "/api/v1/tasks?limit=501", 400, "invalid_parameter", "?limit"),
        ("GET", "/api/v1/tasks?limit=5&limit=6", 400, "invalid_parameter", "?limit"),
        ("GET", "/api/v1/tasks?cursor=nope", 400, "invalid_cursor", "?cursor"),
        ("GET", "/api/v1/tasks?%ff=1", 400, "invalid_parameter", ""),
        ("GET", "/api/v1/proposals?state=running", 400, "invalid_parameter", "?state"),
        ("GET", "/api/v1/status?verbose", 400, "unknown_parameter", "?verbose"),
        ("GET", "/readyz?exclude=disk", 400, "unknown_parameter", "?exclude"),
        ("GET", "/livez?verbose&verbose", 400, "invalid_parameter", "?verbose"),
        (
            "GET",
            "/api/v1/jobs?created_after=9999-12-31T00:00:00Z",
            400,
            "invalid_parameter",
            "?created_after",
        ),
    ];
    for (method, path, status, code, pointer) in cases {
        let answer = http.send(method, path, &[], "").await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        assert_eq!(answer.problem(path), (code.to_owned(), pointer.to_owned()), "{method} {path}");
    }
    // The other doors keep their own words.
    for path in ["/", "/api", "/api/v1x", "/apis/v1/jobs"] {
        assert_eq!(http.get(path).await.text(), "404: Not Found", "{path}");
    }
    assert_eq!(http.get("/submit").await.text(), "405: Method Not Allowed");
}
