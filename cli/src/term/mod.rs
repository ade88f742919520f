//! The local terminal.

pub(crate) mod progress;
pub(crate) mod raw;
