//! The contract in words for programs and for people: OpenAPI 3.1 at `/openapi.json`, generated from the handlers and their types, and a page that
//! renders it at `/docs`, which needs nothing from elsewhere.
//!
//! `docs/openapi.json` is the same text, so that a change of the contract shows in a review; `fedbroker openapi` writes it.

use super::super::{backup, health};
use super::{act, events, export, jobs, logs, proposals, status, submit, tasks};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use std::sync::LazyLock;
use utoipa::OpenApi;

/// The whole page, script and style within.
const PAGE: &str = include_str!("page.html");

/// What the page may do: run its own script and ask this master.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Fedbroker",
        description = "Job history and control of a party master. Times are RFC 3339 in UTC. Unknown parameters and fields are refused. \
            Every refusal is an RFC 9457 problem with a stable `code`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(jobs::list, submit::submit, submit::batch, jobs::get, act::cancel, act::rerun, act::hold, act::release, act::purge, act::cancel_many, export::export, events::of_job, events::all, logs::of_task, tasks::list, tasks::of_job, tasks::get, proposals::list, proposals::get, status::status, backup::backup, health::live, health::ready),
    tags(
        (name = "jobs", description = "Jobs this party initiated"),
        (name = "events", description = "What happened, as pages and as streams"),
        (name = "tasks", description = "The queue towards this party's cluster"),
        (name = "proposals", description = "What this party was asked to take part in"),
        (name = "status", description = "This master"),
    )
)]
struct Contract;

static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut contract = Contract::openapi();
    contract.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let text = contract.to_pretty_json();
    text.expect("the contract is plain data, which always has a JSON text") + "\n"
});

/// The contract as JSON text.
pub(in crate::master) fn text() -> &'static str {
    &TEXT
}

/// `GET /openapi.json`
pub(in crate::master::rest) async fn json() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text()).into_response()
}

/// `GET /docs`
pub(in crate::master::rest) async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, PAGE).into_response()
}
