//! `/livez` and `/readyz`: for whoever starts, restarts or chooses masters. Each check has a name and says why.
//!
//! Alive: a restart would not help. Ready: new jobs are taken. A coordinator or a cluster manager that is away is told and fails nothing: jobs are
//! taken and wait. An index that is being made is told too: only lists need it.

use super::v1::problem::Problem;
use super::v1::query::Query;
use super::{Door, retry_after};
use crate::engine::Condition;
use crate::store::space::{FULL, Level, Room};
use crate::supervisor::Supervisor;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// One thing that is looked at.
struct Check {
    name: &'static str,
    /// Whether the answer depends on it.
    required: bool,
    /// What is wrong; `None` when nothing is.
    trouble: Option<String>,
}

/// Whether a restart would help
#[utoipa::path(get, path = "/livez", operation_id = "get_livez", tag = "status",
    params(("verbose" = Option<String>, Query, description = "Taken for the habit's sake: every check is always shown")),
    responses(
        (status = 200, description = "Alive", body = Live),
        (status = 400, description = "A parameter that is not known", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "A restart is needed", body = Live),
    ))]
pub(super) async fn live(State(door): State<Door>, query: Query) -> Result<Response, Problem> {
    only_verbose(query)?;
    Ok(answer("alive", vec![engine(door.shared.handle.condition())]))
}

/// A probe that asks for something else than what is answered, such as another choice of checks, must not be told that all is well.
fn only_verbose(mut query: Query) -> Result<(), Problem> {
    query.one("verbose")?;
    query.end()
}

/// Whether new jobs are taken
#[utoipa::path(get, path = "/readyz", operation_id = "get_readyz", tag = "status",
    params(("verbose" = Option<String>, Query, description = "Taken for the habit's sake: every check is always shown")),
    responses(
        (status = 200, description = "Ready", body = Ready),
        (status = 400, description = "A parameter that is not known", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not ready, with the checks that say why", body = Ready),
    ))]
pub(super) async fn ready(State(door): State<Door>, query: Query) -> Result<Response, Problem> {
    only_verbose(query)?;
    let condition = door.shared.handle.condition();
    let (room, cluster) = tokio::join!(room(&door), door.shared.contacts.cluster.ask());
    let told = |name: &'static str, trouble: Option<String>| Check {
        name,
        required: false,
        trouble,
    };
    let subscription = door.shared.subscription.get();
    let not_subscribed = || subscription.trouble.clone().unwrap_or_else(|| "not subscribed yet".to_owned());
    let unreachable = |why: &str| format!("cannot be reached at {}: {why}", door.shared.contacts.cluster.address);
    let building = "it is being made: until then lists answer 503 index_building";
    let index = door.shared.index.read(|_| ());
    let checks = vec![
        engine(condition),
        store(condition),
        disk(room),
        told("coordinator", (!subscription.connected).then(not_subscribed)),
        told("cluster_manager", cluster.trouble().map(unreachable)),
        told("index", index.is_none().then(|| building.to_owned())),
    ];
    Ok(answer("ready", checks))
}

/// The space there is now.
pub(super) async fn room(door: &Door) -> Room {
    let space = door.shared.handle.space().clone();
    let unknown = Room {
        free: 0,
        level: Level::Full,
    };
    Supervisor::blocking(move || space.look()).await.unwrap_or(unknown)
}

/// In answers.
pub(super) fn level_name(level: Level) -> &'static str {
    match level {
        Level::Ample => "ample",
        Level::Low => "low",
        Level::Full => "full",
    }
}

fn engine(condition: Condition) -> Check {
    Check {
        name: "engine",
        required: true,
        trouble: (condition == Condition::Ended).then(|| "the store has failed and the process is about to end; see its log".to_owned()),
    }
}

fn store(condition: Condition) -> Check {
    let why = "a commit found the disk full: read only; the process ends once there is space, and a restart goes on";
    Check {
        name: "store",
        required: true,
        trouble: (condition == Condition::ReadOnly).then(|| why.to_owned()),
    }
}

fn disk(Room { free, level }: Room) -> Check {
    let trouble = match level {
        Level::Ample => None,
        Level::Low => Some(format!("getting full: {free} bytes are free, below {FULL} nothing new is taken")),
        Level::Full => Some(format!("full: {free} bytes are free, below {FULL} nothing new is taken")),
    };
    Check {
        name: "disk",
        required: level == Level::Full,
        trouble,
    }
}

/// One look at one thing.
#[derive(Serialize, ToSchema)]
#[schema(as = Check)]
pub(super) struct Shown {
    ok: bool,
    /// Whether the answer depends on it.
    required: bool,
    /// What is wrong.
    reason: Option<String>,
}

/// Whether a restart would help.
#[derive(Serialize, ToSchema)]
pub(super) struct Live {
    alive: bool,
    checks: BTreeMap<String, Shown>,
}

/// Whether new jobs are taken.
#[derive(Serialize, ToSchema)]
pub(super) struct Ready {
    ready: bool,
    checks: BTreeMap<String, Shown>,
}

fn answer(what: &str, checks: Vec<Check>) -> Response {
    let good = checks.iter().all(|check| check.trouble.is_none() || !check.required);
    let shown: BTreeMap<&str, Shown> = checks
        .into_iter()
        .map(|check| {
            let shown = Shown {
                ok: check.trouble.is_none(),
                required: check.required,
                reason: check.trouble,
            };
            (check.name, shown)
        })
        .collect();
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = (status, Json(json!({ what: good, "checks": shown }))).into_response();
    if let Some(seconds) = retry_after(status) {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
    }
    response
}
