//! Query parameters, strictly: each is asked for by name, at most once unless it may repeat, and what nobody asked for is refused.
//!
//! Used by the handlers of `/api/v1`. A parameter that is misspelt must never be taken for one that is not there: the answer would be another.

use super::problem::{Code, Problem, quoted};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use std::fmt::Display;
use std::str::FromStr;

/// The longest query string, bytes: the most labels and ids that one filter may ask for fit twice.
const QUERY_MAX: usize = 16 * 1024;

/// The parameters of a request that have not been taken yet.
#[derive(Clone, Debug, Default)]
pub(in crate::master::rest) struct Query {
    pairs: Vec<(String, String)>,
    /// Names that were asked for, for the text of a refusal.
    known: Vec<&'static str>,
}

impl Query {
    /// Parse the part of a URL behind `?`.
    ///
    /// # Errors
    /// Too long, or not UTF-8 once unescaped.
    pub(in crate::master::rest) fn parse(raw: &str) -> Result<Self, Problem> {
        if raw.len() > QUERY_MAX {
            let why = format!("the query is {} bytes long, at most {QUERY_MAX} are taken", raw.len());
            return Err(Problem::new(Code::InvalidParameter, why));
        }
        let pairs: Vec<(String, String)> = form_urlencoded::parse(raw.as_bytes()).into_owned().collect();
        // The parser puts the replacement character for bytes that are no text.
        if let Some((name, _)) = pairs
            .iter()
            .find(|(name, value)| [name, value].iter().any(|text| text.contains('\u{fffd}')))
        {
            return Err(Problem::new(Code::InvalidParameter, format!("{} is not UTF-8", quoted(name))));
        }
        Ok(Self { pairs, known: Vec::new() })
    }

    /// The same with one that the path gives; a second one in the query is refused.
    ///
    /// # Errors
    /// It is there already.
    pub(in crate::master::rest) fn with(mut self, name: &str, value: String) -> Result<Self, Problem> {
        if self.pairs.iter().any(|(other, _)| other == name) {
            return Err(Problem::new(Code::UnknownParameter, format!("{name} is given by the path")).at(format!("?{name}")));
        }
        self.pairs.push((name.to_owned(), value));
        Ok(self)
    }

    /// All values of a parameter that may repeat, in order.
    pub(in crate::master::rest) fn all(&mut self, name: &'static str) -> Vec<String> {
        self.known.push(name);
        let (taken, left) = std::mem::take(&mut self.pairs).into_iter().partition(|(other, _)| other == name);
        self.pairs = left;
        let taken: Vec<(String, String)> = taken;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    /// The value of a parameter.
    ///
    /// # Errors
    /// It is there twice.
    pub(in crate::master::rest) fn one(&mut self, name: &'static str) -> Result<Option<String>, Problem> {
        let mut values = self.all(name);
        if values.len() > 1 {
            return Err(Problem::parameter(name, format!("is there {} times; give it once", values.len())));
        }
        Ok(values.pop())
    }

    /// The value of a parameter, parsed.
    ///
    /// # Errors
    /// It is there twice, or cannot be parsed.
    pub(in crate::master::rest) fn parsed<T: FromStr<Err: Display>>(&mut self, name: &'static str) -> Result<Option<T>, Problem> {
        let parse = |text: String| {
            text.parse()
                .map_err(|why| Problem::parameter(name, format!("{}: {why}", quoted(&text))))
        };
        self.one(name)?.map(parse).transpose()
    }

    /// The value of a whole number, within bounds.
    ///
    /// # Errors
    /// It is there twice, is no number, or out of bounds.
    pub(in crate::master::rest) fn number(&mut self, name: &'static str, least: u64, most: u64) -> Result<Option<u64>, Problem> {
        let parse = |text: String| match text.parse::<u64>() {
            // "+5" and "05" would be two more ways to write a number.
            Ok(number) if (least..=most).contains(&number) && text == number.to_string() => Ok(number),
            _ => Err(Problem::parameter(
                name,
                format!("{} is no whole number from {least} to {most}", quoted(&text)),
            )),
        };
        self.one(name)?.map(parse).transpose()
    }

    /// Refuse what is left.
    ///
    /// # Errors
    /// A parameter that nobody asked for.
    pub(in crate::master::rest) fn end(mut self) -> Result<(), Problem> {
        let Some((name, _)) = self.pairs.pop() else { return Ok(()) };
        let known = match self.known.as_slice() {
            [] => "this resource takes none".to_owned(),
            known => format!("this resource takes {}", known.join(", ")),
        };
        let short: String = name.chars().take(64).collect();
        Err(Problem::new(Code::UnknownParameter, format!("{} is not known; {known}", quoted(&name))).at(format!("?{short}")))
    }
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::parse(parts.uri.query().unwrap_or_default())
    }
}

/// For resources that take no parameters.
pub(in crate::master::rest) struct NoQuery;

impl<S: Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        Query::from_request_parts(parts, state).await?.end().map(|()| NoQuery)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(result: Result<impl std::fmt::Debug, Problem>) -> (Code, String) {
        let problem = result.unwrap_err();
        let shown = serde_json::to_value(&problem).unwrap();
        (problem.code(), shown["pointer"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn what_is_not_asked_for_is_refused() {
        let mut query = Query::parse("a=1&b=x%20y&b=z&c").unwrap();
        assert_eq!(query.number("a", 1, 9).unwrap(), Some(1));
        assert_eq!(query.all("b"), ["x y", "z"]);
        assert_eq!(query.one("d").unwrap(), None);
        assert_eq!(refused(query.end()), (Code::UnknownParameter, "?c".to_owned()));
    }

    #[test]
    fn values_are_read_strictly() {
        assert_eq!(
            refused(Query::parse("a=1&a=1").unwrap().one("a")),
            (Code::InvalidParameter, "?a".to_owned())
        );
        for text in ["0", "10", "+5", "05", "-1", "1.0", "", "x", "99999999999999999999999"] {
            let mut query = Query::parse(&format!("a={}", text.replace('+', "%2b"))).unwrap();
            assert_eq!(refused(query.number("a", 1, 9)).0, Code::InvalidParameter, "{text}");
        }
        assert_eq!(refused(Query::parse("a=%ff")).0, Code::InvalidParameter);
        assert_eq!(refused(Query::parse(&"a".repeat(QUERY_MAX + 1))).0, Code::InvalidParameter);
    }
}
