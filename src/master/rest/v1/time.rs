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
    let early = || "is before 1970".to_owned();
    match text.parse::<jiff::Timestamp>() {
        Ok(instant) => u64::try_from(instant.as_microsecond()).map(Timestamp).map_err(|_| early()),
        Err(_) => Err(match year_of(text) {
            // The library's calendar ends a day before year 10000, so that no offset leads beyond it.
            Some(9999) => format!("is too late; the last time that is taken is {}", time(Timestamp(u64::MAX))),
            Some(_) => early(),
            None => "is no time; write it as 2026-01-01T12:00:00Z".to_owned(),
        }),
    }
}

/// The year of what is written as a time with an offset, be it in the calendar or not.
fn year_of(text: &str) -> Option<i16> {
    let pieces = jiff::fmt::temporal::Pieces::parse(text).ok()?;
    (pieces.time().is_some() && pieces.offset().is_some()).then(|| pieces.date().year())
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

    #[test]
    fn the_end_of_the_calendar_is_said_to_be_it() {
        let last = "9999-12-30T22:00:00.999999Z";
        assert_eq!(time(Timestamp(u64::MAX)), last);
        for same in [last, "9999-12-31T21:59:00.999999+23:59", "9999-12-30T21:00:00.9999999-01:00"] {
            assert_eq!(read(same).map(time), Ok(last.to_owned()), "{same}");
        }
        for text in [
            "9999-12-30T22:00:01Z",
            "9999-12-31T23:59:59Z",
            "9999-12-31T23:59:59.999999999-23:59",
            "9999-12-30T22:00:00-00:01",
        ] {
            let why = read(text).unwrap_err();
            assert!(why.contains("too late") && why.contains(last), "{text}: {why}");
        }
        for text in ["0001-01-01T00:00:00Z", "-009999-01-01T00:00:00+23:59"] {
            assert_eq!(read(text), Err("is before 1970".to_owned()), "{text}");
        }
        assert!(read("10000-01-01T00:00:00Z").unwrap_err().contains("is no time"));
    }
}
