//! Layer 0, pure: what may happen to jobs, tasks, proposals, parties and workers.

pub mod content;
