//! What a client would rather have, where a resource has two shapes: a page of JSON, or a stream of server-sent events.
//!
//! Asked by `events`. Weights are those of RFC 9110, 12.4.2 and 12.5.1. What is not readable in the header weighs as if nothing were said: a client of
//! another opinion about it gets an answer, not a refusal.

use axum::http::{HeaderMap, header};

/// True when a stream is wanted: named, not refused with `q=0`, and wanted at least as much as JSON where that is named too. A range such as `*/*` says
/// what else will do, and chooses neither.
pub(super) fn wants_stream(headers: &HeaderMap) -> bool {
    let ranges: Vec<(String, f32)> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(range)
        .collect();
    // Of two that are alike, the last.
    let weight = |name: &str| ranges.iter().rev().find(|(range, _)| range == name).map(|(_, weight)| *weight);
    let json = weight("application/json").unwrap_or(0.0);
    weight("text/event-stream").is_some_and(|stream| stream > 0.0 && stream >= json)
}

/// A media range in lower case, and its weight from 0 to 1.
fn range(text: &str) -> (String, f32) {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default().to_ascii_lowercase();
    let weight = parts.filter_map(|part| part.split_once('=')).find_map(|(key, value)| {
        let is_weight = key.trim().eq_ignore_ascii_case("q");
        let value = is_weight.then(|| value.trim().parse::<f32>().ok()).flatten()?;
        (0.0..=1.0).contains(&value).then_some(value)
    });
    (name, weight.unwrap_or(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(values: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::ACCEPT, value.parse().unwrap());
        }
        wants_stream(&headers)
    }

    #[test]
    fn weights_decide() {
        for stream in [
            "text/event-stream",
            "Text/Event-Stream; charset=utf-8",
            "application/json;q=0.5, text/event-stream",
            "text/event-stream, */*",
            "application/json, text/event-stream",
            "text/event-stream;q=0.9, */*",
            "text/event-stream; Q=0.9, application/json;q=0.8, */*;q=1",
            "text/event-stream;q=0.5, application/json;q=0",
            "application/json;q=.2, text/event-stream;q=nonsense",
        ] {
            assert!(wanted(&[stream]), "{stream}");
        }
        for json in [
            "",
            "*/*",
            "text/*",
            "text/html, application/json",
            "text/event-stream;q=0",
            "text/event-stream;q=0.000, application/json;q=0",
            "text/event-stream;q=0.5, application/json",
            "text/event-streams",
        ] {
            assert!(!wanted(&[json]), "{json}");
        }
        assert!(wanted(&["application/json;q=0.5", "text/event-stream"]), "two headers are one list");
        assert!(!wanted(&[]));
    }
}
