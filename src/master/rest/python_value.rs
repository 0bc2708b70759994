//! What Python's `json.loads` makes of a text, and how Python writes it back: all that `serde_json` cannot hold is kept.
//!
//! Made by `python_reader`, used by `legacy`. That is `NaN` and the infinities, integers of any length, and texts with half of a surrogate pair.

use serde_json::{Map, Number, Value};
use std::fmt::Write as _;

/// A value of JSON as Python knows it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    /// `None`
    Null,
    /// `True`, `False`
    Bool(bool),
    /// An `int`, its digits as Python writes them.
    Int(String),
    /// A `float`, any.
    Float(f64),
    /// A `str`
    Text(Text),
    /// A `list`
    List(Vec<Json>),
    /// A `dict`: each key once, in the order in which they first came.
    Object(Vec<(Text, Json)>),
}

/// A Python `str`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Text {
    /// Unicode.
    Good(String),
    /// UTF-16 with halves of surrogate pairs, which Python takes as characters.
    Halves(Vec<u16>),
}

/// A value that a job cannot hold, with its place: `job_config.params.2: NaN is not a number ...`
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {why}")]
pub(super) struct Unfit {
    place: String,
    why: String,
}

impl Text {
    /// To be shown; halves are replaced.
    fn lossy(&self) -> String {
        match self {
            Text::Good(text) => text.clone(),
            Text::Halves(units) => String::from_utf16_lossy(units),
        }
    }

    fn dump(&self, out: &mut String) {
        out.push('"');
        match self {
            Text::Good(text) => text.encode_utf16().for_each(|unit| escape(unit, out)),
            Text::Halves(units) => units.iter().for_each(|unit| escape(*unit, out)),
        }
        out.push('"');
    }
}

fn escape(unit: u16, out: &mut String) {
    match u8::try_from(unit) {
        Ok(b'"') => out.push_str("\\\""),
        Ok(b'\\') => out.push_str("\\\\"),
        Ok(b'\n') => out.push_str("\\n"),
        Ok(b'\r') => out.push_str("\\r"),
        Ok(b'\t') => out.push_str("\\t"),
        Ok(0x08) => out.push_str("\\b"),
        Ok(0x0c) => out.push_str("\\f"),
        Ok(c @ b' '..=b'~') => out.push(char::from(c)),
        _ => write!(out, "\\u{unit:04x}").expect("a String takes any text"),
    }
}

impl Json {
    /// The text that `json.dumps` gives.
    pub(super) fn dumps(&self) -> String {
        let mut out = String::new();
        self.dump(&mut out);
        out
    }

    fn dump(&self, out: &mut String) {
        let comma = |n: usize| if n == 0 { "" } else { ", " };
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(true) => out.push_str("true"),
            Json::Bool(false) => out.push_str("false"),
            Json::Int(digits) => out.push_str(digits),
            Json::Float(number) if number.is_nan() => out.push_str("NaN"),
            Json::Float(f64::INFINITY) => out.push_str("Infinity"),
            Json::Float(f64::NEG_INFINITY) => out.push_str("-Infinity"),
            Json::Float(number) => out.push_str(&repr(*number)),
            Json::Text(text) => text.dump(out),
            Json::List(values) => {
                out.push('[');
                for (n, value) in values.iter().enumerate() {
                    out.push_str(comma(n));
                    value.dump(out);
                }
                out.push(']');
            }
            Json::Object(fields) => {
                out.push('{');
                for (n, (name, value)) in fields.iter().enumerate() {
                    out.push_str(comma(n));
                    name.dump(out);
                    out.push_str(": ");
                    value.dump(out);
                }
                out.push('}');
            }
        }
    }

    /// What Python's `str()` gives for a value that is no list and no dict.
    pub(super) fn scalar(&self) -> Option<String> {
        Some(match self {
            Json::Null => "None".to_owned(),
            Json::Bool(true) => "True".to_owned(),
            Json::Bool(false) => "False".to_owned(),
            Json::Int(digits) => digits.clone(),
            Json::Float(number) if number.is_finite() => repr(*number),
            Json::Float(number) => number.to_string().to_lowercase(),
            Json::Text(text) => text.lossy(),
            Json::List(_) | Json::Object(_) => return None,
        })
    }

    /// The same for a job: what its type's schema checks and its record keeps. An integer of more than 64 bits becomes a float.
    ///
    /// # Errors
    /// Something in it is no JSON of today (RFC 8259): the place, `place` in front, and what to do.
    pub(super) fn fit(self, place: &str) -> Result<Value, Unfit> {
        let unfit = |why: String| Unfit {
            place: place.to_owned(),
            why,
        };
        Ok(match self {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(value),
            Json::Int(digits) => {
                let float = || digits.parse().ok().and_then(Number::from_f64).map(Value::Number);
                let exact = digits
                    .parse::<i64>()
                    .map(Value::from)
                    .or_else(|_| digits.parse::<u64>().map(Value::from));
                let too_large = || unfit(format!("an integer of {} digits is too large; write a smaller one", digits.len()));
                exact.ok().or_else(float).ok_or_else(too_large)?
            }
            Json::Float(number) => {
                let no_number = || unfit(format!("{} is not a number; write one, or null", Json::Float(number).dumps()));
                Value::Number(Number::from_f64(number).ok_or_else(no_number)?)
            }
            Json::Text(Text::Good(text)) => Value::String(text),
            Json::Text(Text::Halves(_)) => return Err(unfit("half of a surrogate pair in a text; write both \\u escapes".to_owned())),
            Json::List(values) => {
                let fit = |(n, value): (usize, Json)| value.fit(&format!("{place}.{n}"));
                Value::Array(values.into_iter().enumerate().map(fit).collect::<Result<_, _>>()?)
            }
            Json::Object(fields) => {
                let mut map = Map::new();
                for (name, value) in fields {
                    let Text::Good(name) = name else {
                        return Err(unfit("half of a surrogate pair in a key; write both \\u escapes".to_owned()));
                    };
                    let shown: String = name.chars().take(100).collect();
                    let value = value.fit(&format!("{place}.{shown}"))?;
                    map.insert(name, value);
                }
                Value::Object(map)
            }
        })
    }
}

