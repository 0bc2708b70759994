//! Which jobs are meant: the filter that lists, exports and bulk actions share.
//!
//! It asks the index for candidates and the record for the truth, so that a job that changed meanwhile is never shown under a filter it does not fit.

use super::once;
use super::problem::{Problem, quoted};
use super::query::Query;
use super::time;
use crate::machine::ids::Timestamp;
use crate::machine::master::records::{Job, StepName};
use crate::master::index::{Wanted, label_hashes, state_number};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// The most labels of one filter.
const LABELS_MAX: usize = 16;
/// What is wrong with the begin of an id that is none.
const NO_BEGIN: &str = "is empty; give the begin of an id, or leave it out";
/// Digits of the stamp of an id.
const STAMP: usize = 14;

/// All of it must fit; what is empty fits everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::master::rest) struct Filter {
    states: BTreeSet<StepName>,
    job_type: Option<String>,
    /// Key, and the value unless any will do.
    labels: BTreeSet<(String, Option<String>)>,
    created_after: Option<Timestamp>,
    created_before: Option<Timestamp>,
    /// What the id begins with.
    begin: Option<String>,
}

/// The same in a body.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Filter)]
pub(in crate::master::rest) struct FilterBody {
    /// In one of these states.
    #[serde(default)]
    #[schema(value_type = Vec<super::job::State>)]
    state: Vec<String>,
    job_type: Option<String>,
    /// With all of these labels; null for any value.
    #[serde(default, deserialize_with = "once::map")]
    labels: BTreeMap<String, Option<String>>,
    /// Accepted at this time or later.
    #[schema(format = DateTime)]
    created_after: Option<String>,
    /// Accepted before this time.
    #[schema(format = DateTime)]
    created_before: Option<String>,
    /// Whose id begins so.
    q: Option<String>,
}

impl Filter {
    /// From the parameters of a list.
    ///
    /// # Errors
    /// One of them is not right.
    pub(in crate::master::rest) fn take(query: &mut Query) -> Result<Self, Problem> {
        let at = |query: &mut Query, name: &'static str| -> Result<Option<Timestamp>, Problem> {
            let read = |text: String| time::read(&text).map_err(|why| Problem::parameter(name, format!("{} {why}", quoted(&text))));
            query.one(name)?.map(read).transpose()
        };
        let states = query
            .all("state")
            .into_iter()
            .map(|name| state(&name).map_err(|why| Problem::parameter("state", why)));
        let states = states.collect::<Result<_, _>>()?;
        let labels: BTreeSet<_> = query.all("label").iter().map(|text| label(text)).collect();
        if labels.len() > LABELS_MAX {
            return Err(Problem::parameter(
                "label",
                format!("{} of them are more than {LABELS_MAX}", labels.len()),
            ));
        }
        let begin = query.one("q")?;
        if begin.as_deref() == Some("") {
            return Err(Problem::parameter("q", NO_BEGIN));
        }
        Ok(Self {
            states,
            job_type: query.one("job_type")?,
            labels,
            created_after: at(query, "created_after")?,
            created_before: at(query, "created_before")?,
            begin,
        })
    }

    /// From the body of a bulk action.
    ///
    /// # Errors
    /// A field of it is not right.
    pub(in crate::master::rest) fn of_body(body: FilterBody) -> Result<Self, Problem> {
        let at = |text: Option<String>, name: &str| -> Result<Option<Timestamp>, Problem> {
            let read = |text: String| {
                time::read(&text).map_err(|why| Problem::field(&format!("/filter/{name}"), format!("{} {why}", quoted(&text))))
            };
            text.map(read).transpose()
        };
        let begin = body.q;
        // Taken for one that is not there, it would end jobs that were not meant.
        if begin.as_deref() == Some("") {
            return Err(Problem::field("/filter/q", NO_BEGIN));
        }
        let states = body
            .state
            .iter()
            .map(|name| state(name).map_err(|why| Problem::field("/filter/state", why)));
        Ok(Self {
            states: states.collect::<Result<_, _>>()?,
            job_type: body.job_type,
            labels: body.labels.into_iter().collect(),
            created_after: at(body.created_after, "created_after")?,
            created_before: at(body.created_before, "created_before")?,
            begin,
        })
    }

    /// The same for jobs that have not ended; `None` when it means only those that have.
    pub(in crate::master::rest) fn not_ended(mut self) -> Option<Self> {
        let all = self.states.is_empty();
        let open = StepName::ALL.into_iter().filter(|state| !state.is_final());
        self.states = open.filter(|state| all || self.states.contains(state)).collect();
        (!self.states.is_empty()).then_some(self)
    }

    /// A text that is the same for the same filter, and another for another.
    pub(in crate::master::rest) fn text(&self) -> String {
        format!("{self:?}")
    }

    /// True when every job fits.
    pub(in crate::master::rest) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What to ask the index.
    pub(in crate::master::rest) fn wanted(&self, party: &str) -> Wanted {
        let hash = |(key, value): &(String, Option<String>)| {
            let [of_key, of_pair] = label_hashes(key, value.as_deref().unwrap_or_default());
            if value.is_some() { of_pair } else { of_key }
        };
        let created = |after: Option<Timestamp>, before: Option<Timestamp>| {
            let range = after.map_or(0, |at| at.0)..before.map_or(u64::MAX, |at| at.0);
            (after.is_some() || before.is_some()).then_some(range)
        };
        let mut wanted = Wanted {
            states: self.states.iter().map(|state| state_number(*state)).collect(),
            job_type: self.job_type.clone(),
            labels: self.labels.iter().map(hash).collect(),
            created: created(self.created_after, self.created_before),
            ..Wanted::default()
        };
        if let Some(begin) = &self.begin {
            wanted.narrow_to(party, begin);
        }
        wanted
    }

    /// Whether a job is meant, by its record.
    pub(in crate::master::rest) fn fits(&self, job: &Job) -> bool {
        let has = |(key, value): &(String, Option<String>)| {
            let found = job.spec.labels.get(key);
            found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
        };
        (self.states.is_empty() || self.states.contains(&job.state.step_name()))
            && self.job_type.as_ref().is_none_or(|name| name == job.spec.job_type.as_str())
            && self.labels.iter().all(has)
            && self.created_after.is_none_or(|at| job.submitted_at >= at)
            && self.created_before.is_none_or(|at| job.submitted_at < at)
            && self.begin.as_ref().is_none_or(|begin| job.id.as_str().starts_with(begin))
    }
}

