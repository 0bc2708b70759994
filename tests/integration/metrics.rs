//! The metrics of real processes of every role, read as strictly as a scraper would, while a job runs.

use crate::gated::{self, Gated};
use crate::support::{Client, DEADLINE, Federation, Role, free_ports};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A sample: its name with its labels as they were written, and its value.
type Samples = BTreeMap<String, f64>;

/// What one family was said to be.
#[derive(Debug, Default, PartialEq)]
struct Family {
    kind: String,
    help: bool,
    unit: Option<String>,
}

/// One exposition that kept the rules.
#[derive(Debug)]
struct Scrape {
    families: BTreeMap<String, Family>,
    samples: Samples,
}

impl Scrape {
    fn of(text: &str) -> Self {
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut samples = Samples::new();
        let mut current = String::new();
        let body = text.strip_suffix("# EOF\n").expect("it ends with EOF");
        for line in body.lines() {
            assert!(!line.contains("# EOF") && line == line.trim(), "{line:?}");
            if let Some(rest) = line.strip_prefix("# ") {
                let [word, name, said] = rest.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                    panic!("{line}")
                };
                let new = name != current;
                assert!(!new || !families.contains_key(name), "{name} comes twice, apart");
                name.clone_into(&mut current);
                let family = families.entry(name.to_owned()).or_default();
                match word {
                    "HELP" => assert!(!std::mem::replace(&mut family.help, true) && said.len() > 10, "{line}"),
                    "TYPE" => assert!(std::mem::replace(&mut family.kind, said.to_owned()).is_empty(), "{line}"),
                    "UNIT" => assert_eq!(family.unit.replace(said.to_owned()), None, "{line}"),
                    _ => panic!("{line}"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
            let name = series.split('{').next().unwrap();
            let suffix = name
                .strip_prefix(current.as_str())
                .unwrap_or_else(|| panic!("{line} is not of {current}"));
            let suffixes: &[&str] = match families[&current].kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_sum", "_count", "_bucket"],
                other => panic!("{current} is of the type {other:?}"),
            };
            assert!(suffixes.contains(&suffix), "{line}");
            check_labels(line, series.strip_prefix(name).unwrap());
            assert!(samples.insert(series.to_owned(), value).is_none(), "{series} comes twice");
        }
        let scrape = Self { families, samples };
        scrape.check();
        scrape
    }

    /// What `promtool check metrics` looks at, and that buckets add up.
    fn check(&self) {
        for (name, Family { kind, help, unit }) in &self.families {
            assert!(*help, "{name} has no help");
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(name.chars().all(plain) && !name.contains("__"), "{name}");
            assert!(name.starts_with("fedbroker_") || name.starts_with("process_"), "{name}");
            for end in ["_total", "_count", "_sum", "_bucket"] {
                assert!(!name.ends_with(end), "{name} ends like a sample of another family");
            }
            for odd in ["_ms", "_milliseconds", "_us", "_minutes", "_kilobytes", "_mb", "_mib", "_percent"] {
                assert!(!name.ends_with(odd), "{name} is not in base units");
            }
            match unit.as_deref() {
                Some(unit) => assert!(name.ends_with(&format!("_{unit}")), "{name} lacks its unit {unit}"),
                None => assert!(
                    !name.ends_with("_seconds") && !name.ends_with("_bytes"),
                    "{name} does not say its unit"
                ),
            }
            assert!(!name.contains(kind.as_str()), "{name} says its type");
        }
        let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for (series, value) in &self.samples {
            assert!(value.is_finite() && *value >= 0.0, "{series} {value}");
            let Some((name, labels)) = series.split_once("_bucket{") else {
                continue;
            };
            let labels: Vec<&str> = labels.trim_end_matches('}').split(',').collect();
            let (bound, others): (Vec<&str>, Vec<&str>) = labels.iter().partition(|label| label.starts_with("le=\""));
            let bound = bound[0].trim_start_matches("le=").trim_matches('"').replace("+Inf", "inf");
            let others = if others.is_empty() {
                String::new()
            } else {
                format!("{{{}}}", others.join(","))
            };
            let total = format!("{name}_count{others}");
            buckets.entry(total).or_default().push((bound.parse().unwrap(), *value));
        }
        for (total, mut counts) in buckets {
            counts.sort_by(|one, other| one.0.total_cmp(&other.0));
            assert!(counts.windows(2).all(|two| two[0].1 <= two[1].1), "{total}: {counts:?}");
            let (last, all) = counts.last().unwrap();
            assert!(last.is_infinite() && self.samples[&total] == *all, "{total}: {counts:?}");
        }
    }

    /// The sum of the samples that begin so and have all these labels.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let of = |series: &str| series.split('{').next() == Some(name) && labels.iter().all(|label| series.contains(label));
        self.samples.iter().filter(|(series, _)| of(series)).map(|(_, value)| value).sum()
    }
}

