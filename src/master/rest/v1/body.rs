//! JSON bodies, strictly: said to be JSON, within a limit and a time, in the shape of a type, with the place of what does not fit.
//!
//! Used by the handlers of `/api/v1` that take a body. Types read here refuse unknown fields (`serde(deny_unknown_fields)`): a field that is
//! misspelt must never be taken for one that is not there.

use super::super::request_body::{Incomplete, whole};
use super::problem::{Code, Problem, quoted};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment};
use std::time::Duration;

/// What reading takes.
#[derive(Clone, Copy, Debug)]
pub(in crate::master::rest) struct Limit {
    /// The largest body, bytes.
    pub bytes: usize,
    /// How long it may take.
    pub time: Duration,
}

/// Read the body as a `T`; one that is not there reads as `{}`, for actions whose fields are all optional.
///
/// # Errors
/// [`Problem`]: 408, 413, 415, or 400 with a pointer to the field.
pub(in crate::master::rest) async fn read<T: DeserializeOwned>(request: Request, limit: Limit) -> Result<T, Problem> {
    let headers = request.headers().clone();
    let body = match tokio::time::timeout(limit.time, whole(request, limit.bytes)).await {
        Ok(Ok(body)) => body,
        Ok(Err(Incomplete::TooLarge(size))) => {
            let why = format!("the body has {size} bytes, at most {} are taken", limit.bytes);
            return Err(Problem::new(Code::BodyTooLarge, why));
        }
        Ok(Err(Incomplete::BrokeOff(why))) => return Err(Problem::new(Code::MalformedJson, format!("the body broke off: {why}"))),
        Err(_) => {
            let why = format!("the body was not there within {:?}", limit.time);
            return Err(Problem::new(Code::RequestTimeout, why));
        }
    };
    if body.is_empty() && !headers.contains_key(header::CONTENT_TYPE) {
        return parse(b"{}");
    }
    check_type(&headers)?;
    parse(&body)
}

/// `application/json` in UTF-8, as it is.
fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let unsupported = |detail: String| Err(Problem::new(Code::UnsupportedMediaType, detail));
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return unsupported("content-encoding: send the body as it is".to_owned());
    }
    let text = headers
        .get(header::CONTENT_TYPE)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let Some(text) = text else {
        return unsupported("content-type: is missing; send application/json".to_owned());
    };
    let mut parts = text.split(';').map(str::trim);
    if !parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
        return unsupported(format!("content-type: {} is not taken; send application/json", quoted(&text)));
    }
    let utf8 = |part: &str| match part.split_once('=') {
        Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8"),
        _ => true,
    };
    if parts.all(utf8) {
        Ok(())
    } else {
        unsupported(format!("content-type: {} is not taken; JSON is UTF-8", quoted(&text)))
    }
}

/// Parse JSON text.
///
/// # Errors
/// 400, with a pointer to the field that does not fit.
pub(in crate::master::rest) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Problem> {
    // A list would be read as an object's fields in their order.
    if text
        .iter()
        .find(|byte| !byte.is_ascii_whitespace())
        .is_some_and(|first| *first == b'[')
    {
        return Err(Problem::new(Code::InvalidField, "a JSON object is wanted, not a list").at(""));
    }
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| unfit(&error))?;
    reader.end().map_err(|error| Problem::new(Code::MalformedJson, error))?;
    Ok(value)
}

fn unfit(error: &serde_path_to_error::Error<serde_json::Error>) -> Problem {
    let (path, inner) = (error.path(), error.inner());
    if !inner.is_data() {
        return Problem::new(Code::MalformedJson, inner);
    }
    let text = inner.to_string();
    let named = |begin: &str| text.strip_prefix(begin)?.split('`').next().map(str::to_owned);
    let mut pointer = pointer(path);
    if let Some(field) = named("missing field `") {
        pointer.push('/');
        pointer.push_str(&field);
        return Problem::new(Code::MissingField, format!("{field}: is missing")).at(pointer);
    }
    if let Some(field) = named("unknown field `") {
        let known = text.split_once(", expected ").map_or("", |(_, known)| known);
        let known = known.rsplit_once(" at line ").map_or(known, |(known, _)| known);
        let detail = format!("{} is not known; there is {known}", quoted(&field));
        return Problem::new(Code::UnknownField, detail).at(pointer);
    }
    let at = if pointer.is_empty() { String::new() } else { format!("{path}: ") };
    let short: String = text.chars().take(300).collect();
    Problem::new(Code::InvalidField, format!("{at}{short}")).at(pointer)
}

