//! The built program as its users run it: exit codes, messages, what is printed where, what is written.
#![allow(clippy::unwrap_used)]

mod desk;
#[cfg(unix)]
mod endings;
mod gradient_criteria;
mod paths;
mod plans;
mod prune;
mod sample;
mod strangers;
mod time_inputs;
mod tool;
mod unranked;

#[path = "../support/mod.rs"]
mod support;
