//! How a party's task ended reaches the initiator, however often the report is lost on the way to the coordinator or its answer on the way back.

use crate::support::Federation;
use axum::body::Body;
use axum::extract::Request;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codegen::Service;
use tonic::service::Routes;
use tonic::transport::{Endpoint, Server};

/// Reports that come through, but for the answer, and those before that get lost.
const LOST: usize = 2;
const UNANSWERED: usize = 2;

/// Passes on every call to a coordinator, and loses the first reports of tasks, then the answers of the next ones; gives its address.
#[expect(clippy::disallowed_methods, reason = "a proxy of the test's own")]
async fn lossy(to: &str, reports: Arc<AtomicUsize>) -> String {
    let channel = Endpoint::from_shared(format!("http://{to}")).unwrap().connect_lazy();
    let pass = move |request: Request| {
        let (mut channel, reports) = (channel.clone(), reports.clone());
        async move {
            let lost = || tonic::Status::unavailable("lost on the way").into_http::<Body>();
            let is_report = request.uri().path() == "/fedbroker.v1.Federation/ReportTask";
            let earlier = if is_report {
                reports.fetch_add(1, Ordering::SeqCst)
            } else {
                usize::MAX
            };
            if earlier < LOST {
                return lost();
            }
            std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
            match channel.call(request.map(tonic::body::Body::new)).await {
                Ok(_) if earlier < LOST + UNANSWERED => lost(),
                Ok(answer) => answer.map(Body::new),
                Err(_) => lost(),
            }
        }
    };
    let routes = Routes::from(axum::Router::new().fallback(pass));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = Server::builder().add_routes(routes);
    tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_is_lost_comes_again_until_it_is_answered() {
    let mut federation = Federation::planned(2, &[], &[]);
    let reports = Arc::new(AtomicUsize::new(0));
    let proxy = lossy(&federation.coordinator.address, reports.clone()).await;
    federation.parties[1].master.set_flag("--coordinator-address", &proxy);
    federation.start_all().await;
    let (initiator, other) = (federation.client(0), federation.client(1));
    let config = json!({ "worker_num": 2, "proposal_wait_time": 2 });
    let job = initiator.submit("dummy", &config).await;
    let told = |job: &Value| {
        let parties = job["parties"].as_array().into_iter().flatten();
        parties.filter(|party| party["state"] == "success").count() == 2
    };
    initiator.until(&format!("/api/v1/jobs/{job}"), told).await;
    // Its party is not done before it was answered.
    let sent = |page: &Value| {
        let events = page["items"].as_array().into_iter().flatten();
        events.filter(|event| event["type"] == "report_sent").count() > 0
    };
    other.until("/api/v1/events?limit=1000", sent).await;
    let calls = reports.load(Ordering::SeqCst);
    assert!(calls > LOST + UNANSWERED, "{calls} calls");
}
