//! Logs: to stderr, levels from `FEDBROKER_LOG` (default `info`), as text or as JSON lines. Set up once by `cli`. And the lines for the user,
//! to stdout. With the feature `otlp`, spans to a collector as well.
//!
//! What carries a job on has a span with its `job`, and `task` where there is one, so that every line under it can be found by them.

#[cfg(feature = "otlp")]
mod otlp;
mod trace_parent;

pub use trace_parent::TraceParent;

use std::io::{IsTerminal, Write};
use tracing::Span;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// Name of the variable with the log filter, e.g. `debug` or `fedbroker::engine=trace`.
pub const LOG_VARIABLE: &str = "FEDBROKER_LOG";

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Plain,
    /// For programs: one JSON object for each line.
    Json,
}

/// What is logged, and where to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// As in [`LOG_VARIABLE`].
    pub filter: Option<&'a str>,
    /// How a line looks.
    pub format: Format,
    /// The name of this process among those that export.
    pub service: &'a str,
    /// Where spans go, `http://host:4318`.
    #[cfg(feature = "otlp")]
    pub otlp_endpoint: Option<&'a str>,
}

/// Keep it until the process ends: what waits to be exported is sent when it is dropped.
#[must_use]
#[derive(Default)]
pub struct Exports {
    #[cfg(feature = "otlp")]
    _exporting: Option<otlp::Exporting>,
}

/// Begin to log. Must be called outside a runtime.
///
/// # Errors
/// Spans are to be exported, and the endpoint will not do.
pub fn start(options: Options<'_>) -> anyhow::Result<Exports> {
    let filter = EnvFilter::try_new(options.filter.unwrap_or("info")).unwrap_or_else(|error| {
        eprintln!("{LOG_VARIABLE}: {error}; logging at info");
        EnvFilter::new("info")
    });
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = lines(options.format, colour, std::io::stderr);
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
    #[cfg(feature = "otlp")]
    if let Some(endpoint) = options.otlp_endpoint {
        let (tracer, exporting) = otlp::start(endpoint, options.service)?;
        // Not the spans of the exporter's own HTTP client, which would never end.
        let ours = tracing_subscriber::filter::filter_fn(|what| what.is_span() && what.target().starts_with("fedbroker"));
        let spans = tracing_opentelemetry::layer().with_tracer(tracer).with_filter(ours);
        subscriber.with(spans).init();
        return Ok(Exports {
            _exporting: Some(exporting),
        });
    }
    subscriber.init();
    Ok(Exports::default())
}

/// A JSON line has `timestamp`, `level`, `target`, `fields` (with `message`), and `spans`, each with its own fields, the outermost first.
fn lines<W>(format: Format, colour: bool, writer: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        Format::Plain => lines.with_ansi(colour).boxed(),
        Format::Json => lines.with_ansi(false).json().with_current_span(false).with_span_list(true).boxed(),
    }
}

/// Let a span go on with the trace that a W3C `traceparent` names: in the collector with the feature `otlp`, and as the field `trace` of the span,
/// if it was made with one (`trace = tracing::field::Empty`). Must be called before the span is entered. A text that is none changes nothing.
pub fn adopt(span: &Span, traceparent: &str) {
    let Some(parent) = TraceParent::parse(traceparent) else { return };
    span.record("trace", format_args!("{:032x}", parent.trace).to_string());
    #[cfg(feature = "otlp")]
    otlp::adopt(span, &parent);
}

/// A line for the user, on stdout. That nobody reads it any more (`| head -1`) must not end a role, so `println!` will not do.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, log: impl FnOnce()) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::registry().with(lines(format, false, move || writer.clone()));
        tracing::subscriber::with_default(subscriber, log);
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn in_a_span() {
        let span = tracing::info_span!("run task", job = "j-1", task = "aggregator", trace = tracing::field::Empty);
        adopt(&span, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        span.in_scope(|| tracing::warn!(attempt = 2, "it ended\nbadly"));
    }

    #[test]
    fn a_json_line_has_everything_by_name() {
        let text = logged(Format::Json, in_a_span);
        let line: serde_json::Value = serde_json::from_str(text.strip_suffix('\n').unwrap()).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert_eq!(
            (&line["level"], &line["target"]),
            (&"WARN".into(), &"fedbroker::telemetry::tests".into())
        );
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
        assert_eq!(line["fields"], serde_json::json!({ "message": "it ended\nbadly", "attempt": 2 }));
        let span = &line["spans"][0];
        assert_eq!(
            (&span["name"], &span["job"], &span["task"]),
            (&"run task".into(), &"j-1".into(), &"aggregator".into())
        );
        assert_eq!(span["trace"], "0af7651916cd43dd8448eb211c80319c");
    }

    #[test]
    fn a_plain_line_names_the_span_before_the_message() {
        let text = logged(Format::Plain, in_a_span);
        let span = "run task{job=\"j-1\" task=\"aggregator\" trace=\"0af7651916cd43dd8448eb211c80319c\"}";
        assert!(text.contains(span), "{text}");
    }

    #[test]
    fn what_is_no_traceparent_changes_nothing() {
        let text = logged(Format::Plain, || {
            let span = tracing::info_span!("x", trace = tracing::field::Empty);
            adopt(&span, "00-00");
            span.in_scope(|| tracing::info!("hello"));
        });
        assert!(text.contains(" x: ") && !text.contains("trace"), "{text}");
    }
}
