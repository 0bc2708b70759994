//! W3C `traceparent`, version 00: read, checked, written. Pure; used by whoever keeps one with a job and by [`super::adopt`].
//!
//! Source: W3C Trace Context, section 3.2. What is not right is no trace at all, never a part of one: the header then counts as absent.

use std::fmt;

/// A place in a trace of somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// Of the whole trace; never 0.
    pub trace: u128,
    /// Of the span that asked; never 0.
    pub span: u64,
    /// Whether that one is recorded.
    pub sampled: bool,
}

impl TraceParent {
    /// Read the value of the header; `None` when it is not right. Of a later version the parts that version 00 has are taken.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version = lower_hex(parts.next()?, 2)?;
        let trace = lower_hex(parts.next()?, 32)?;
        let span = u64::try_from(lower_hex(parts.next()?, 16)?).ok()?;
        let flags = lower_hex(parts.next()?, 2)?;
        let more = parts.next().is_some();
        if version == 0xff || (version == 0 && more) || trace == 0 || span == 0 {
            return None;
        }
        Some(Self {
            trace,
            span,
            sampled: flags & 1 == 1,
        })
    }
}

/// As version 00 writes it.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// Exactly so many lower-case digits.
fn lower_hex(text: &str, digits: usize) -> Option<u128> {
    let right = text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    right.then(|| u128::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_right_is_read_and_written_alike() {
        let read = TraceParent::parse(GOOD).unwrap();
        assert_eq!(read.trace, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((read.span, read.sampled), (0xb7ad_6b71_6920_3331, true));
        assert_eq!(read.to_string(), GOOD);
        let unsampled = GOOD.replace("-01", "-00");
        assert_eq!(TraceParent::parse(&unsampled).unwrap().to_string(), unsampled);
    }

    #[test]
    fn unknown_flags_are_dropped_and_later_versions_are_read_as_far_as_known() {
        assert_eq!(TraceParent::parse(&GOOD.replace("-01", "-ff")), TraceParent::parse(GOOD));
        for later in [
            GOOD.replacen("00-", "cc-", 1),
            format!("{}-what-the-future-brings", GOOD.replacen("00-", "cc-", 1)),
        ] {
            assert_eq!(TraceParent::parse(&later), TraceParent::parse(GOOD));
        }
    }

    #[test]
    fn what_is_not_right_is_nothing() {
        for odd in [
            "",
            "00",
            &GOOD.to_uppercase(),
            &GOOD[..54],
            &format!("{GOOD}0"),
            &format!("{GOOD}-"),
            &format!(" {GOOD}"),
            &GOOD.replacen("00-", "ff-", 1),
            &GOOD.replacen("00-", "0-", 1),
            &GOOD.replace('-', "_"),
            &GOOD.replace("0af7", "+af7"),
            &GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            &GOOD.replace("-01", "-é"),
        ] {
            assert_eq!(TraceParent::parse(odd), None, "{odd:?}");
        }
    }
}
