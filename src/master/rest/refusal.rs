//! How `/submit` and `/query` say no: a status, and its cause as the reason phrase, which is all that the submitter of FedVision 0.1 shows.
//!
//! Called by `legacy` and `request`. Whatever a cause quotes, it becomes one line of printable ASCII in the head of an answer, of bounded length.

use super::{BODY_MAX, retry_after};
use crate::wire::python_json;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::ext::ReasonPhrase;
use serde_json::json;
use std::fmt::{Display, Write as _};

/// The longest cause, characters: it names a field and quotes at most a hundred characters or two of it.
const CAUSE_MAX: usize = 500;
/// The longest reason phrase, bytes: clients take a few KiB of line, people a few lines.
const REASON_MAX: usize = 1000;

/// A request that is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// With this status for this cause: `{"exception": "<cause>"}`.
    Cause(StatusCode, String),
    /// 400 for a cause that FedVision 0.1 tells in the reason phrase only: `{}`.
    Phrase(String),
    /// 413, for a body of so many bytes.
    TooLarge(u64),
}

impl Refused {
    /// 400: asking again is of no use.
    pub(super) fn bad(cause: impl Display) -> Self {
        Self::Cause(StatusCode::BAD_REQUEST, cause.to_string())
    }

    /// 503: not now.
    pub(super) fn unavailable(cause: impl Display) -> Self {
        Self::Cause(StatusCode::SERVICE_UNAVAILABLE, cause.to_string())
    }

    /// 507: the disk is full.
    pub(super) fn full(cause: impl Display) -> Self {
        Self::Cause(StatusCode::INSUFFICIENT_STORAGE, cause.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Refused::Cause(status, cause) => {
                let cause = line(&cause);
                let mut response = reply(status, python_json::text(&json!({ "exception": cause })));
                if let Some(seconds) = retry_after(status) {
                    response
                        .headers_mut()
                        .insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
                }
                with_reason(response, &cause)
            }
            Refused::Phrase(cause) => with_reason(reply(StatusCode::BAD_REQUEST, "{}".to_owned()), &line(&cause)),
            Refused::TooLarge(size) => {
                let text = format!("Maximum request body size {} exceeded, actual body size {size}", BODY_MAX + 1);
                with_reason(plain(StatusCode::PAYLOAD_TOO_LARGE, text), "Request Entity Too Large")
            }
        }
    }
}

/// An answer in JSON.
pub(super) fn reply(status: StatusCode, json: String) -> Response {
    answer(status, "application/json; charset=utf-8", json)
}

/// An answer in words.
pub(super) fn plain(status: StatusCode, text: String) -> Response {
    answer(status, "text/plain; charset=utf-8", text)
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let content_type = HeaderValue::from_static(content_type);
    (status, [(header::CONTENT_TYPE, content_type)], Body::from(body)).into_response()
}

fn with_reason(mut response: Response, cause: &str) -> Response {
    if let Ok(phrase) = ReasonPhrase::try_from(phrase(cause)) {
        response.extensions_mut().insert(phrase);
    }
    response
}

/// One line of bounded length.
fn line(cause: &str) -> String {
    let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    let mut chars = cause.trim().chars().map(|c| if breaks(c) { ' ' } else { c });
    let short: String = chars.by_ref().take(CAUSE_MAX).collect();
    if chars.next().is_some() { short + "..." } else { short }
}

/// Printable ASCII of bounded length; other characters are escaped as in the JSON of the body.
fn phrase(line: &str) -> String {
    let mut phrase = String::new();
    for c in line.chars() {
        if phrase.len() > REASON_MAX {
            return phrase + "...";
        }
        if (' '..='~').contains(&c) {
            phrase.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(phrase, "\\u{unit:04x}").expect("a String takes any text");
            }
        }
    }
    phrase
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reason(refused: Refused) -> Vec<u8> {
        let response = refused.into_response();
        response.extensions().get::<ReasonPhrase>().unwrap().as_bytes().to_vec()
    }

    #[test]
    fn a_cause_becomes_one_line_of_ascii() {
        let cause = "größe 🦀:\r\nSet-Cookie: a=b\u{2028}\u{0}\u{7f}end\n";
        let wanted = r"gr\u00f6\u00dfe \ud83e\udd80:  Set-Cookie: a=b   end";
        assert_eq!(reason(Refused::bad(cause)), wanted.as_bytes());
        assert_eq!(reason(Refused::Phrase(cause.to_owned())), wanted.as_bytes());
    }

    #[test]
    fn what_is_refused_for_now_says_when_to_come_back() {
        let cases = [
            (Refused::unavailable("no"), 503, Some("5")),
            (Refused::full("no"), 507, Some("30")),
            (Refused::bad("no"), 400, None),
        ];
        for (refused, status, seconds) in cases {
            let response = refused.into_response();
            let after = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap());
            assert_eq!((response.status().as_u16(), after), (status, seconds));
            assert_eq!(response.extensions().get::<ReasonPhrase>().unwrap().as_bytes(), b"no");
        }
    }

    proptest! {
        /// No cause can end the line, whatever is in it.
        #[test]
        fn no_cause_reaches_beyond_its_line(cause in prop_oneof![".{0,3000}", "[\\x00-\\xff]{0,3000}", "🦀{0,3000}"]) {
            let reason = reason(Refused::bad(cause));
            prop_assert!(reason.iter().all(|byte| (b' '..=b'~').contains(byte)));
            prop_assert!(reason.len() < REASON_MAX + 20);
        }
    }
}
