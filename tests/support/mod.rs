//! Code that several test programs share.
// No test program uses all of it.
#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod builder;
pub(crate) mod cuts;
pub(crate) mod derivatives;
pub(crate) mod external;
pub(crate) mod files;
pub(crate) mod fixtures;
pub(crate) mod two_convolutions;
