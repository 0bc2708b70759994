//! JSON as Python's `json.dumps` writes it, which is what FedVision 0.1 answers with and hands to its programs: `", "`, `": "`, ASCII
//! only, numbers as Python shows them. Used by the master's REST service and by `paddle_fl`.

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use std::io;

/// The text of a value.
pub fn text(value: &serde_json::Value) -> String {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, Python);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8(bytes).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

struct Python;

impl Formatter for Python {
    fn begin_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_f64<W: io::Write + ?Sized>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        for c in fragment.chars() {
            if (' '..='~').contains(&c) {
                writer.write_all(&[c as u8])?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// A finite number as Python's `repr`: the fewest digits that tell it apart; an exponent, of two digits at least, below 1e-4 and from 1e16.
fn float(value: f64) -> String {
    let digits = format!("{value:e}");
    match digits
        .split_once('e')
        .map(|(mantissa, exponent)| (mantissa, exponent.parse::<i32>().unwrap_or_default()))
    {
        Some((mantissa, exponent)) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.abs())
        }
        _ if value.fract() == 0.0 => format!("{value:.1}"),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn reads_like_json_dumps() {
        let value = json!({"job_id": "é\u{1f600}\n\u{7f}", "n": [1, true, null]});
        assert_eq!(
            super::text(&value),
            r#"{"job_id": "\u00e9\ud83d\ude00\n\u007f", "n": [1, true, null]}"#
        );
    }

    #[test]
    fn numbers_read_like_json_dumps() {
        let value = json!([
            1.0,
            -0.0,
            0.1,
            1e15,
            1e16,
            1.5e300,
            0.0001,
            0.00001,
            1.25e-7,
            123456789.125,
            u64::MAX,
            -3
        ]);
        assert_eq!(
            super::text(&value),
            "[1.0, -0.0, 0.1, 1000000000000000.0, 1e+16, 1.5e+300, 0.0001, 1e-05, 1.25e-07, 123456789.125, 18446744073709551615, -3]"
        );
    }
}