/// RFC 6901.
fn pointer(path: &Path) -> String {
    let mut pointer = String::new();
    for segment in path {
        let part = match segment {
            Segment::Seq { index } => index.to_string(),
            Segment::Map { key } => key.chars().take(100).collect::<String>().replace('~', "~0").replace('/', "~1"),
            Segment::Enum { variant } => variant.clone(),
            Segment::Unknown => continue,
        };
        pointer.push('/');
        pointer.push_str(&part);
    }
    pointer
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read in")]
    struct Wanted {
        name: String,
        labels: Option<BTreeMap<String, String>>,
        items: Option<Vec<Wanted>>,
    }

    fn shown(result: Result<Wanted, Problem>) -> (String, String) {
        let shown = serde_json::to_value(result.unwrap_err()).unwrap();
        let text = |name: &str| shown[name].as_str().unwrap_or_default().to_owned();
        (text("code"), text("pointer"))
    }

    #[test]
    fn the_place_of_what_does_not_fit_is_told() {
        let cases = [
            (r#"{"name": 1}"#, "invalid_field", "/name"),
            (r#"{}"#, "missing_field", "/name"),
            (r#"{"name": "a", "nam": 1}"#, "unknown_field", "/nam"),
            (r#"{"name": "a", "labels": {"a/b~": 1}}"#, "invalid_field", "/labels/a~1b~0"),
            (
                r#"{"name": "a", "items": [{"name": "b"}, {"x": 1}]}"#,
                "unknown_field",
                "/items/1/x",
            ),
            (r#"{"name": "a", "items": [{}]}"#, "missing_field", "/items/0/name"),
            (r#"{"name": "a", "name": "b"}"#, "invalid_field", ""),
            ("{bad", "malformed_json", ""),
            ("", "malformed_json", ""),
            (r#"{"name": "a"} x"#, "malformed_json", ""),
            ("[\"a\"]", "invalid_field", ""),
            ("5", "invalid_field", ""),
        ];
        for (text, code, pointer) in cases {
            assert_eq!(shown(parse(text.as_bytes())), (code.to_owned(), pointer.to_owned()), "{text}");
        }
        let deep = parse::<serde_json::Value>("{\"a\": ".repeat(100_000).as_bytes());
        assert_eq!(deep.unwrap_err().code(), Code::MalformedJson);
    }

    async fn sent(headers: &[(&str, &str)], body: impl Into<Body>) -> Result<Wanted, Problem> {
        let mut request = Request::new(body.into());
        for (name, value) in headers {
            let name = header::HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        let limit = Limit {
            bytes: 100,
            time: Duration::from_millis(10),
        };
        read(request, limit).await
    }

    #[tokio::test]
    async fn only_json_that_says_so_is_taken() {
        let good = [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/json;charset=\"utf-8\"",
        ];
        for content_type in good {
            assert!(
                sent(&[("content-type", content_type)], r#"{"name": "a"}"#).await.is_ok(),
                "{content_type}"
            );
        }
        for headers in [
            [("content-type", "text/plain")],
            [("content-type", "application/json; charset=latin-1")],
            [("accept", "application/json")],
        ] {
            assert_eq!(
                shown(sent(&headers, r#"{"name": "a"}"#).await).0,
                "unsupported_media_type",
                "{headers:?}"
            );
        }
        let packed = [("content-type", "application/json"), ("content-encoding", "gzip")];
        assert_eq!(shown(sent(&packed, "{}").await).0, "unsupported_media_type");
        assert_eq!(shown(sent(&[], Body::empty()).await).0, "missing_field");
        let json = [("content-type", "application/json")];
        assert_eq!(shown(sent(&json, " ".repeat(101)).await).0, "body_too_large");
        let never = Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        assert_eq!(shown(sent(&json, never).await).0, "request_timeout");
    }
}
