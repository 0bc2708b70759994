//! The command line as a user meets it.

mod help;
mod jobs;
mod paper;
mod terminal;
