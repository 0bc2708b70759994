//! Tests that kill real processes at any moment and look at what is left.

mod damage;
mod federation;
mod full;
#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "../integration/gated.rs"]
mod gated;
mod parties;
mod points;
mod power;
mod settler;
mod store_kill;
#[path = "../support/mod.rs"]
mod support;
