//! JSON bodies, strictly: said to be JSON, within a limit and a time, in the shape of a type, with the place of what does not fit.
//!
//! Used by the handlers of `/api/v1` that take a body. Types read here refuse unknown fields (`serde(deny_unknown_fields)`): a field that is
//! misspelt must never be taken for one that is not there.

use super::super::request_body::{Incomplete, whole};
use super::problem::{Code, Problem, pointer_part, quoted};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, header};
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
    if let Some(encoding) = only(headers, &header::CONTENT_ENCODING)?
        && !encoding.eq_ignore_ascii_case("identity")
    {
        return unsupported("content-encoding: send the body as it is".to_owned());
    }
    let Some(text) = only(headers, &header::CONTENT_TYPE)? else {
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

/// The one header of this name. Of two, others on the way may have looked at either.
fn only(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    match values.count() {
        0 => Ok(first),
        more => {
            let why = format!("{name}: is there {} times; send it once", more + 1);
            Err(Problem::new(Code::InvalidHeader, why))
        }
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
    let mut pointer = pointer(path);
    if let Some(field) = text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        pointer.push('/');
        pointer.push_str(field);
        return Problem::new(Code::MissingField, format!("{field}: is missing")).at(pointer);
    }
    // The name stands within the text as it is, with whatever it contains.
    if let Some(field) = text.strip_prefix("duplicate field `").and_then(|rest| rest.rsplit_once('`')) {
        pointer.push('/');
        pointer.push_str(&pointer_part(field.0));
        return Problem::field(&pointer, "is there more than once; give it once");
    }
    if text.starts_with("unknown field `")
        && let Some(Segment::Map { key }) = path.iter().next_back()
    {
        let known = text.rsplit_once("`, expected ").map(|(_, known)| known);
        let known = known.map(|known| known.rsplit_once(" at line ").map_or(known, |(known, _)| known));
        let known = known.map(|known| known.strip_prefix("one of ").unwrap_or(known));
        let known = known.map_or_else(|| "there are no fields here".to_owned(), |known| format!("there is {known}"));
        return Problem::new(Code::UnknownField, format!("{} is not known; {known}", quoted(key))).at(pointer);
    }
    let short: String = in_words(&text).chars().take(300).collect();
    match pointer.as_str() {
        "" => Problem::new(Code::InvalidField, short).at(pointer),
        field => Problem::field(field, short),
    }
}

/// What the reader says of a value that does not fit, without the names of our types and the place in the text, for the pointer says where.
fn in_words(text: &str) -> String {
    let text = text.rsplit_once(" at line ").map_or(text, |(text, _)| text);
    let wrong = ["invalid type: ", "invalid value: "]
        .iter()
        .find_map(|begin| text.strip_prefix(begin));
    let Some((given, wanted)) = wrong.and_then(|wrong| wrong.rsplit_once(", expected ")) else {
        return text.to_owned();
    };
    let wanted = match wanted {
        "a map" => "an object",
        "a sequence" => "a list",
        "i64" | "u64" => "a whole number",
        wanted if wanted.starts_with("struct ") => "an object",
        wanted => wanted,
    };
    let given = match given {
        "map" => "an object".to_owned(),
        "sequence" => "a list".to_owned(),
        "null" => "null".to_owned(),
        given => format!("the {given}"),
    };
    format!("{wanted} is wanted, not {given}")
}

/// RFC 6901.
fn pointer(path: &Path) -> String {
    let mut pointer = String::new();
    for segment in path {
        let part = match segment {
            Segment::Seq { index } => index.to_string(),
            Segment::Map { key } => pointer_part(key),
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
        #[serde(default, deserialize_with = "crate::master::rest::v1::once::map")]
        labels: BTreeMap<String, String>,
        #[serde(default, deserialize_with = "crate::master::rest::v1::once::value")]
        free: serde_json::Value,
        #[serde(default)]
        count: i64,
        items: Option<Vec<Wanted>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read in")]
    struct Single {
        reason: String,
    }

    #[test]
    fn what_is_said_of_a_field_is_a_whole_sentence() {
        fn detail(problem: Problem) -> String {
            serde_json::to_value(&problem).unwrap()["detail"].as_str().unwrap().to_owned()
        }
        let none = detail(parse::<Nothing>(br#"{"reason": 1}"#).unwrap_err());
        assert_eq!(none, "\"reason\" is not known; there are no fields here");
        let one = detail(parse::<Single>(br#"{"why": 1}"#).unwrap_err());
        assert_eq!(one, "\"why\" is not known; there is `reason`");
        let several = detail(parse::<Wanted>(br#"{"why": 1}"#).unwrap_err());
        assert_eq!(several, "\"why\" is not known; there is `name`, `labels`, `free`, `count`, `items`");
        for (text, said) in [
            ("5", "an object is wanted, not the integer `5`"),
            (r#"{"reason": null}"#, "reason: a string is wanted, not null"),
            (
                r#"{"reason": [", expected x at line 1"]}"#,
                "reason: a string is wanted, not a list",
            ),
        ] {
            assert_eq!(detail(parse::<Single>(text.as_bytes()).unwrap_err()), said, "{text}");
        }
        for (text, said) in [
            (r#"{"name": "a", "labels": [1]}"#, "labels: an object is wanted, not a list"),
            (r#"{"name": "a", "items": {}}"#, "items: a list is wanted, not an object"),
            (
                r#"{"name": "a", "count": "1"}"#,
                "count: a whole number is wanted, not the string \"1\"",
            ),
        ] {
            assert_eq!(detail(parse::<Wanted>(text.as_bytes()).unwrap_err()), said, "{text}");
        }
        let long = format!(r#"{{"name": "a", "labels": {{"{}": 1}}}}"#, "k".repeat(10_000));
        assert!(detail(parse::<Wanted>(long.as_bytes()).unwrap_err()).len() < 300);
        let twice = detail(parse::<Single>(br#"{"reason": "", "reason": ""}"#).unwrap_err());
        assert_eq!(twice, "reason: is there more than once; give it once");
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
            (r#"{"name": "a", "name": "b"}"#, "invalid_field", "/name"),
            (
                r#"{"name": "a", "items": [{"name": "b", "name": "c"}]}"#,
                "invalid_field",
                "/items/0/name",
            ),
            (
                r#"{"name": "a", "labels": {"x/`": "b", "x/`": "b"}}"#,
                "invalid_field",
                "/labels/x~1`",
            ),
            (
                r#"{"name": "a", "free": [{"b": {"c": 1, "c": 1}}]}"#,
                "invalid_field",
                "/free/0/b/c",
            ),
            (
                r#"{"name": "a", "` at line , expected b": 1}"#,
                "unknown_field",
                "/` at line , expected b",
            ),
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
        for name in ["content-type", "content-encoding"] {
            let value = if name == "content-type" { "application/json" } else { "identity" };
            let twice = [("content-type", "application/json"), (name, value), (name, value)];
            assert_eq!(shown(sent(&twice, r#"{"name": "a"}"#).await).0, "invalid_header", "{name}");
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
