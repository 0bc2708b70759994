//! How much room a data directory has, and what follows from it.
//!
//! Asked by the loop of `engine` before each batch, by `payload` before a file is written, and by readiness. A disk that fills up makes the
//! storage engine useless until a restart, so new work is refused while there is still room to finish what was begun. It must never
//! ask the file system more often than its callers gain by it, and never wake up by itself.

use super::Error;
use super::directory::FREE_FLOOR;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Below this many free bytes an operator is warned: four times what a start needs, so that there are hours to act, not minutes.
pub const LOW: u64 = 4 * FREE_FLOOR;
/// Below this many free bytes nothing new is taken. What a start needs must stay: the way back from a full disk is a restart.
pub const FULL: u64 = FREE_FLOOR;
/// So many more bytes must be free before a level is left again, or a disk at the edge would change it with each file: one segment of the
/// storage engine.
pub const SLACK: u64 = FREE_FLOOR / 8;
/// How long an answer of the file system counts: at 1 GB/s a disk loses 100 MB in it, at the speed of a busy master a few.
const COUNTS: Duration = Duration::from_millis(100);

/// What the free space allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything.
    Ample,
    /// Everything, but an operator should look.
    Low,
    /// To finish what was begun.
    Full,
}

/// One look at the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that may still be written.
    pub free: u64,
    /// What follows.
    pub level: Level,
}

type Probe = Box<dyn Fn() -> Result<u64, Error> + Send + Sync>;

/// The free space of one data directory.
pub struct Space {
    name: PathBuf,
    probe: Probe,
    seen: Mutex<Seen>,
}

struct Seen {
    at: Option<Instant>,
    room: Room,
}

impl Space {
    /// The file system that holds `dir`.
    pub fn of(dir: &Path) -> Arc<Space> {
        let asked = dir.to_owned();
        Self::asking(dir, move || free_at(&asked))
    }

    /// A directory whose free bytes are told by `probe`; for tests and simulations.
    pub fn asking(dir: &Path, probe: impl Fn() -> Result<u64, Error> + Send + Sync + 'static) -> Arc<Space> {
        let room = Room {
            free: u64::MAX,
            level: Level::Ample,
        };
        Arc::new(Space {
            name: dir.to_owned(),
            probe: Box::new(probe),
            seen: Mutex::new(Seen { at: None, room }),
        })
    }

    /// Room without an end, for simulations that have no disk.
    pub fn unlimited() -> Arc<Space> {
        Self::asking(Path::new("/"), || Ok(u64::MAX))
    }

    /// The room there is, at most a tenth of a second old. Blocks for a question to the file system; one that does not answer leaves the last
    /// answer standing. A change of level is logged here, once.
    pub fn look(&self) -> Room {
        self.asked_since(COUNTS)
    }

    /// The room there is at this moment.
    pub fn look_now(&self) -> Room {
        self.asked_since(Duration::ZERO)
    }

    fn asked_since(&self, counts: Duration) -> Room {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.at.is_some_and(|at| at.elapsed() < counts) {
            return seen.room;
        }
        seen.at = Some(Instant::now());
        match (self.probe)() {
            Ok(free) => {
                let level = level(seen.room.level, free);
                self.tell(seen.room.level, level, free);
                seen.room = Room { free, level };
            }
            Err(error) => tracing::warn!(%error, "the free space cannot be told"),
        }
        seen.room
    }

    /// Whether so many more bytes may be written for the sake of something new.
    ///
    /// # Errors
    /// They would leave less than a start needs; the error is [`full`](Error::is_full).
    pub fn admit(&self, bytes: u64) -> Result<(), Error> {
        let Room { free, level } = self.look();
        if level < Level::Full && free.saturating_sub(bytes) >= FULL {
            return Ok(());
        }
        let what = format!(
            "{} has {free} bytes free, and {FULL} must stay: {bytes} bytes are not taken; free some space",
            self.name.display()
        );
        Err(Error::Io {
            what,
            source: io::ErrorKind::StorageFull.into(),
        })
    }

    fn tell(&self, before: Level, now: Level, free: u64) {
        let dir = self.name.display();
        match (before, now) {
            (Level::Ample | Level::Low, Level::Full) => {
                tracing::error!(%dir, free, floor = FULL, "the disk is full: what is new is refused until there is space");
            }
            (Level::Ample, Level::Low) => tracing::warn!(%dir, free, refused_below = FULL, "the disk is getting full"),
            (Level::Full, Level::Ample | Level::Low) => tracing::info!(%dir, free, "there is space again, new work is taken"),
            (Level::Low, Level::Ample) => tracing::info!(%dir, free, "there is ample space again"),
            (Level::Ample, Level::Ample) | (Level::Low, Level::Low) | (Level::Full, Level::Full) => {}
        }
    }
}

/// Bytes an unprivileged process may still write on the file system of `path`.
pub(super) fn free_at(path: &Path) -> Result<u64, Error> {
    let stat = rustix::fs::statvfs(path).map_err(|e| Error::at("ask for free space at", path)(e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn level(before: Level, free: u64) -> Level {
    let below = |line: u64, inside: bool| free < if inside { line + SLACK } else { line };
    if below(FULL, before == Level::Full) {
        Level::Full
    } else if below(LOW, before >= Level::Low) {
        Level::Low
    } else {
        Level::Ample
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    #[test]
    fn levels_are_left_with_some_room_to_spare() {
        let mut now = Level::Ample;
        let mut at = |free| {
            now = level(now, free);
            now
        };
        assert_eq!(at(LOW), Level::Ample);
        assert_eq!(at(LOW - 1), Level::Low);
        assert_eq!(at(LOW + SLACK - 1), Level::Low);
        assert_eq!(at(FULL), Level::Low);
        assert_eq!(at(FULL - 1), Level::Full);
        assert_eq!(at(FULL + SLACK - 1), Level::Full);
        assert_eq!(at(FULL + SLACK), Level::Low);
        assert_eq!(at(LOW + SLACK), Level::Ample);
        assert_eq!(at(0), Level::Full);
        assert_eq!(at(u64::MAX), Level::Ample);
    }

    #[test]
    fn the_file_system_is_not_asked_each_time() {
        let (asked, free) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU64::new(2 * FULL)));
        let probe = {
            let (asked, free) = (asked.clone(), free.clone());
            move || {
                asked.fetch_add(1, Ordering::Relaxed);
                Ok(free.load(Ordering::Relaxed))
            }
        };
        let space = Space::asking(Path::new("/x"), probe);
        let began = Instant::now();
        while began.elapsed() < COUNTS / 2 {
            assert_eq!(space.look().level, Level::Low);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        free.store(FULL - 1, Ordering::Relaxed);
        while space.look().level != Level::Full {
            assert!(began.elapsed() < 600 * COUNTS);
            std::thread::yield_now();
        }
        assert!(u128::from(asked.load(Ordering::Relaxed)) <= began.elapsed().as_millis() / 100 + 1);
    }

    #[test]
    fn what_would_go_below_the_floor_is_not_admitted() {
        let space = Space::asking(Path::new("/x"), || Ok(FULL + SLACK + 100));
        space.admit(SLACK + 100).unwrap();
        let refused = space.admit(SLACK + 101).unwrap_err();
        assert!(refused.is_full() && refused.to_string().starts_with("/x has "), "{refused}");
        assert!(Space::asking(Path::new("/x"), || Ok(FULL - 1)).admit(0).unwrap_err().is_full());
        let deaf = Space::asking(Path::new("/x"), || Err(Error::Poisoned));
        deaf.admit(u64::MAX / 2).unwrap();
    }
}