fn check_labels(line: &str, labels: &str) {
    if labels.is_empty() {
        return;
    }
    let inside = labels.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).expect(line);
    let mut names = BTreeSet::new();
    for label in inside.split("\",").map(|label| label.trim_end_matches('"')) {
        let (name, value) = label.split_once("=\"").expect(line);
        assert!(names.insert(name) && !value.contains(['"', '\\', '\n']), "{line}");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
        // What has ids in it: a job's, a task's, a party's.
        for id in ["p1-2", "aggregator", "p1-worker", "/api/v1/jobs/p1"] {
            assert!(!value.contains(id), "{line} has an id in it");
        }
    }
}

/// The roles of one party and the coordinator, with where their metrics are.
struct Watched {
    federation: Federation,
    addresses: BTreeMap<&'static str, String>,
}

impl Watched {
    async fn start() -> Self {
        let mut federation = Federation::planned(1, &[], &[]);
        let first = free_ports(3);
        let party = &mut federation.parties[0];
        let mut addresses = BTreeMap::new();
        let roles: [(&str, &mut Role); 3] = [
            ("coordinator", &mut federation.coordinator),
            ("cluster-manager", &mut party.manager),
            ("cluster-worker", &mut party.worker),
        ];
        for ((name, role), port) in roles.into_iter().zip(first..) {
            role.set_flag("--metrics-port", &port.to_string());
            addresses.insert(name, format!("127.0.0.1:{port}"));
        }
        federation.start_all().await;
        addresses.insert("master", federation.parties[0].master.address.clone());
        Self { federation, addresses }
    }

    async fn scrape(&self, role: &str) -> Scrape {
        let url = format!("http://{}/metrics", self.addresses[role]);
        let response = http().get(url).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        Scrape::of(&response.text().await.unwrap())
    }

    async fn scrapes(&self) -> BTreeMap<&'static str, Scrape> {
        let mut all = BTreeMap::new();
        for role in self.addresses.keys() {
            all.insert(*role, self.scrape(role).await);
        }
        all
    }

    /// Scrape until it fits.
    async fn until(&self, role: &str, fits: impl Fn(&Scrape) -> bool) -> Scrape {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let scrape = self.scrape(role).await;
            if fits(&scrape) {
                return scrape;
            }
            assert!(Instant::now() < deadline, "never came; {:#?}", scrape.samples);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn http() -> reqwest::Client {
    reqwest::Client::builder().timeout(DEADLINE).no_proxy().build().unwrap()
}

/// name, type and labels of each row of the tables of `docs/metrics.md`.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let mut rows = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let labels = cells[2].split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let name = cells[0].trim_matches('`').to_owned();
        assert!(cells.len() == 4 && cells[3].len() > 10, "{line}");
        assert!(rows.insert(name, (cells[1].to_owned(), labels)).is_none(), "{line} stands twice");
    }
    rows
}

