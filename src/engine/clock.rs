//! The only reader of the wall clock and the only source of randomness.

use crate::machine::ids::Timestamp;

/// Time and randomness for a machine; tests bring their own.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock, UTC.
    fn now(&self) -> Timestamp;
    /// `YYYYmmddHHMMSS` of the same instant in local time.
    fn stamp(&self, now: Timestamp) -> String;
    /// A fresh random number.
    fn random(&self) -> u64;
}

/// The clock of the machine this runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "the one reader of the clock")]
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    fn stamp(&self, now: Timestamp) -> String {
        let instant = i64::try_from(now.0)
            .ok()
            .and_then(|us| jiff::Timestamp::from_microsecond(us).ok())
            .unwrap_or_default();
        instant.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y%m%d%H%M%S").to_string()
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}

/// A random identity for a data directory or a worker process, 16 bytes.
pub fn new_instance() -> [u8; 16] {
    rand::random()
}
