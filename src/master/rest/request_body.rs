//! From a request to its JSON: the whole body within its limits, unpacked, in its charset, read as Python reads it.
//!
//! Called by `legacy`; `v1` uses its limits only. The content type is not asked for more than its charset, as in FedVision 0.1, so that curl's own one does.

use super::python_reader::{Error, read};
use super::python_value::{Json, Text};
use super::refusal::Refused;
use super::{BODY_MAX, READ_LIMIT, READ_MAX};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use encoding_rs::Encoding;
use flate2::read::{DeflateDecoder, GzDecoder, ZlibDecoder};
use futures_util::StreamExt;
use std::io::Read;
use std::time::Duration;

/// The object a request brings.
pub(super) struct Fields(Vec<(Text, Json)>);

impl Fields {
    /// Take a field out.
    pub(super) fn take(&mut self, name: &str) -> Option<Json> {
        let place = self.0.iter().position(|(key, _)| matches!(key, Text::Good(key) if key == name))?;
        Some(self.0.swap_remove(place).1)
    }
}

/// Read it; `limit` is the time its body may take.
///
/// # Errors
/// There is none.
pub(super) async fn fields(request: Request, limit: Duration) -> Result<Fields, Refused> {
    let headers = request.headers().clone();
    let body = match tokio::time::timeout(limit, whole(request, BODY_MAX)).await {
        Ok(Ok(body)) => unpack(&headers, body)?,
        Ok(Err(Incomplete::TooLarge(size))) => return Err(Refused::TooLarge(size)),
        Ok(Err(Incomplete::BrokeOff(why))) => return Err(Refused::bad(format!("the request body broke off: {why}"))),
        Err(_) => {
            let cause = format!("the request body was not there within {limit:?}");
            return Err(Refused::Cause(StatusCode::REQUEST_TIMEOUT, cause));
        }
    };
    match read(&decode(&headers, body)?) {
        Ok(Json::Object(fields)) => Ok(Fields(fields)),
        Ok(_) => Err(Refused::bad("the request body must be a JSON object")),
        Err(syntax @ Error::Syntax { .. }) => Err(Refused::Phrase(syntax.to_string())),
        Err(limit @ (Error::Deep | Error::LongInteger)) => Err(Refused::bad(limit)),
    }
}

/// Why there is no whole body.
pub(super) enum Incomplete {
    /// It has so many bytes.
    TooLarge(u64),
    /// In words.
    BrokeOff(String),
}

/// The whole body, of at most `most` bytes. One that is too large is read on for a while: a client that is still sending when the connection closes would see it break
/// instead of the answer. One that waits to be asked for its body (`Expect: 100-continue`) is not asked for it.
pub(super) async fn whole(request: Request, most: usize) -> Result<Vec<u8>, Incomplete> {
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let waits = request.headers().contains_key(header::EXPECT);
    if let Some(length) = announced
        && (length > READ_MAX.max(most) as u64 || (waits && length > most as u64))
    {
        return Err(Incomplete::TooLarge(length));
    }
    let mut pieces = request.into_body().into_data_stream();
    let mut body = Vec::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| Incomplete::BrokeOff(error.to_string()))?;
        let size = body.len() + piece.len();
        if size > most {
            let mut rest = READ_MAX;
            let drain = async {
                while let Some(Ok(piece)) = pieces.next().await {
                    rest = rest.saturating_sub(piece.len());
                    if rest == 0 {
                        break;
                    }
                }
            };
            let _ = tokio::time::timeout(READ_LIMIT, drain).await;
            return Err(Incomplete::TooLarge(announced.unwrap_or(size as u64)));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// Undo the content encodings that FedVision 0.1 undoes; the limit holds for what comes out.
fn unpack(headers: &HeaderMap, body: Vec<u8>) -> Result<Vec<u8>, Refused> {
    let encoding = headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok());
    let encoding = encoding.unwrap_or_default().trim().to_ascii_lowercase();
    if body.is_empty() {
        return Ok(body);
    }
    let mut unpacked = Vec::new();
    // The method's number in the head of zlib; some send what is deflated without one.
    let headed = body[0] & 0x0f == 8;
    let limit = BODY_MAX as u64 + 1;
    let done = match encoding.as_str() {
        "gzip" => GzDecoder::new(&body[..]).take(limit).read_to_end(&mut unpacked),
        "deflate" if headed => ZlibDecoder::new(&body[..]).take(limit).read_to_end(&mut unpacked),
        "deflate" => DeflateDecoder::new(&body[..]).take(limit).read_to_end(&mut unpacked),
        "br" => {
            let cause = "content-encoding: br is not supported; send gzip, or the body as it is";
            return Err(Refused::bad(cause));
        }
        // Not known to 0.1 either: the body says what it is.
        _ => return Ok(body),
    };
    done.map_err(|error| Refused::bad(format!("the request body is not what content-encoding {encoding} says: {error}")))?;
    if unpacked.len() > BODY_MAX {
        return Err(Refused::TooLarge(unpacked.len() as u64));
    }
    Ok(unpacked)
}

