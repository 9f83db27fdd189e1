//! Checks of the source: the order of the modules, the index and the table of operators, the generated types.
//!
//! `UPDATE=1 cargo test --test source` writes the generated files.
#![allow(clippy::unwrap_used, missing_docs)]

mod ops_index;
mod proto_generated;
mod rooms;
mod temporary;
