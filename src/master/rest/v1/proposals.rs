//! `GET /api/v1/proposals`: what this party was asked to take part in, and what came of it.

use super::super::Door;
use super::page::{EVERYWHERE, Page, Place, UNDER_WAY, page};
use super::path::Id;
use super::problem::{Code, Problem, quoted};
use super::proposal::{Proposal, State};
use super::query::{NoQuery, Query};
use crate::machine::ids::ProposalId;
use crate::machine::master::{Key, Record};
use axum::Json;
use axum::extract::State as Of;
use std::collections::BTreeSet;

/// Proposals this party was asked to join, in the order of their ids
#[utoipa::path(get, path = "/api/v1/proposals", operation_id = "list_proposals", tag = "proposals",
    params(
        ("state" = Option<Vec<State>>, Query, description = "In one of these states"),
        ("job_type" = Option<String>, Query, description = "Of jobs of this type"),
        ("limit" = Option<u16>, Query, description = "Items of a page, 1 to 500", minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses(
        (status = 200, description = "A page", body = Page<Proposal>),
        (status = 400, description = "A parameter is not right", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn list(Of(door): Of<Door>, mut query: Query) -> Result<Json<Page<Proposal>>, Problem> {
    let parse = |name: String| {
        State::ALL.into_iter().find(|state| state.name() == name).ok_or_else(|| {
            let known = State::ALL.map(State::name).join(", ");
            Problem::parameter("state", format!("{} is none; there are {known}", quoted(&name)))
        })
    };
    let states: BTreeSet<State> = query.all("state").into_iter().map(parse).collect::<Result<_, _>>()?;
    let job_type = query.one("job_type")?;
    let what = format!("proposals {states:?} {job_type:?}");
    let place = Place::take(query, &door, &what)?;
    let parts = if states.iter().eq([&State::Offered]) {
        UNDER_WAY
    } else {
        EVERYWHERE
    };
    let fits = move |record| match record {
        Record::Participation(record) => {
            let proposal = Proposal::joined(&record);
            let of_type = job_type.as_ref().is_none_or(|wanted| *wanted == proposal.job_type);
            (of_type && (states.is_empty() || states.contains(&proposal.state))).then_some(proposal)
        }
        _ => None,
    };
    page(&door, vec![b'p'], parts, place, fits).await.map(Json)
}

/// One proposal
#[utoipa::path(get, path = "/api/v1/proposals/{proposal_id}", operation_id = "get_proposal", tag = "proposals",
    params(("proposal_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The proposal", body = Proposal),
        (status = 404, description = "This party was not asked to join it", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn get(Of(door): Of<Door>, Id(id): Id, _: NoQuery) -> Result<Json<Proposal>, Problem> {
    if let Ok(key) = ProposalId::parse(id.as_str())
        && let Some(Record::Participation(record)) = door.surely(Key::Participation(key)).await?
    {
        return Ok(Json(Proposal::joined(&record)));
    }
    Err(Problem::new(
        Code::ProposalNotFound,
        format!("this party was not asked to join {}", quoted(&id)),
    ))
}
