//! What several test programs share.
// No program uses all of it.
#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod builder;
pub(crate) mod cuts;
pub(crate) mod external;
pub(crate) mod files;
pub(crate) mod fixtures;
pub(crate) mod slopes;
pub(crate) mod two_convolutions;
