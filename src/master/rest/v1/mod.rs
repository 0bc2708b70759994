//! The public API: history and control of jobs, in JSON, under `/api/v1`. Contract: `docs/openapi.json`; for people, `docs/api.md`.
//!
//! A resource has a file for what it shows (`job`, `task`) and one for what can be asked of it (`jobs`). Inputs are strict: what is not known is
//! refused (`query`, `body`), and every refusal is a `problem`. Answers rest on durable state only.
#![allow(dead_code, reason = "what the next steps need")]

mod accept;
mod act;
mod body;
mod cursor;
mod event;
mod events;
mod export;
mod filter;
mod job;
mod jobs;
mod logs;
mod once;
pub(super) mod openapi;
mod page;
pub(super) mod path;
pub(super) mod problem;
mod proposal;
mod proposals;
pub(super) mod query;
mod status;
pub(super) mod submit;
mod task;
mod tasks;
mod time;

use super::{Door, backup};
use axum::Router;
use axum::routing::{get, post};

/// Everything under `/api/v1`, and the papers about it.
pub(super) fn routes() -> Router<Door> {
    Router::new()
        .route("/api/v1/jobs", get(jobs::list).post(submit::submit))
        .route("/api/v1/jobs:batch", post(submit::batch))
        .route("/api/v1/jobs/{id}", get(jobs::get).post(act::act).delete(act::purge))
        .route("/api/v1/jobs:cancel", post(act::cancel_many))
        .route("/api/v1/jobs/{id}/tasks", get(tasks::of_job))
        .route("/api/v1/jobs/{id}/tasks/{task}", get(tasks::get))
        .route("/api/v1/jobs/{id}/tasks/{task}/logs", get(logs::of_task))
        .route("/api/v1/jobs/{id}/events", get(events::of_job))
        .route("/api/v1/jobs:export", get(export::export))
        .route("/api/v1/events", get(events::all))
        .route("/api/v1/tasks", get(tasks::list))
        .route("/api/v1/proposals", get(proposals::list))
        .route("/api/v1/proposals/{id}", get(proposals::get))
        .route("/api/v1/status", get(status::status))
        .route("/api/v1/backup", post(backup::backup))
        .method_not_allowed_fallback(path::not_allowed)
        .route("/openapi.json", get(openapi::json))
        .route("/docs", get(openapi::page))
}