/// The text in the charset of the content type, UTF-8 if it has none.
fn decode(headers: &HeaderMap, body: Vec<u8>) -> Result<String, Refused> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .map(|value| String::from_utf8_lossy(value.as_bytes()));
    let charset = content_type.as_deref().and_then(charset).unwrap_or_default();
    let plain: String = charset.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let body = match body.strip_prefix(b"\xef\xbb\xbf") {
        Some(unmarked) if plain == "utf8sig" => unmarked.to_vec(),
        _ => body,
    };
    let broken = || {
        Refused::bad(format!(
            "the request body is not {}",
            if plain.is_empty() { "UTF-8" } else { &charset }
        ))
    };
    match plain.as_str() {
        "" | "utf8" | "u8" | "utf8sig" => String::from_utf8(body).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Refused::bad(format!(
                "the request body is not UTF-8 at byte {at}; name its charset in the content type"
            ))
        }),
        "ascii" | "usascii" => String::from_utf8(body).ok().filter(|text| text.is_ascii()).ok_or_else(broken),
        // What the web calls so is another charset.
        "latin1" | "iso88591" | "l1" => Ok(body.into_iter().map(char::from).collect()),
        _ => {
            let (encoding, mark) = encoding(&plain, &charset, &body)?;
            let text = encoding.decode_without_bom_handling_and_without_replacement(&body[mark..]);
            text.map(Into::into).ok_or_else(broken)
        }
    }
}

/// An encoding, and how many bytes its mark takes at the begin of the body.
fn encoding(plain: &str, charset: &str, body: &[u8]) -> Result<(&'static Encoding, usize), Refused> {
    let known = match plain {
        "utf16" => return Ok(Encoding::for_bom(body).unwrap_or((encoding_rs::UTF_16LE, 0))),
        "utf16le" => Some(encoding_rs::UTF_16LE),
        "utf16be" => Some(encoding_rs::UTF_16BE),
        _ => Encoding::for_label(charset.as_bytes()).or_else(|| Encoding::for_label(charset.replace('_', "-").as_bytes())),
    };
    let shown: String = charset.chars().take(100).collect();
    let unknown = || Refused::bad(format!("content-type: charset {shown} is not known; use utf-8"));
    Ok((known.ok_or_else(unknown)?, 0))
}

