//! The operators, one file each. This index is generated from the files of `src/ops/` by
//! `UPDATE=1 cargo test --test ops_index`; do not edit it by hand.

use crate::operator::Operator;

mod affine_grid;
mod attention;
mod batch_normalization;
mod bias_activation;
mod bias_split_gelu;
mod binary;
mod branch;
mod center_crop_pad;
mod clip;
mod col2im;
mod compress;
mod concat;
mod constant;
mod constant_of_shape;
mod conv;
mod conv_transpose;
mod depth_to_space;
mod det;
mod einsum;
mod expand;
mod flatten;
mod fourier;
mod fused_attention;
mod gather;
mod gather_nd;
mod gemm;
mod group_norm;
mod group_normalization;
mod identity;
mod indices;
mod instance_normalization;
mod layer_normalization;
mod lp_normalization;
mod lrn;
mod matmul;
mod mean_variance_normalization;
mod multi_head_attention;
mod nhwc_conv;
mod pad;
mod pool;
mod positions;
mod prelu;
mod quantize_linear;
mod random;
mod range;
mod reduce;
mod reshape;
mod resize;
mod reverse_sequence;
mod rotary_embedding;
mod sampling;
mod shape;
mod skip_layer_normalization;
mod slice;
mod softmax;
mod split;
mod squeeze;
mod tile;
mod transpose;
mod unary;
mod where_;

/// The rules of every file, in the order of their names.
#[rustfmt::skip]
static BY_FILE: &[&[&dyn Operator]] = &[
    affine_grid::RULES,
    attention::RULES,
    batch_normalization::RULES,
    bias_activation::RULES,
    bias_split_gelu::RULES,
    binary::RULES,
    branch::RULES,
    center_crop_pad::RULES,
    clip::RULES,
    col2im::RULES,
    compress::RULES,
    concat::RULES,
    constant::RULES,
    constant_of_shape::RULES,
    conv::RULES,
    conv_transpose::RULES,
    depth_to_space::RULES,
    det::RULES,
    einsum::RULES,
    expand::RULES,
    flatten::RULES,
    fourier::RULES,
    fused_attention::RULES,
    gather::RULES,
    gather_nd::RULES,
    gemm::RULES,
    group_norm::RULES,
    group_normalization::RULES,
    identity::RULES,
    indices::RULES,
    instance_normalization::RULES,
    layer_normalization::RULES,
    lp_normalization::RULES,
    lrn::RULES,
    matmul::RULES,
    mean_variance_normalization::RULES,
    multi_head_attention::RULES,
    nhwc_conv::RULES,
    pad::RULES,
    pool::RULES,
    positions::RULES,
    prelu::RULES,
    quantize_linear::RULES,
    random::RULES,
    range::RULES,
    reduce::RULES,
    reshape::RULES,
    resize::RULES,
    reverse_sequence::RULES,
    rotary_embedding::RULES,
    sampling::RULES,
    shape::RULES,
    skip_layer_normalization::RULES,
    slice::RULES,
    softmax::RULES,
    split::RULES,
    squeeze::RULES,
    tile::RULES,
    transpose::RULES,
    unary::RULES,
    where_::RULES,
];

/// All operators.
pub fn all() -> impl Iterator<Item = &'static dyn Operator> {
    BY_FILE.iter().flat_map(|rules| rules.iter().copied())
}