/// Python's `repr` of a finite float: the shortest digits that lead back to it, with an exponent below 1e-4 and from 1e16 on.
fn repr(number: f64) -> String {
    let shortest = format!("{number:e}");
    // Two of the same length may be as near: Rust takes the upper one there, Python the even one, as does Rust for a given length.
    let digits = shortest
        .split_once('e')
        .map_or(0, |(mantissa, _)| mantissa.trim_start_matches('-').len());
    let even = format!("{number:.*e}", digits.saturating_sub(2));
    let short = if even.parse() == Ok(number) { even } else { shortest };
    let (mantissa, exponent) = short.split_once('e').unwrap_or((&short, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs());
    }
    let (sign, digits) = match mantissa.strip_prefix('-') {
        Some(digits) => ("-", digits.replace('.', "")),
        None => ("", mantissa.replace('.', "")),
    };
    // The point stands behind so many digits.
    let point = usize::try_from(exponent + 1).unwrap_or(0);
    let zeros = "0".repeat(usize::try_from(-exponent).unwrap_or(0));
    let digits = format!("{zeros}{digits:0<point$}");
    let (whole, part) = digits.split_at(point.max(1));
    format!("{sign}{whole}.{}", if part.is_empty() { "0" } else { part })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::rest::python_reader::read;
    use serde_json::json;

    #[test]
    fn floats_are_written_as_by_python() {
        let cases = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.234_567_890_123_456_8e17, "1.2345678901234568e+17"),
            (-2.5e-7, "-2.5e-07"),
            (1e300, "1e+300"),
            (5e-324, "5e-324"),
            (0.1, "0.1"),
            (-12.5, "-12.5"),
            // Halfway between two texts of sixteen digits.
            (1_697_394_189_932_719.0 + 0.25, "1697394189932719.2"),
            (1_697_394_189_932_719.0 + 0.75, "1697394189932719.8"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (number, text) in cases {
            assert_eq!(Json::Float(number).dumps(), text);
        }
    }

    #[test]
    fn values_are_written_as_by_json_dumps() {
        let text = r#"{"a":[1,-0,2.50,true,null,NaN],"é\ud83e\udd80\u007f\n\u0001":"\ud800x","a b":{},"\"\\\/":[]}"#;
        let wanted = r#"{"a": [1, 0, 2.5, true, null, NaN], "\u00e9\ud83e\udd80\u007f\n\u0001": "\ud800x", "a b": {}, "\"\\/": []}"#;
        assert_eq!(read(text).unwrap().dumps(), wanted);
    }

    #[test]
    fn a_job_holds_what_json_holds_and_the_place_of_the_rest_is_told() {
        let fit = |text| read(text).unwrap().fit("job_config").map_err(|unfit| unfit.to_string());
        let good = r#"{"a": [1, -1, 18446744073709551615, 1e3, "é"], "b": {"c": null, "d": true}}"#;
        assert_eq!(
            fit(good).unwrap(),
            json!({"a": [1, -1, u64::MAX, 1000.0, "é"], "b": {"c": null, "d": true}})
        );
        assert_eq!(
            fit("123456789012345678901234567890").unwrap(),
            json!(123_456_789_012_345_678_901_234_567_890.0)
        );
        let cases = [
            ("NaN", "job_config: NaN is not a number; write one, or null"),
            (
                r#"{"a": [1, {"b": -Infinity}]}"#,
                "job_config.a.1.b: -Infinity is not a number; write one, or null",
            ),
            (r#"{"a": 1e999}"#, "job_config.a: Infinity is not a number; write one, or null"),
            (
                r#"{"a": "\udc00"}"#,
                "job_config.a: half of a surrogate pair in a text; write both \\u escapes",
            ),
            (
                r#"{"\udc00": 1}"#,
                "job_config: half of a surrogate pair in a key; write both \\u escapes",
            ),
        ];
        for (text, why) in cases {
            assert_eq!(fit(text).unwrap_err(), why);
        }
        let long = format!("[{}]", "9".repeat(400));
        let why = fit(&long).unwrap_err();
        assert_eq!(why, "job_config.0: an integer of 400 digits is too large; write a smaller one");
    }
}