/// `charset` of a content type, in lower case.
fn charset(content_type: &str) -> Option<String> {
    let mut parameters = content_type.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let (_, value) = parameters.find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))?;
    Some(value.trim().trim_matches('"').trim().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, Bytes};
    use futures_util::stream;
    use std::io::Write;

    async fn taken(headers: &[(&str, &str)], body: impl Into<Body>) -> Result<String, Refused> {
        let mut request = Request::new(body.into());
        for (name, value) in headers {
            let name = header::HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        let mut fields = fields(request, Duration::from_secs(60)).await?;
        Ok(fields.take("a").map(|value| value.dumps()).unwrap_or_default())
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_not_waited_for() {
        let begun = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"{\"job_type\": "))]);
        let body = Body::from_stream(begun.chain(stream::pending()));
        let refused = fields(Request::new(body), Duration::from_millis(10)).await.err().unwrap();
        let cause = "the request body was not there within 10ms".to_owned();
        assert_eq!(refused, Refused::Cause(StatusCode::REQUEST_TIMEOUT, cause));
    }

    #[tokio::test]
    async fn the_charset_of_the_content_type_is_that_of_the_body() {
        let utf16 = |mark: &str| {
            format!("{mark}{{\"a\": \"é\"}}")
                .encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect()
        };
        let good: [(&str, Vec<u8>, &str); 12] = [
            ("text/plain", "{\"a\": \"é\"}".into(), "\\u00e9"),
            ("x; charset=", "{\"a\": \"é\"}".into(), "\\u00e9"),
            ("application/json;Charset=\"UTF_8\"; x=y", "{\"a\": \"é\"}".into(), "\\u00e9"),
            ("a/b; charset=latin-1", b"{\"a\": \"\xe9\x80\"}".to_vec(), "\\u00e9\\u0080"),
            ("a/b; charset=ISO_8859-1", b"{\"a\": \"\xe9\x80\"}".to_vec(), "\\u00e9\\u0080"),
            ("a/b; charset=cp1252", b"{\"a\": \"\xe9\x80\"}".to_vec(), "\\u00e9\\u20ac"),
            ("a/b; charset=us-ascii", b"{\"a\": \"e\"}".to_vec(), "e"),
            ("a/b; charset=utf-16", utf16("\u{feff}"), "\\u00e9"),
            ("a/b; charset=utf-16", utf16(""), "\\u00e9"),
            ("a/b; charset=utf-16-le", utf16(""), "\\u00e9"),
            ("a/b; charset=utf-8-sig", "\u{feff}{\"a\": \"é\"}".into(), "\\u00e9"),
            ("a/b; charset=GB2312", b"{\"a\": \"\xd6\xd0\"}".to_vec(), "\\u4e2d"),
        ];
        for (content_type, body, text) in good {
            let taken = taken(&[("content-type", content_type)], body).await;
            assert_eq!(taken, Ok(format!("\"{text}\"")), "{content_type}");
        }
        let bad = [
            (
                "a/b",
                "the request body is not UTF-8 at byte 7; name its charset in the content type",
            ),
            ("a/b; charset=ascii", "the request body is not ascii"),
            ("a/b; charset=euc-jp", "the request body is not euc-jp"),
            ("a/b; charset=nope", "content-type: charset nope is not known; use utf-8"),
        ];
        for (content_type, cause) in bad {
            let refused = taken(&[("content-type", content_type)], b"{\"a\": \"\xe9\"}".to_vec()).await;
            assert_eq!(refused, Err(Refused::bad(cause)), "{content_type}");
        }
    }

    #[tokio::test]
    async fn packed_bodies_are_unpacked_within_the_limit() {
        let gzip = |text: &[u8]| {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            packer.write_all(text).unwrap();
            packer.finish().unwrap()
        };
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        zlib.write_all(b"{\"a\": 1}").unwrap();
        let zlib = zlib.finish().unwrap();
        let bare = zlib[2..zlib.len() - 4].to_vec();
        for (encoding, body) in [
            ("GZIP", gzip(b"{\"a\": 1}")),
            ("deflate", zlib),
            ("deflate", bare),
            ("identity", b"{\"a\": 1}".to_vec()),
        ] {
            assert_eq!(
                taken(&[("content-encoding", encoding)], body).await,
                Ok("1".to_owned()),
                "{encoding}"
            );
        }
        let long = |length: usize| gzip(format!("{{\"a\": 1}}{}", " ".repeat(length - 8)).as_bytes());
        assert_eq!(taken(&[("content-encoding", "gzip")], long(BODY_MAX)).await, Ok("1".to_owned()));
        let bomb = taken(&[("content-encoding", "gzip")], long(100 << 20)).await;
        assert_eq!(bomb, Err(Refused::TooLarge(BODY_MAX as u64 + 1)));
        for (encoding, body) in [
            ("gzip", b"{}".to_vec()),
            ("deflate", b"{}".to_vec()),
            ("gzip", gzip(b"{}")[..12].to_vec()),
            ("br", b"{}".to_vec()),
        ] {
            let refused = taken(&[("content-encoding", encoding)], body).await;
            let Err(Refused::Cause(StatusCode::BAD_REQUEST, cause)) = refused else {
                panic!("{encoding}: {refused:?}")
            };
            assert!(
                cause.contains(&format!("content-encoding {encoding}")) || encoding == "br",
                "{cause}"
            );
        }
    }
}
