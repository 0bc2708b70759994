//! `GET /api/v1/jobs:export`: every job that a filter means, as JSON lines, streamed.
//!
//! It walks like a list, page by page as the client takes them, so that neither the number of jobs nor a slow client costs memory.

use super::super::Door;
use super::filter::Filter;
use super::job::{Fields, Job};
use super::jobs;
use super::page::Jobs;
use super::problem::Problem;
use super::query::Query;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use std::io;

/// Jobs of one piece.
const PIECE: usize = 100;

/// Jobs as JSON lines, the oldest first
///
/// A transfer that breaks off did not end well: what is missing is not told otherwise.
#[utoipa::path(get, path = "/api/v1/jobs:export", tag = "jobs", operation_id = "export_jobs",
    params(
        ("state" = Option<Vec<super::job::State>>, Query, description = "In one of these states"),
        ("job_type" = Option<String>, Query, description = "Of this type"),
        ("label" = Option<Vec<String>>, Query, description = "With all of these labels: `key:value`, or `key` for any value"),
        ("created_after" = Option<String>, Query, description = "Accepted at this time or later, RFC 3339"),
        ("created_before" = Option<String>, Query, description = "Accepted before this time, RFC 3339"),
        ("q" = Option<String>, Query, description = "Whose id begins so"),
        ("fields" = Option<String>, Query, description = "These fields of a job only, with commas between; all if it is not there"),
    ),
    responses(
        (status = 200, description = "A job on each line", body = Job, content_type = "application/x-ndjson"),
        (status = 400, description = "A parameter is not right", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many streams", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn export(State(door): State<Door>, mut query: Query) -> Result<Response, Problem> {
    let walk = Jobs {
        filter: Filter::take(&mut query)?,
        descending: false,
        after: None,
    };
    let fields = Fields::parse(query.one("fields")?)?;
    query.end()?;
    let place = door.take_stream()?;
    // The first piece is made before the head of the answer, so that what cannot be answered is a problem.
    let first = piece(&door, walk, &fields).await?;
    let pieces = stream::unfold((door, fields, Some(first), place), |(door, fields, next, place)| async move {
        let (bytes, rest) = next?;
        let following = match rest {
            None => None,
            Some(walk) => match piece(&door, walk, &fields).await {
                Ok(following) => Some(following),
                Err(problem) => {
                    tracing::warn!(?problem, "an export broke off");
                    return Some((Err(io::Error::other("the store cannot be read")), (door, fields, None, place)));
                }
            },
        };
        Some((Ok(bytes), (door, fields, following, place)))
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// Some lines, and the rest of the walk.
async fn piece(door: &Door, walk: Jobs, fields: &Fields) -> Result<(Bytes, Option<Jobs>), Problem> {
    let filter = walk.filter.clone();
    let (records, next) = walk.page(door, PIECE).await?;
    let mut lines = String::new();
    for record in &records {
        let beside = jobs::beside(door, record, |name| fields.shows(name)).await?;
        lines.push_str(&fields.pick(&Job::new(record, beside)).to_string());
        lines.push('\n');
    }
    let rest = next.map(|number| Jobs {
        filter,
        descending: false,
        after: Some(number),
    });
    Ok((Bytes::from(lines), rest))
}
