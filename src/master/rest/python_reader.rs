//! A JSON reader that takes and refuses what Python's `json.loads` does, with the same words and position: they are the reason phrase
//! that users of FedVision 0.1 see.
//!
//! Called by `request`. It never panics and never recurses deeper than [`DEPTH_MAX`], whatever the text is.

use super::python_value::{Json, Text};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The deepest nesting, levels. Python goes on to some hundreds; whoever reads a stored `job_config` again goes no deeper than this.
pub(super) const DEPTH_MAX: u32 = 127;
/// The most digits of an integer: Python's own limit, because the cost of converting grows with their square.
const DIGITS_MAX: usize = 4300;

/// A text that is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// Not JSON, worded and counted as by Python: lines and columns from 1, characters from 0.
    #[error("{what}: line {line} column {column} (char {at})")]
    Syntax {
        /// What is wrong.
        what: &'static str,
        /// Only `\n` ends one.
        line: usize,
        /// In characters.
        column: usize,
        /// From the begin of the text, in characters.
        at: usize,
    },
    /// JSON, but too deep.
    #[error("the request body is nested deeper than {DEPTH_MAX} levels")]
    Deep,
    /// JSON, but with an integer that is too long.
    #[error("the request body has an integer of more than {DIGITS_MAX} digits")]
    LongInteger,
}

/// Read a whole text.
///
/// # Errors
/// It is not JSON as Python knows it, or beyond a limit.
pub(super) fn read(text: &str) -> Result<Json, Error> {
    let mut reader = Reader { text, at: 0 };
    if text.starts_with('\u{feff}') {
        return Err(reader.error("Unexpected UTF-8 BOM (decode using utf-8-sig)", 0));
    }
    reader.space();
    let value = reader.value(0)?;
    reader.space();
    match reader.peek() {
        None => Ok(value),
        Some(_) => Err(reader.error("Extra data", reader.at)),
    }
}

