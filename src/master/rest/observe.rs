//! `GET /metrics`, and the measure of every request, those that no route takes too.
//!
//! Labels are templates of routes, never paths: a path has ids in it, and a client can ask for any.

use super::Door;
use crate::metrics::{CONTENT_TYPE, Http};
use crate::observe::exposition;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::time::Instant;

/// The route of a request that has none.
const UNMATCHED: &str = "unmatched";

/// `GET /metrics`
pub(super) async fn metrics(State(door): State<Door>) -> Response {
    let text = exposition(&door.shared.supervisor).await;
    let headers = [(header::CONTENT_TYPE, CONTENT_TYPE), (header::CACHE_CONTROL, "no-store")];
    (headers, text).into_response()
}

/// Around every request, until the head of its answer.
pub(super) async fn measure(State(http): State<Http>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let response = next.run(request).await;
    let route = route.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
    http.answered(route, method.as_str(), response.status().as_u16(), began.elapsed());
    response
}
