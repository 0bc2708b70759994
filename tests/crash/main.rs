//! Tests that kill real processes at any moment and look at what is left.

mod store_kill;
