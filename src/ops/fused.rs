//! Operators that do the work of several: those of ONNX Runtime's optimisers, and the attention of the standard. This index is generated from the files beside it by
//! `UPDATE=1 cargo test --test source`; do not edit it by hand.

use crate::operator::Registration;

pub(in crate::ops) mod attention;
pub(in crate::ops) mod bias_activation;
pub(in crate::ops) mod bias_split_gelu;
pub(in crate::ops) mod embed_layer_normalization;
pub(in crate::ops) mod expand_dims;
pub(in crate::ops) mod fourier;
pub(in crate::ops) mod fused_attention;
pub(in crate::ops) mod gather_block_quantized;
pub(in crate::ops) mod group_norm;
pub(in crate::ops) mod group_query_attention;
pub(in crate::ops) mod matmul_fp_q4;
pub(in crate::ops) mod matmul_nbits;
pub(in crate::ops) mod multi_head_attention;
pub(in crate::ops) mod nhwc_conv;
pub(in crate::ops) mod qlinear_concat;
pub(in crate::ops) mod qlinear_elementwise;
pub(in crate::ops) mod qlinear_pool;
pub(in crate::ops) mod relative_position_bias;
pub(in crate::ops) mod rotary_embedding;
pub(in crate::ops) mod same_shape;
pub(in crate::ops) mod skip_layer_normalization;

/// The registrations of every file, in the order of their names.
#[rustfmt::skip]
pub(super) static BY_FILE: &[&[Registration]] = &[
    attention::RULES,
    bias_activation::RULES,
    bias_split_gelu::RULES,
    embed_layer_normalization::RULES,
    expand_dims::RULES,
    fourier::RULES,
    fused_attention::RULES,
    gather_block_quantized::RULES,
    group_norm::RULES,
    group_query_attention::RULES,
    matmul_fp_q4::RULES,
    matmul_nbits::RULES,
    multi_head_attention::RULES,
    nhwc_conv::RULES,
    qlinear_concat::RULES,
    qlinear_elementwise::RULES,
    qlinear_pool::RULES,
    relative_position_bias::RULES,
    rotary_embedding::RULES,
    same_shape::RULES,
    skip_layer_normalization::RULES,
];
