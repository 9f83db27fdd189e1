//! Verification.

pub mod reference;
