//! `fedbroker store stat`: what is in a data directory and how much room it takes.

use super::plain::{plain, state};
use super::progress::size;
use super::role::{Role, Task, with_machine};
use super::specimen::{Specimen, size_of};
use super::{DataDir, Output};
use crate::engine::reader::{ENDED, LIVE, PAYLOAD};
use crate::machine::content::PayloadRef;
use crate::store::sled_store::SledStore;
use crate::store::{Error, Store, codec};
use crate::telemetry::say;
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;

/// `fedbroker store stat`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker store stat --data-dir fedbroker-data/master-p1 -o json | jq .records")]
pub(super) struct StatOptions {
    #[command(flatten)]
    dir: DataDir,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Look and count.
///
/// # Errors
/// The directory cannot be had, or [`Error::Damaged`].
pub(super) fn run(options: &StatOptions) -> anyhow::Result<ExitCode> {
    let specimen = Specimen::take(&options.dir.data_dir, options.dir.scratch.as_deref())?;
    let store = specimen.open()?;
    let counted = with_machine(&specimen.directory.role(), Count(&store))??;
    let (directory, head) = (&specimen.directory, store.head());
    let first = head.first_seq;
    let stat = json!({
        "data_dir": directory.path(),
        "role": directory.role(),
        "owner": directory.owner(),
        "instance": format!("{:032x}", u128::from_be_bytes(directory.instance())),
        "format": directory.version(),
        "log": directory.log(),
        "epoch": head.epoch,
        "batch": head.batch,
        "events": { "first": first, "next": head.next_seq, "count": head.next_seq - first },
        "records": counted.records,
        "payloads": { "files": counted.payloads, "bytes": counted.payload_bytes },
        "disk": {
            "log_bytes": size_of(&directory.store_dir()),
            "payload_bytes": size_of(&directory.payload_dir()),
            "free_bytes": directory.free_space()?,
        },
    });
    match options.output {
        Output::Json => say(&serde_json::to_string_pretty(&stat)?),
        Output::Text => print(&stat),
    }
    Ok(ExitCode::SUCCESS)
}

struct Count<'a>(&'a SledStore);

#[derive(Default)]
struct Counted {
    /// By `live` and `ended`, then by kind and state.
    records: BTreeMap<&'static str, BTreeMap<String, u64>>,
    payloads: u64,
    payload_bytes: u64,
}

impl Task for Count<'_> {
    type Output = Result<Counted, Error>;

    fn run<M: Role>(self) -> Result<Counted, Error> {
        let mut counted = Counted::default();
        for (kind, name) in [(LIVE, "live"), (ENDED, "ended")] {
            let by_state = counted.records.entry(name).or_default();
            crate::engine::reader::pages(self.0, &[kind], |key, value| {
                let (kind, plain) = plain(&decode::<M::Record>(key, value)?);
                let what = state(&plain).map_or(kind.clone(), |state| format!("{kind} {state}"));
                *by_state.entry(what).or_default() += 1;
                Ok(true)
            })?;
        }
        crate::engine::reader::pages(self.0, &[PAYLOAD], |key, value| {
            let (payload, _): (PayloadRef, u32) = decode(key, value)?;
            counted.payloads += 1;
            counted.payload_bytes += payload.len;
            Ok(true)
        })?;
        Ok(counted)
    }
}

fn decode<T: serde::de::DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T, Error> {
    codec::decode(value).map_err(|error| Error::Damaged {
        file: "store".into(),
        what: format!("record {}: {error}", key.escape_ascii()),
    })
}

fn print(stat: &Value) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let bytes = |value: &Value| size(value.as_u64().unwrap_or_default());
    let line = |name: &str, value: String| say(&format!("{name:12}{value}"));
    line("directory", text(&stat["data_dir"]));
    let owner = stat["owner"].as_str().map_or_else(String::new, |owner| format!(" of {owner}"));
    line(
        "role",
        format!("{}{owner}, instance {}", text(&stat["role"]), text(&stat["instance"])),
    );
    line("format", format!("{}, log {}", stat["format"], stat["log"]));
    line("position", format!("commit {}, epoch {}", stat["batch"], stat["epoch"]));
    let events = &stat["events"];
    line(
        "events",
        format!("{} from {} on, next {}", events["count"], events["first"], events["next"]),
    );
    for part in ["live", "ended"] {
        for (what, count) in stat["records"][part].as_object().into_iter().flatten() {
            line(part, format!("{what}: {count}"));
        }
    }
    let payloads = &stat["payloads"];
    line("payloads", format!("{} files, {}", payloads["files"], bytes(&payloads["bytes"])));
    let disk = &stat["disk"];
    let (log, files, free) = (bytes(&disk["log_bytes"]), bytes(&disk["payload_bytes"]), bytes(&disk["free_bytes"]));
    line("disk", format!("log {log}, payload files {files}, free {free}"));
}
