//! The built program as its users run it: exit codes, messages, what is printed where, what is written.
#![allow(clippy::unwrap_used)]

mod align;
mod bench;
mod beside_samples;
mod bundles;
#[cfg(unix)]
mod cache;
mod deploy;
mod encode;
#[cfg(unix)]
mod endings;
mod evaluate;
mod failures;
mod finetune;
mod folders;
mod gradient_criteria;
#[cfg(target_os = "linux")]
mod hostile;
mod integration;
mod loaders;
mod page;
mod paths;
mod plans;
mod prune;
mod refit;
mod replaced;
mod reports;
mod rounds;
mod sample;
mod strangers;
mod time_inputs;
mod tool;
mod unranked;
mod workspace;

#[path = "../support/mod.rs"]
mod support;
