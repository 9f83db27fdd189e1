//! Operators that do the work of several: those of ONNX Runtime's optimisers, and the attention of the standard. This index is generated from the files beside it by
//! `UPDATE=1 cargo test --test source`; do not edit it by hand.

use crate::operator::Registration;

pub(in crate::ops) mod attention;
pub(in crate::ops) mod bias_activation;
pub(in crate::ops) mod bias_split_gelu;
pub(in crate::ops) mod fused_attention;
pub(in crate::ops) mod group_norm;
pub(in crate::ops) mod multi_head_attention;
pub(in crate::ops) mod nhwc_conv;
pub(in crate::ops) mod rotary_embedding;
pub(in crate::ops) mod skip_layer_normalization;

/// The registrations of every file, in the order of their names.
#[rustfmt::skip]
pub(super) static BY_FILE: &[&[Registration]] = &[
    attention::RULES,
    bias_activation::RULES,
    bias_split_gelu::RULES,
    fused_attention::RULES,
    group_norm::RULES,
    multi_head_attention::RULES,
    nhwc_conv::RULES,
    rotary_embedding::RULES,
    skip_layer_normalization::RULES,
];
