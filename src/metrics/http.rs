//! Requests of users at the REST door.

use super::{CALL_SECONDS, Families, Of};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use std::time::Duration;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    /// The template of the route, not the path: paths have ids in them.
    route: String,
    method: &'static str,
    status: u16,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Http {
    requests: Family<Request, Histogram, fn() -> Histogram>,
    sse: Gauge,
}

impl Http {
    pub(super) fn new(families: &mut Families) -> Self {
        let new = Self {
            requests: Family::new_with_constructor(|| Histogram::new(CALL_SECONDS)),
            sse: Gauge::default(),
        };
        let help = "HTTP requests, until the head of the answer";
        let labels = &["route", "method", "status"];
        families.histogram("fedbroker_http_request_duration", Of::Seconds, labels, help, new.requests.clone());
        let help = "Clients that follow events now";
        families.gauge("fedbroker_sse_clients", Of::Number, &[], help, new.sse.clone());
        new
    }

    /// A request was answered. `route` is the template of a route there is, or one word for all that have none; a method is a client's to
    /// choose, so those that are no usual ones are one.
    pub fn answered(&self, route: &str, method: &str, status: u16, took: Duration) {
        const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
        let method = METHODS.into_iter().find(|known| *known == method).unwrap_or("other");
        let request = Request {
            route: route.to_owned(),
            method,
            status,
        };
        self.requests.get_or_create(&request).observe(took.as_secs_f64());
    }

    /// A client begins to follow events; it counts until the guard is dropped, so keep that in its stream.
    pub fn sse_client(&self) -> SseClient {
        self.sse.inc();
        SseClient(self.sse.clone())
    }
}

/// A client that follows events.
#[derive(Debug)]
#[must_use = "the client counts as long as this lives"]
pub struct SseClient(Gauge);

impl Drop for SseClient {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use std::time::Duration;

    #[test]
    fn followers_are_counted_while_they_follow() {
        let metrics = Metrics::new();
        let shown = |count: u32| metrics.text().contains(&format!("\nfedbroker_sse_clients {count}\n"));
        let first = metrics.http().sse_client();
        let second = metrics.http().sse_client();
        assert!(shown(2));
        drop(first);
        assert!(shown(1));
        drop(second);
        assert!(shown(0));
    }

    #[test]
    fn a_method_that_a_client_made_up_is_no_label() {
        let metrics = Metrics::new();
        for method in ["GET", "BREW", "WHATEVER"] {
            metrics.http().answered("/x", method, 405, Duration::ZERO);
        }
        let text = metrics.text();
        assert!(text.contains("_count{route=\"/x\",method=\"other\",status=\"405\"} 2\n"), "{text}");
        assert!(!text.contains("BREW"), "{text}");
    }
}
