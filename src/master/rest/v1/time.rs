//! Times as `/api/v1` writes and reads them: RFC 3339, UTC, microseconds.

use crate::machine::ids::Timestamp;

/// `2026-01-01T12:00:00.000000Z`. A time outside of the calendar, which no clock gives, is its border.
pub(in crate::master::rest) fn time(at: Timestamp) -> String {
    let micros = i64::try_from(at.0).unwrap_or(i64::MAX);
    let instant = jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::MAX);
    format!("{instant:.6}")
}

/// Read a time with any offset.
///
/// # Errors
/// In words.
pub(in crate::master::rest) fn read(text: &str) -> Result<Timestamp, String> {
    let bad = || "is no time; write it as 2026-01-01T12:00:00Z".to_owned();
    let instant: jiff::Timestamp = text.parse().map_err(|_| bad())?;
    u64::try_from(instant.as_microsecond())
        .map(Timestamp)
        .map_err(|_| "is before 1970".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc_and_read_with_any_offset() {
        let at = read("2026-01-01T13:00:00.5+01:00").unwrap();
        assert_eq!(time(at), "2026-01-01T12:00:00.500000Z");
        assert_eq!(read(&time(at)), Ok(at));
        for text in [
            "",
            "now",
            "2026-01-01",
            "2026-01-01T12:00:00",
            "1960-01-01T00:00:00Z",
            "2026-13-01T00:00:00Z",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        assert!(time(Timestamp(u64::MAX)).starts_with("9999-"));
    }
}
