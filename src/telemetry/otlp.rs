//! Spans to an OpenTelemetry collector, over HTTP. Only with the feature `otlp`; nothing waits for the collector but the end of the process.

use super::TraceParent;
use anyhow::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider};
use opentelemetry::{Context as TraceContext, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use std::time::Duration;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// How long the collector may take for a batch, and the end of the process for the last one.
const LIMIT: Duration = Duration::from_secs(5);

/// Sends what is left when it is dropped.
pub(super) struct Exporting(SdkTracerProvider);

impl Drop for Exporting {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(LIMIT) {
            eprintln!("--otlp-endpoint: the last spans were not sent: {error}");
        }
    }
}

/// Begin to export to `http://host:4318`, as the service of that name. Must be called outside a runtime.
pub(super) fn start(endpoint: &str, service: &str) -> anyhow::Result<(SdkTracer, Exporting)> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .with_timeout(LIMIT)
        .build()
        .with_context(|| format!("--otlp-endpoint: {endpoint} will not do; give http://host:4318"))?;
    let resource = Resource::builder()
        .with_service_name(service.to_owned())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build();
    Ok((provider.tracer("fedbroker"), Exporting(provider)))
}

/// Make the span a child of that one.
pub(super) fn adopt(span: &Span, parent: &TraceParent) {
    let flags = if parent.sampled {
        TraceFlags::SAMPLED
    } else {
        TraceFlags::default()
    };
    let context = SpanContext::new(
        TraceId::from(parent.trace),
        SpanId::from(parent.span),
        flags,
        true,
        TraceState::default(),
    );
    if let Err(error) = span.set_parent(TraceContext::new().with_remote_span_context(context)) {
        tracing::debug!(%error, "a span could not be put into its trace");
    }
}
