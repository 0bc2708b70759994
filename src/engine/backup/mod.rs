//! Backups of a role's data directory: made while it serves or while it stands still, checked, and read back.
//!
//! [`Source::send`] says everything in frames, to a master's REST service or straight to [`receive::Receiver`], which makes a directory of
//! them; [`verify`] proves such a directory whole. The frames are in `frame`, what a backup says of itself in [`manifest`], the file with
//! the values in [`log`].
//!
//! A backup is the state after one commit: the manifest says which. Every answer given before it began rests on that commit or an
//! earlier one.
//!
//! ```text
//! <backup>/MANIFEST.json     whose it is, the commit, length and SHA-256 of every other file
//!          MANIFEST.sha256   that of the manifest
//!          log               keys and sealed values; of several words on one key the last one counts
//!          payloads/         as in a data directory
//! ```

mod frame;
pub mod log;
pub mod manifest;
pub mod receive;
pub mod restore;
mod send;
pub mod verify;

pub use send::{SendError, Source};
