//! The history of the stored format: one file for each version, frozen once it was released.
//!
//! `store::directory` asks for [`CURRENT`]; a directory of a newer version is refused with the release it needs, one of an older version
//! is brought up to date by `store::sled_store` at start: read, written anew beside the old log, switched to with one rename.
//!
//! To add version N:
//! 1. Write `mNNNN_<what>.rs`: what changed and why, the layout, the types of version N - 1 that change as they were, and the pure step
//!    that carries values over. Leave the older files untouched.
//! 2. Raise [`CURRENT`], and `NEEDS` in `store::directory::format`; let `store::sled_store::migrate` call the step.
//! 3. Add golden bytes of version N to its tests, keep a directory made by the last release under `tests/compat`, and say in
//!    CHANGELOG.md what an operator sees. A migration is never edited after its release.

pub mod m0001_initial;
pub mod m0002_live_sum;
mod m0003_master;
pub mod m0003_master_0_1_0;
pub mod m0003_stories;

/// The stored-format version this release writes, and the newest it reads.
pub const CURRENT: u32 = m0003_stories::VERSION;