struct Reader<'a> {
    text: &'a str,
    /// In bytes, always at the begin of a character.
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn take(&mut self, word: &str) -> bool {
        let there = self.rest().starts_with(word);
        if there {
            self.at += word.len();
        }
        there
    }

    fn error(&self, what: &'static str, at: usize) -> Error {
        let before = &self.text[..at];
        let line_begin = before.rfind('\n').map_or(0, |end| end + 1);
        Error::Syntax {
            what,
            line: before.matches('\n').count() + 1,
            column: before[line_begin..].chars().count() + 1,
            at: before.chars().count(),
        }
    }

    fn value(&mut self, depth: u32) -> Result<Json, Error> {
        let words = [
            ("null", Json::Null),
            ("true", Json::Bool(true)),
            ("false", Json::Bool(false)),
            ("NaN", Json::Float(f64::NAN)),
            ("Infinity", Json::Float(f64::INFINITY)),
            ("-Infinity", Json::Float(f64::NEG_INFINITY)),
        ];
        match self.peek() {
            Some(b'"') => Ok(Json::Text(self.string()?)),
            Some(b'{' | b'[') if depth == DEPTH_MAX => Err(Error::Deep),
            Some(b'{') => self.object(depth + 1),
            Some(b'[') => self.list(depth + 1),
            _ => {
                for (word, value) in words {
                    if self.take(word) {
                        return Ok(value);
                    }
                }
                self.number()
            }
        }
    }

    fn object(&mut self, depth: u32) -> Result<Json, Error> {
        const NO_NAME: &str = "Expecting property name enclosed in double quotes";
        let mut fields: Vec<(Text, Json)> = Vec::new();
        let mut places: HashMap<Text, usize> = HashMap::new();
        self.at += 1;
        self.space();
        if self.take("}") {
            return Ok(Json::Object(fields));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.error(NO_NAME, self.at));
            }
            let name = self.string()?;
            self.space();
            if !self.take(":") {
                return Err(self.error("Expecting ':' delimiter", self.at));
            }
            self.space();
            let value = self.value(depth)?;
            match places.entry(name) {
                Entry::Occupied(place) => fields[*place.get()].1 = value,
                Entry::Vacant(place) => {
                    fields.push((place.key().clone(), value));
                    place.insert(fields.len() - 1);
                }
            }
            self.space();
            if self.take("}") {
                return Ok(Json::Object(fields));
            }
            self.comma()?;
        }
    }

    fn list(&mut self, depth: u32) -> Result<Json, Error> {
        let mut values = Vec::new();
        self.at += 1;
        self.space();
        if self.take("]") {
            return Ok(Json::List(values));
        }
        loop {
            values.push(self.value(depth)?);
            self.space();
            if self.take("]") {
                return Ok(Json::List(values));
            }
            self.comma()?;
        }
    }

    fn comma(&mut self) -> Result<(), Error> {
        if !self.take(",") {
            return Err(self.error("Expecting ',' delimiter", self.at));
        }
        self.space();
        Ok(())
    }

    /// `-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?`; what does not fit the last two groups is left for the next to wonder about.
    fn number(&mut self) -> Result<Json, Error> {
        let begin = self.at;
        let bytes = self.text.as_bytes();
        let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let first = begin + usize::from(self.peek() == Some(b'-'));
        let mut end = match bytes.get(first) {
            Some(b'0') => first + 1,
            Some(b'1'..=b'9') => first + digits(first),
            _ => return Err(self.error("Expecting value", begin)),
        };
        let mut whole = true;
        if bytes.get(end) == Some(&b'.') && digits(end + 1) > 0 {
            end += 1 + digits(end + 1);
            whole = false;
        }
        if let Some(b'e' | b'E') = bytes.get(end) {
            let from = end + 1 + usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            if digits(from) > 0 {
                end = from + digits(from);
                whole = false;
            }
        }
        self.at = end;
        let text = &self.text[begin..end];
        Ok(if !whole {
            // Every such text is a float to Rust as well; out of range is infinite in both.
            Json::Float(text.parse().unwrap_or(f64::NAN))
        } else if end - first > DIGITS_MAX {
            return Err(Error::LongInteger);
        } else {
            Json::Int(if text == "-0" { "0" } else { text }.to_owned())
        })
    }

    fn string(&mut self) -> Result<Text, Error> {
        let begin = self.at;
        let unterminated = "Unterminated string starting at";
        let mut built = Text::Good(String::new());
        self.at += 1;
        loop {
            let plain = self
                .rest()
                .bytes()
                .take_while(|byte| *byte >= b' ' && !b"\"\\".contains(byte))
                .count();
            built.push(&self.rest()[..plain]);
            self.at += plain;
            match self.peek() {
                None => return Err(self.error(unterminated, begin)),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(built);
                }
                Some(b'\\') => {
                    self.at += 1;
                    match self.peek() {
                        None => return Err(self.error(unterminated, begin)),
                        Some(b'u') => self.unicode(&mut built)?,
                        Some(escape) => {
                            let Some(meant) = unescaped(escape) else {
                                return Err(self.error("Invalid \\escape", self.at - 1));
                            };
                            built.push(meant);
                            self.at += 1;
                        }
                    }
                }
                Some(_) => return Err(self.error("Invalid control character at", self.at)),
            }
        }
    }

    /// `uXXXX`, and the other half of a pair if it follows.
    fn unicode(&mut self, built: &mut Text) -> Result<(), Error> {
        let unit = self.hex(self.at + 1).ok_or_else(|| self.error("Invalid \\uXXXX escape", self.at))?;
        self.at += 5;
        if let 0xd800..=0xdbff = unit
            && self.rest().starts_with("\\u")
            && let Some(low @ 0xdc00..=0xdfff) = self.hex(self.at + 2)
        {
            self.at += 6;
            built.push_units(&[unit, low]);
        } else {
            built.push_units(&[unit]);
        }
        Ok(())
    }

    /// Four hexadecimal digits that are not the last of the text.
    fn hex(&self, from: usize) -> Option<u16> {
        let digits = self.text.as_bytes().get(from..from + 4)?;
        let hexadecimal = digits.iter().all(u8::is_ascii_hexdigit) && from + 4 < self.text.len();
        hexadecimal.then(|| digits.iter().fold(0, |sum, digit| (sum << 4) | hex_value(*digit)))
    }
}

