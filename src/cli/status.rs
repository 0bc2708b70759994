//! `fedbroker status`: what a master is doing, and whether it can reach whom it needs.

use super::client::{Client, Request};
use super::job::block_on;
use super::output::{self, Format, plain, text};
use crate::telemetry::say;
use clap::Args;
use serde_json::Value;
use std::process::ExitCode;

/// `fedbroker status`
#[derive(Args, Clone, Debug)]
#[command(after_help = concat!("Example:\n  fedbroker status --endpoint 127.0.0.1:10002\n\n", "Exits with 0 when the master takes jobs, 1 when it does not, 3 when it cannot be reached."))]
pub(super) struct StatusOptions {
    /// REST service of the master, host:port
    #[arg(long, env = "FEDBROKER_ENDPOINT")]
    endpoint: String,
    /// How to show the answer
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Show.
///
/// # Errors
/// The master cannot be reached.
pub(super) fn run(options: StatusOptions) -> anyhow::Result<ExitCode> {
    let status = block_on(async {
        let client = Client::new(&options.endpoint)?;
        Ok(client.ask(Request::get(&["api", "v1", "status"])).await?)
    })?;
    match options.output {
        Format::Table | Format::Wide => lines("", &status).iter().for_each(|line| say(line)),
        Format::Name => say(&text(&status["party"])),
        Format::Json | Format::Jsonl | Format::Yaml => output::one(options.output, &[], "party", &status),
    }
    Ok(if status["store"] == "working" || status["store"]["condition"] == "working" {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `a.b: value` for each leaf.
fn lines(path: &str, value: &Value) -> Vec<String> {
    let below = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    match value {
        Value::Object(entries) if !entries.is_empty() => entries.iter().flat_map(|(name, value)| lines(&below(name), value)).collect(),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            let numbered = items.iter().enumerate();
            numbered.flat_map(|(at, value)| lines(&below(&at.to_string()), value)).collect()
        }
        leaf => vec![plain(&format!("{path}: {}", text(leaf)))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_for_each_leaf() {
        let status = json!({ "party": "p1", "peers": [{ "role": "coordinator", "error": null }], "job_types": ["a", "b"] });
        let expected = ["party: p1", "peers.0.role: coordinator", "peers.0.error: -", "job_types: a,b"];
        assert_eq!(lines("", &status), expected);
    }
}