impl Wanted {
    /// Jobs whose ids, `<party>-<stamp>-<number>`, begin so.
    fn narrow_to(&mut self, party: &str, begin: &str) {
        let of_party = format!("{party}-");
        if of_party.starts_with(begin) {
            return;
        }
        let nothing = Some(0..0);
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let Some(rest) = begin.strip_prefix(&of_party) else {
            self.stamps = nothing;
            return;
        };
        let (stamp, number) = rest.split_once('-').map_or((rest, None), |(stamp, number)| (stamp, Some(number)));
        let whole = stamp.len() == STAMP;
        if !digits(stamp) || stamp.len() > STAMP || (number.is_some() && !whole) || number.is_some_and(|number| !digits(number)) {
            self.stamps = nothing;
            return;
        }
        let unit = 10u64.pow(u32::try_from(STAMP - stamp.len()).expect("there are fourteen"));
        let least = stamp.parse::<u64>().expect("at most fourteen digits") * unit;
        self.stamps = Some(least..least + unit);
        self.digits = number.filter(|number| !number.is_empty()).map(str::to_owned);
    }
}

/// `key:value`, or `key` for any value. A key has no colon.
fn label(text: &str) -> (String, Option<String>) {
    match text.split_once(':') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (text.to_owned(), None),
    }
}

/// A state by its name.
///
/// # Errors
/// There is none, in words.
pub(in crate::master::rest) fn state(name: &str) -> Result<StepName, String> {
    let found = StepName::ALL.into_iter().find(|state| state.name() == name);
    found.ok_or_else(|| {
        let known = StepName::ALL.map(StepName::name).join(", ");
        format!("{} is none; there are {known}", quoted(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_begin_of_an_id_becomes_ranges() {
        let narrowed = |begin: &str| {
            let mut wanted = Wanted::default();
            wanted.narrow_to("p-1", begin);
            (wanted.stamps, wanted.digits)
        };
        for all in ["p", "p-", "p-1", "p-1-"] {
            assert_eq!(narrowed(all), (None, None), "{all}");
        }
        assert_eq!(narrowed("p-1-2026"), (Some(20_260_000_000_000..20_270_000_000_000), None));
        let whole = Some(20_260_101_120_000..20_260_101_120_001);
        assert_eq!(narrowed("p-1-20260101120000"), (whole.clone(), None));
        assert_eq!(narrowed("p-1-20260101120000-"), (whole.clone(), None));
        assert_eq!(narrowed("p-1-20260101120000-12"), (whole, Some("12".to_owned())));
        for none in [
            "q",
            "p-2",
            "p-1-x",
            "p-1-2026-1",
            "p-1-202601011200001",
            "p-1-20260101120000-x",
            "p-1-20260101120000-1-",
        ] {
            assert_eq!(narrowed(none).0, Some(0..0), "{none}");
        }
    }
}