fn hex_value(digit: u8) -> u16 {
    u16::try_from(char::from(digit).to_digit(16).unwrap_or(0)).unwrap_or(0)
}

fn unescaped(escape: u8) -> Option<&'static str> {
    Some(match escape {
        b'"' => "\"",
        b'\\' => "\\",
        b'/' => "/",
        b'b' => "\u{8}",
        b'f' => "\u{c}",
        b'n' => "\n",
        b'r' => "\r",
        b't' => "\t",
        _ => return None,
    })
}

impl Text {
    fn push(&mut self, more: &str) {
        match self {
            Text::Good(text) => text.push_str(more),
            Text::Halves(units) => units.extend(more.encode_utf16()),
        }
    }

    /// A character, or half of one.
    fn push_units(&mut self, more: &[u16]) {
        if let (Text::Good(text), Ok(whole)) = (&mut *self, String::from_utf16(more)) {
            return text.push_str(&whole);
        }
        if let Text::Good(text) = self {
            *self = Text::Halves(text.encode_utf16().collect());
        }
        if let Text::Halves(units) = self {
            units.extend(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn depth_and_digits_have_limits() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let deepest = read(&nested(127)).unwrap().fit("x").unwrap().to_string();
        assert!(serde_json::from_str::<Value>(&deepest).is_ok(), "a stored config is read again");
        assert_eq!(read(&nested(128)), Err(Error::Deep));
        assert_eq!(read(&"[".repeat(1_000_000)), Err(Error::Deep));
        assert_eq!(read(&"{\"a\":".repeat(200_000)), Err(Error::Deep));
        assert!(read(&"9".repeat(4300)).is_ok());
        assert_eq!(read(&format!("-{}", "9".repeat(4301))), Err(Error::LongInteger));
    }

    #[test]
    fn the_last_of_equal_keys_wins_in_the_place_of_the_first() {
        let text = r#"{"a": 1, "b": 2, "\u0061": 3, "b": {"c": 1, "c": 2}}"#;
        assert_eq!(read(text).unwrap().dumps(), r#"{"a": 3, "b": {"c": 2}}"#);
    }

    proptest! {
        /// Texts that are nearly JSON: no panic, and what `serde_json` takes is taken as the same.
        #[test]
        fn no_text_is_too_strange(parts in proptest::collection::vec(
            prop_oneof![
                r#"[\[\]{}:,"\\ \n]"#,
                r"\\u[dD][89a-fA-F][0-9a-f]{2}|\\[bfnrtuqx/]|\\u[0-9a-fx]{0,5}",
                r"-?[0-9]{1,3}(\.[0-9]{0,2})?([eE][+-]?[0-9]{0,2})?",
                "null|true|false|NaN|-?Infinity|\"[a-c]\"|\"a\": |\u{feff}|é|🦀|\t|\u{0}|\u{85}",
            ], 0..30))
        {
            let text = parts.concat();
            let ours = read(&text);
            if let Ok(theirs) = serde_json::from_str::<Value>(&text) {
                let ours = ours.unwrap().fit("x").unwrap();
                prop_assert_eq!(without_minus_zero(ours), without_minus_zero(theirs));
            }
        }
    }

    /// `-0` is an integer to Python and a float to `serde_json`.
    fn without_minus_zero(value: Value) -> Value {
        match value {
            Value::Number(number) if number.as_f64() == Some(0.0) => 0.into(),
            Value::Array(items) => items.into_iter().map(without_minus_zero).collect(),
            Value::Object(entries) => entries.into_iter().map(|(key, value)| (key, without_minus_zero(value))).collect(),
            other => other,
        }
    }
}
