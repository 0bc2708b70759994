//! The history of the stored format: one file for each version, frozen once it was released.
//!
//! `store::directory` asks for [`CURRENT`]; a directory of a newer version is refused, one of an older version is brought up to date
//! at start. There has been one version so far, so there is nothing to bring up to date and no code for it.
//!
//! To add version N:
//! 1. Copy the types that change into `mNNNN_<what>.rs` as they were, with a function that reads a directory of version N - 1 and
//!    writes one of version N beside it (`<data-dir>.new`, everything synced, then renamed), and leave the older files untouched.
//! 2. Raise [`CURRENT`], call the function from `store::directory` when `FORMAT` says N - 1, and say in its doc comment what an
//!    operator sees.
//! 3. Add golden bytes of version N to its tests and move the checks of "what is written today" there; a migration is never edited
//!    after its release.

pub mod m0001_initial;

/// The stored-format version this release writes, and the newest it reads.
pub const CURRENT: u32 = m0001_initial::VERSION;
