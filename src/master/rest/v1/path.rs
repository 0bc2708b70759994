//! Ids in paths, and what is said to paths and methods that are none.

use super::problem::{Code, Problem, quoted};
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{Method, Uri};

/// The one id in the path of a resource, unescaped.
pub(in crate::master::rest) struct Id(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(error) => Err(Problem::new(Code::InvalidPath, error.body_text())),
        }
    }
}

/// The ids of job and task in the path of a task, unescaped.
pub(in crate::master::rest) struct Ids(pub String, pub String);

impl<S: Send + Sync> FromRequestParts<S> for Ids {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<(String, String)>::from_request_parts(parts, state).await {
            Ok(Path((job, task))) => Ok(Self(job, task)),
            Err(error) => Err(Problem::new(Code::InvalidPath, error.body_text())),
        }
    }
}

/// True for what this module answers for.
pub(in crate::master::rest) fn is_below(path: &str) -> bool {
    path == "/api/v1" || path.starts_with("/api/v1/")
}

/// Any other path below `/api/v1`.
pub(in crate::master::rest) fn not_found(uri: &Uri) -> Problem {
    Problem::new(
        Code::RouteNotFound,
        format!("there is no {}; /openapi.json has what there is", quoted(uri.path())),
    )
}

/// Any other method; the router adds those there are.
pub(in crate::master::rest) async fn not_allowed(method: Method, uri: Uri) -> Problem {
    let what = format!(
        "{} is not for {}; the header allow has what is",
        quoted(method.as_str()),
        quoted(uri.path())
    );
    Problem::new(Code::MethodNotAllowed, what)
}
