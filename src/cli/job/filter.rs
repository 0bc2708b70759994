//! Which jobs: the flags that list, export and cancel share, and what they are in a query or a filter of the service.

use super::time;
use clap::Args;
use serde_json::{Map, Value, json};

/// Which jobs.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct FilterOptions {
    /// In this state; repeat for any of several
    #[arg(long, value_name = "STATE")]
    state: Vec<String>,
    /// Of this job type
    #[arg(long = "type", value_name = "TYPE")]
    job_type: Option<String>,
    /// With this label: key=value, or key for any value; repeat for all of several
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,
    /// Submitted after this time: RFC 3339, or -2h
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true)]
    created_after: Option<String>,
    /// Submitted before this time: RFC 3339, or -2h
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true)]
    created_before: Option<String>,
    /// Whose id begins so
    #[arg(short = 'q', long = "id", value_name = "PREFIX")]
    id_prefix: Option<String>,
}

impl FilterOptions {
    /// Everything matches.
    pub(super) fn is_empty(&self) -> bool {
        self.pairs().is_empty()
    }

    /// As query parameters.
    pub(super) fn pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs: Vec<(&'static str, String)> = self.state.iter().map(|state| ("state", state.clone())).collect();
        pairs.extend(self.label.iter().map(|label| ("label", in_service(label))));
        let single = [
            ("job_type", &self.job_type),
            ("created_after", &self.created_after),
            ("created_before", &self.created_before),
            ("q", &self.id_prefix),
        ];
        pairs.extend(single.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
        pairs
    }

    /// As the filter of a request.
    pub(super) fn json(&self) -> Value {
        let mut filter = Map::new();
        let others = self.pairs().into_iter().filter(|(name, _)| !matches!(*name, "state" | "label"));
        filter.extend(others.map(|(name, value)| (name.to_owned(), json!(value))));
        if !self.state.is_empty() {
            filter.insert("state".to_owned(), json!(self.state));
        }
        if !self.label.is_empty() {
            let pair = |label: &String| match label.split_once('=') {
                Some((key, value)) => (key.to_owned(), json!(value)),
                None => (label.clone(), Value::Null),
            };
            filter.insert("labels".to_owned(), self.label.iter().map(pair).collect());
        }
        Value::Object(filter)
    }
}

/// `key=value` at the command line is `key:value` in the service.
fn in_service(label: &str) -> String {
    label.replacen('=', ":", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_the_same_in_a_query_and_in_a_request() {
        let filter = FilterOptions {
            state: vec!["running".into(), "held".into()],
            label: vec!["team=a=b".into(), "gpu".into()],
            id_prefix: Some("p1-".into()),
            ..FilterOptions::default()
        };
        let expected = json!({ "state": ["running", "held"], "labels": { "team": "a=b", "gpu": null }, "q": "p1-" });
        assert_eq!(filter.json(), expected);
        assert_eq!(filter.pairs().len(), 5);
        assert!(FilterOptions::default().is_empty());
    }
}
