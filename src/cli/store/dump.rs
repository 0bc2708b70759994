//! `fedbroker store dump`: records and events as JSON lines.

use super::DataDir;
use super::plain::plain;
use super::role::{Role, Task, with_machine};
use super::specimen::Specimen;
use crate::cli::output;
use crate::engine::reader::{ENDED, LIVE, Reader};
use crate::machine::Logged;
use crate::machine::ids::JobId;
use crate::store::sled_store::SledStore;
use crate::store::{Error, Seq, Store, codec};
use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use std::io::{self, BufWriter, StdoutLock, Write};
use std::process::ExitCode;
use std::sync::Arc;

/// Events read at once.
const PAGE: usize = 512;

/// `fedbroker store dump`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  fedbroker store dump --data-dir fedbroker-data/master-p1 --job p1-20261122212634-7
  fedbroker store dump --data-dir fedbroker-data/master-p1 --records --kind job --live | jq .value.state")]
pub(super) struct DumpOptions {
    #[command(flatten)]
    dir: DataDir,
    /// Records only
    #[arg(long, conflicts_with = "events")]
    records: bool,
    /// Events only
    #[arg(long)]
    events: bool,
    /// Records or events of this kind only, as in the lines' "kind"
    #[arg(long)]
    kind: Option<String>,
    /// Records only whose key begins so, as in the lines' "record"
    #[arg(long, conflicts_with = "events")]
    key: Option<String>,
    /// What belongs to this job only
    #[arg(long)]
    job: Option<String>,
    /// Events from this number on only
    #[arg(long, conflicts_with = "records")]
    from: Option<Seq>,
    /// Events up to this number only
    #[arg(long, conflicts_with = "records")]
    to: Option<Seq>,
    /// Records that live only
    #[arg(long, conflicts_with_all = ["events", "ended"])]
    live: bool,
    /// Records that have ended only
    #[arg(long, conflicts_with = "events")]
    ended: bool,
}

/// Dump.
///
/// # Errors
/// The directory cannot be had, or [`Error::Damaged`].
pub(super) fn run(options: &DumpOptions) -> anyhow::Result<ExitCode> {
    let job = options.job.clone().map(JobId::parse).transpose().context("--job")?;
    let specimen = Specimen::take(&options.dir.data_dir, options.dir.scratch.as_deref())?;
    let store = Arc::new(specimen.open()?);
    let out = BufWriter::new(io::stdout().lock());
    let dump = Dump { options, job, store, out };
    with_machine(&specimen.directory.role(), dump)??;
    Ok(ExitCode::SUCCESS)
}

struct Dump<'a> {
    options: &'a DumpOptions,
    job: Option<JobId>,
    store: Arc<SledStore>,
    out: BufWriter<StdoutLock<'static>>,
}

impl Task for Dump<'_> {
    type Output = Result<(), Error>;

    fn run<M: Role>(mut self) -> Result<(), Error> {
        let options = self.options;
        // A filter that only records have leaves the events out, and the other way round.
        let records = !options.events && options.from.is_none() && options.to.is_none();
        let events = !options.records && options.key.is_none() && !options.live && !options.ended;
        let go_on = !records || self.records::<M>()?;
        if go_on && events {
            self.events::<M>()?;
        }
        // Nobody may be reading any more, as behind `| head`.
        let _ = self.out.flush();
        Ok(())
    }
}

impl Dump<'_> {
    fn line(&mut self, line: &Value) -> bool {
        writeln!(self.out, "{}", output::line(line)).is_ok()
    }

    fn wants(&self, kind: &str, job: Option<JobId>) -> bool {
        self.options.kind.as_ref().is_none_or(|wanted| wanted == kind)
            && self.job.as_ref().is_none_or(|wanted| job.as_ref() == Some(wanted))
    }

    /// False once nobody reads any more.
    fn records<M: Role>(&mut self) -> Result<bool, Error> {
        let kinds = [(LIVE, !self.options.ended), (ENDED, !self.options.live)];
        let store = Arc::clone(&self.store);
        let mut go_on = true;
        for (kind, _) in kinds.into_iter().filter(|(_, wanted)| *wanted) {
            crate::engine::reader::pages(&*store, &[kind], |key, value| {
                let text = key[1..].escape_ascii().to_string();
                if self.options.key.as_ref().is_some_and(|wanted| !text.starts_with(wanted)) {
                    return Ok(true);
                }
                let record: M::Record = codec::decode(value).map_err(|error| Error::Damaged {
                    file: "store".into(),
                    what: format!("record {text}: {error}"),
                })?;
                let (name, plain) = plain(&record);
                let job = M::key_from_bytes(&key[1..]).and_then(|key| M::job_of_key(&key));
                if self.wants(&name, job) {
                    go_on = self.line(&json!({ "record": text, "kind": name, "live": kind == LIVE, "value": plain }));
                }
                Ok(go_on)
            })?;
        }
        Ok(go_on)
    }

    fn events<M: Role>(&mut self) -> Result<(), Error> {
        let store: Arc<dyn Store> = self.store.clone();
        let reader: Reader<M> = Reader::new(store);
        let (mut from, to) = (self.options.from.unwrap_or(1), self.options.to.unwrap_or(Seq::MAX));
        loop {
            let page = reader.logged(from, PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            from = last + 1;
            for (seq, Logged { prev, event }) in page {
                if seq > to {
                    return Ok(());
                }
                let (name, plain) = plain(&event);
                if self.wants(&name, M::job_of_event(&event))
                    && !self.line(&json!({ "event": seq, "prev": prev, "kind": name, "value": plain }))
                {
                    return Ok(());
                }
            }
        }
    }
}