#[test]
fn the_page_has_every_family_there_is_and_no_other() {
    let metrics = fedbroker::metrics::Metrics::new();
    metrics.begin("master", 0);
    metrics.engine();
    metrics.peers();
    metrics.http();
    metrics.worker();
    let exported: BTreeMap<String, (String, BTreeSet<String>)> = metrics
        .families()
        .into_iter()
        .map(|family| {
            let labels = family.labels.iter().map(|label| (*label).to_owned()).collect();
            (family.name, (family.kind.to_owned(), labels))
        })
        .collect();
    assert_eq!(exported, documented());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_tells_what_it_does_while_a_job_runs() {
    let watched = Watched::start().await;
    let before = watched.scrapes().await;
    let documented = documented();
    for (role, scrape) in &before {
        assert_eq!(scrape.sum("fedbroker_build_info", &[&format!("role=\"{role}\"")]), 1.0, "{role}");
        assert!(scrape.samples["process_start_time_seconds"] > 1.7e9, "{role}");
        assert!(scrape.samples["process_resident_memory_bytes"] > 1e6, "{role}");
        for (name, family) in &scrape.families {
            let name = if family.kind == "counter" {
                format!("{name}_total")
            } else {
                name.clone()
            };
            assert!(documented.contains_key(&name), "{name} of {role} is not in docs/metrics.md");
        }
    }
    for role in ["master", "coordinator", "cluster-manager"] {
        assert!(before[role].samples["fedbroker_recovery_seconds"] > 0.0, "{role}");
        assert!(before[role].samples["fedbroker_store_log_bytes"] > 1e3, "{role}");
        assert!(before[role].samples["fedbroker_store_free_bytes"] > 1e3, "{role}");
    }
    assert!(!before["cluster-worker"].families.contains_key("fedbroker_commit_events"));
    let subscribed = ["peer=\"coordinator\""];
    assert_eq!(before["master"].sum("fedbroker_peer_connected", &subscribed), 1.0);
    assert_eq!(
        before["cluster-worker"].sum("fedbroker_peer_connected", &["peer=\"cluster-manager\""]),
        1.0
    );
    assert_eq!(before["cluster-worker"].samples["fedbroker_worker_slots"], 16.0);

    let client = watched.federation.client(0);
    run_and_watch(&watched, &client).await;

    let attached = watched
        .until("cluster-manager", |scrape| ended(scrape, "task", "success") == 2.0)
        .await;
    let after = watched.scrapes().await;
    let moved = |role: &str, name: &str, labels: &[&str]| after[role].sum(name, labels) - before[role].sum(name, labels);
    assert_eq!(ended(&after["master"], "job", "success"), 1.0);
    assert_eq!(after["master"].sum("fedbroker_records", &["kind=\"job\""]), 0.0);
    assert_eq!(
        moved(
            "master",
            "fedbroker_commands_total",
            &["command=\"submit\"", "outcome=\"accepted\""]
        ),
        1.0
    );
    for role in ["master", "coordinator", "cluster-manager"] {
        let commits = moved(role, "fedbroker_commit_duration_seconds_count", &[]);
        assert!(commits > 0.0, "{role}");
        assert_eq!(moved(role, "fedbroker_commit_commands_count", &[]), commits, "{role}");
        let events = moved(role, "fedbroker_commit_events_sum", &[]);
        assert_eq!(moved(role, "fedbroker_store_next_sequence", &[]), events, "{role}");
        // The barrier is a part of the commit.
        let barriers = moved(role, "fedbroker_commit_barrier_seconds_sum", &[]);
        assert!(
            barriers > 0.0 && barriers < moved(role, "fedbroker_commit_duration_seconds_sum", &[]),
            "{role}"
        );
    }
    let proposal = "method=\"fedvision.framework.coordinator.Coordinator/Proposal\"";
    let called = "fedbroker_rpc_client_duration_seconds_count";
    let served = "fedbroker_rpc_server_duration_seconds_count";
    assert_eq!(moved("master", called, &["peer=\"coordinator\"", proposal, "code=\"OK\""]), 1.0);
    assert_eq!(moved("coordinator", served, &[proposal, "code=\"OK\""]), 1.0);
    // It waited for the window of a second to close, or for the parties to answer.
    assert!(moved("master", "fedbroker_rpc_client_duration_seconds_sum", &[proposal]) > 0.0);
    let subscribe = "method=\"fedvision.framework.coordinator.Coordinator/Subscribe\"";
    assert_eq!(after["coordinator"].sum("fedbroker_rpc_server_in_flight", &[subscribe]), 1.0);
    assert_eq!(after["master"].sum("fedbroker_rpc_client_in_flight", &[subscribe]), 1.0);
    let attach = "method=\"fedbroker.v1.Cluster/Attach\"";
    assert_eq!(attached.sum("fedbroker_rpc_server_in_flight", &[attach]), 1.0);
    assert_eq!(
        after["cluster-worker"].sum("fedbroker_worker_tasks_ended_total", &["outcome=\"success\""]),
        2.0
    );
    let request = ["route=\"/submit\"", "method=\"POST\"", "status=\"200\""];
    assert_eq!(after["master"].sum("fedbroker_http_request_duration_seconds_count", &request), 1.0);
    let unmatched = ["route=\"unmatched\"", "status=\"404\""];
    assert_eq!(
        after["master"].sum("fedbroker_http_request_duration_seconds_count", &unmatched),
        2.0
    );
}

/// A job with one trainer at this very party; while it is held, it is seen.
async fn run_and_watch(watched: &Watched, client: &Client) {
    let gated = Gated::install(&watched.federation);
    gated.shut("trainer");
    let config = json!({ "program": gated::NAME, "worker_num": 1, "proposal_wait_time": 1 });
    let job = client.submit("program", &config).await;
    watched
        .until("master", |scrape| scrape.sum("fedbroker_records", &["kind=\"job\""]) == 1.0)
        .await;
    watched
        .until("cluster-worker", |scrape| {
            scrape.sum("fedbroker_worker_tasks", &["state=\"running\""]) > 0.0
        })
        .await;
    gated.open("trainer");
    for path in ["/no/such/page", &format!("/no/{job}")] {
        assert_eq!(client.get(path).await.unwrap().0, 404);
    }
    let ended = client.ended(&job).await;
    assert_eq!(ended["state"], "success", "{ended}");
    watched
        .until("master", |scrape| scrape.sum("fedbroker_records", &["kind=\"job\""]) == 0.0)
        .await;
}

fn ended(scrape: &Scrape, kind: &str, state: &str) -> f64 {
    let labels = [format!("kind=\"{kind}\""), format!("state=\"{state}\"")];
    scrape.sum("fedbroker_records_ended_total", &[&labels[0], &labels[1]])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_went_away_shows_and_logs_are_json_on_demand() {
    let mut watched = Watched::start().await;
    watched.federation.coordinator.kill().await;
    let gone = watched
        .until("master", |scrape| {
            scrape.sum("fedbroker_peer_reconnects_total", &["peer=\"coordinator\""]) >= 2.0
        })
        .await;
    assert_eq!(gone.sum("fedbroker_peer_connected", &["peer=\"coordinator\""]), 0.0);
    let failed = ["peer=\"coordinator\"", "Peer/Hello", "code=\"UNAVAILABLE\""];
    assert!(gone.sum("fedbroker_rpc_client_duration_seconds_count", &failed) >= 1.0);
    watched.federation.coordinator.set_flag("--log-format", "json");
    watched.federation.coordinator.start().await;
    watched
        .until("master", |scrape| {
            scrape.sum("fedbroker_peer_connected", &["peer=\"coordinator\""]) == 1.0
        })
        .await;
    let log = watched.federation.coordinator.log();
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let recovered = lines
        .iter()
        .find(|line| line["fields"]["message"] == "recovered")
        .expect("it says so");
    assert_eq!(recovered["fields"]["role"], "coordinator");
    assert!(
        recovered["target"] == "fedbroker::engine::open" && recovered["level"] == "INFO",
        "{recovered}"
    );
}

#[test]
#[should_panic(expected = "comes twice")]
fn a_sample_given_twice_is_seen() {
    Scrape::of("# HELP process_x A good help.\n# TYPE process_x gauge\nprocess_x 1\nprocess_x 2\n# EOF\n");
}

#[test]
#[should_panic(expected = "does not say its unit")]
fn a_unit_that_is_not_said_is_seen() {
    Scrape::of("# HELP process_x_seconds A good help.\n# TYPE process_x_seconds gauge\nprocess_x_seconds 1\n# EOF\n");
}

#[test]
#[should_panic(expected = "has no help")]
fn a_family_without_help_is_seen() {
    Scrape::of("# TYPE process_x gauge\nprocess_x 1\n# EOF\n");
}
