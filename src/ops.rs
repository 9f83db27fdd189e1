//! The operators, one file each. This index is generated from the files of `src/ops/` by
//! `UPDATE=1 cargo test --test ops_index`; do not edit it by hand.

use crate::operator::Operator;

mod binary;
mod concat;
mod conv;
mod gemm;
mod instance_normalization;
mod matmul;
mod reshape;
mod softmax;
mod transpose;
mod unary;

/// The rules of every file, in the order of their names.
#[rustfmt::skip]
static BY_FILE: &[&[&dyn Operator]] = &[
    binary::RULES,
    concat::RULES,
    conv::RULES,
    gemm::RULES,
    instance_normalization::RULES,
    matmul::RULES,
    reshape::RULES,
    softmax::RULES,
    transpose::RULES,
    unary::RULES,
];

/// All operators.
pub fn all() -> impl Iterator<Item = &'static dyn Operator> {
    BY_FILE.iter().flat_map(|rules| rules.iter().copied())
}
