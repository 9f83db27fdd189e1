//! File formats: models, their external data, malformed files, and the documents.
#![allow(clippy::unwrap_used)]

mod bombs;
mod documents;
mod external_data;
mod malformed;
mod models;
mod streamed;
mod unknown_fields;

#[path = "../support/mod.rs"]
mod support;
