//! Calls between roles: how long they take, how they end, and how often a lasting connection had to be made again.
//!
//! Filled by `wire::metered` for every call, by the roles for what only they know. A peer is named by its role, never by its address.

use super::{CALL_SECONDS, Count, Families, Of};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use std::time::Instant;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Called {
    peer: &'static str,
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Calling {
    peer: &'static str,
    method: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Served {
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Serving {
    method: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Peer {
    peer: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Retry {
    peer: &'static str,
    reason: &'static str,
}

type Times<L> = Family<L, Histogram, fn() -> Histogram>;

fn times<L: Clone + std::hash::Hash + Eq>() -> Times<L> {
    Family::new_with_constructor(|| Histogram::new(CALL_SECONDS))
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peers {
    called: Times<Called>,
    calling: Family<Calling, Gauge>,
    served: Times<Served>,
    serving: Family<Serving, Gauge>,
    connected: Family<Peer, Gauge>,
    reconnects: Family<Peer, Counter>,
    retries: Family<Retry, Counter>,
}

impl Peers {
    pub(super) fn new(families: &mut Families) -> Self {
        let new = Self {
            called: times(),
            calling: Family::default(),
            served: times(),
            serving: Family::default(),
            connected: Family::default(),
            reconnects: Family::default(),
            retries: Family::default(),
        };
        let help = "gRPC calls to other roles, a stream's whole life";
        let labels = &["peer", "method", "code"];
        families.histogram("fedbroker_rpc_client_duration", Of::Seconds, labels, help, new.called.clone());
        let help = "gRPC calls to other roles that are under way";
        let labels = &["peer", "method"];
        families.gauge("fedbroker_rpc_client_in_flight", Of::Number, labels, help, new.calling.clone());
        let help = "gRPC calls from other roles, a stream's whole life";
        let labels = &["method", "code"];
        families.histogram("fedbroker_rpc_server_duration", Of::Seconds, labels, help, new.served.clone());
        let help = "gRPC calls from other roles that are under way";
        families.gauge("fedbroker_rpc_server_in_flight", Of::Number, &["method"], help, new.serving.clone());
        let help = "1 while the lasting connection to the peer stands";
        families.gauge("fedbroker_peer_connected", Of::Number, &["peer"], help, new.connected.clone());
        let help = "How often a lasting connection was begun again, after it had ended or could not be made";
        families.counter("fedbroker_peer_reconnects", &["peer"], help, new.reconnects.clone());
        let help = "Calls to be made again, because nobody answered or it could not be done now";
        families.counter("fedbroker_peer_retries", &["peer", "reason"], help, new.retries.clone());
        new
    }

    /// A call to a peer begins. The method is one of the program's own names.
    pub fn call(&self, peer: &'static str, method: &'static str) -> Call {
        let in_flight = self.calling.get_or_create_owned(&Calling { peer, method });
        Call::begin(Side::Client(self.called.clone(), peer), method, in_flight)
    }

    /// A call from a peer begins.
    pub fn serve(&self, method: &'static str) -> Call {
        let in_flight = self.serving.get_or_create_owned(&Serving { method });
        Call::begin(Side::Server(self.served.clone()), method, in_flight)
    }

    /// Whether the lasting connection to a peer stands.
    pub fn connected(&self, peer: &'static str, connected: bool) {
        self.connected.get_or_create(&Peer { peer }).set(i64::from(connected));
    }

    /// A lasting connection is begun again.
    pub fn reconnects(&self, peer: &'static str) -> Count {
        Count(self.reconnects.get_or_create_owned(&Peer { peer }))
    }

    /// A call is to be made again: nobody answered it.
    pub fn unanswered(&self, peer: &'static str) {
        self.retry(peer, "unanswered");
    }

    /// A call is to be made again: the peer said that it cannot be done now.
    pub fn not_now(&self, peer: &'static str) {
        self.retry(peer, "not_now");
    }

    fn retry(&self, peer: &'static str, reason: &'static str) {
        self.retries.get_or_create(&Retry { peer, reason }).inc();
    }
}

#[derive(Debug)]
enum Side {
    Client(Times<Called>, &'static str),
    Server(Times<Served>),
}

/// A call under way. Dropped without [`Call::end`], it was given up by its caller.
#[derive(Debug)]
pub struct Call {
    side: Side,
    method: &'static str,
    began: Instant,
    in_flight: Gauge,
    code: Option<&'static str>,
}

impl Call {
    fn begin(side: Side, method: &'static str, in_flight: Gauge) -> Self {
        in_flight.inc();
        Self {
            side,
            method,
            began: Instant::now(),
            in_flight,
            code: None,
        }
    }

    /// It ended with this code, in gRPC's own words. The first one counts.
    pub fn end(&mut self, code: &'static str) {
        if self.code.is_none() {
            self.code = Some(code);
            self.count(code);
        }
    }

    fn count(&self, code: &'static str) {
        self.in_flight.dec();
        let (took, method) = (self.began.elapsed().as_secs_f64(), self.method);
        match &self.side {
            Side::Client(times, peer) => times.get_or_create(&Called { peer, method, code }).observe(took),
            Side::Server(times) => times.get_or_create(&Served { method, code }).observe(took),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.code.is_none() {
            self.count("CANCELLED");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;

    #[test]
    fn a_call_is_counted_once_and_one_given_up_as_cancelled() {
        let metrics = Metrics::new();
        let mut call = metrics.peers().call("coordinator", "Proposal");
        let given_up = metrics.peers().serve("Fetch");
        assert!(
            metrics
                .text()
                .contains("fedbroker_rpc_client_in_flight{peer=\"coordinator\",method=\"Proposal\"} 1\n")
        );
        call.end("OK");
        call.end("UNKNOWN");
        drop((call, given_up));
        let text = metrics.text();
        for line in [
            "fedbroker_rpc_client_in_flight{peer=\"coordinator\",method=\"Proposal\"} 0\n",
            "fedbroker_rpc_client_duration_seconds_count{peer=\"coordinator\",method=\"Proposal\",code=\"OK\"} 1\n",
            "fedbroker_rpc_server_duration_seconds_count{method=\"Fetch\",code=\"CANCELLED\"} 1\n",
            "fedbroker_rpc_server_in_flight{method=\"Fetch\"} 0\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        assert!(!text.contains("UNKNOWN"), "{text}");
    }
}
