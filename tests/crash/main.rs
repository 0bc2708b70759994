//! Tests that kill real processes at any moment and look at what is left.

mod damage;
mod federation;
mod full;
mod points;
mod power;
mod store_kill;
#[path = "../support/mod.rs"]
mod support;
