//! Operators of the standard, and variants of them. This index is generated from the files beside it by
//! `UPDATE=1 cargo test --test source`; do not edit it by hand.

use crate::operator::Registration;

pub(in crate::ops) mod affine_grid;
pub(in crate::ops) mod arg_max;
pub(in crate::ops) mod batch_normalization;
pub(in crate::ops) mod binary;
pub(in crate::ops) mod bit_cast;
pub(in crate::ops) mod bitwise;
pub(in crate::ops) mod branch;
pub(in crate::ops) mod cast;
pub(in crate::ops) mod causal_conv_with_state;
pub(in crate::ops) mod center_crop_pad;
pub(in crate::ops) mod clip;
pub(in crate::ops) mod col2im;
pub(in crate::ops) mod comparison;
pub(in crate::ops) mod compress;
pub(in crate::ops) mod concat;
pub(in crate::ops) mod concat_from_sequence;
pub(in crate::ops) mod constant;
pub(in crate::ops) mod constant_of_shape;
pub(in crate::ops) mod conv;
pub(in crate::ops) mod conv_integer;
pub(in crate::ops) mod conv_transpose;
pub(in crate::ops) mod cumulative;
pub(in crate::ops) mod deform_conv;
pub(in crate::ops) mod depth_to_space;
pub(in crate::ops) mod det;
pub(in crate::ops) mod dft;
pub(in crate::ops) mod dropout;
pub(in crate::ops) mod dynamic_quantize_linear;
pub(in crate::ops) mod einsum;
pub(in crate::ops) mod expand;
pub(in crate::ops) mod eye_like;
pub(in crate::ops) mod flatten;
pub(in crate::ops) mod gather;
pub(in crate::ops) mod gather_elements;
pub(in crate::ops) mod gather_nd;
pub(in crate::ops) mod gemm;
pub(in crate::ops) mod grid_sample;
pub(in crate::ops) mod group_normalization;
pub(in crate::ops) mod identity;
pub(in crate::ops) mod image_decoder;
pub(in crate::ops) mod instance_normalization;
pub(in crate::ops) mod layer_normalization;
pub(in crate::ops) mod linear_attention;
pub(in crate::ops) mod loop_;
pub(in crate::ops) mod loss;
pub(in crate::ops) mod lp_normalization;
pub(in crate::ops) mod lrn;
pub(in crate::ops) mod lstm;
pub(in crate::ops) mod matmul;
pub(in crate::ops) mod matmul_integer;
pub(in crate::ops) mod max_roi_pool;
pub(in crate::ops) mod max_unpool;
pub(in crate::ops) mod mean_variance_normalization;
pub(in crate::ops) mod mel_weight_matrix;
pub(in crate::ops) mod non_max_suppression;
pub(in crate::ops) mod non_zero;
pub(in crate::ops) mod one_hot;
pub(in crate::ops) mod optional;
pub(in crate::ops) mod pad;
pub(in crate::ops) mod pool;
pub(in crate::ops) mod prelu;
pub(in crate::ops) mod quantize_linear;
pub(in crate::ops) mod random;
pub(in crate::ops) mod range;
pub(in crate::ops) mod reduce;
pub(in crate::ops) mod reshape;
pub(in crate::ops) mod resize;
pub(in crate::ops) mod reverse_sequence;
pub(in crate::ops) mod roi_align;
pub(in crate::ops) mod scan;
pub(in crate::ops) mod scatter_elements;
pub(in crate::ops) mod scatter_nd;
pub(in crate::ops) mod sequence_at;
pub(in crate::ops) mod sequence_construct;
pub(in crate::ops) mod sequence_erase;
pub(in crate::ops) mod sequence_insert;
pub(in crate::ops) mod sequence_length;
pub(in crate::ops) mod shape;
pub(in crate::ops) mod size;
pub(in crate::ops) mod slice;
pub(in crate::ops) mod softmax;
pub(in crate::ops) mod split;
pub(in crate::ops) mod split_to_sequence;
pub(in crate::ops) mod squeeze;
pub(in crate::ops) mod stft;
pub(in crate::ops) mod string;
pub(in crate::ops) mod swiglu;
pub(in crate::ops) mod tensor_scatter;
pub(in crate::ops) mod tf_idf_vectorizer;
pub(in crate::ops) mod tile;
pub(in crate::ops) mod top_k;
pub(in crate::ops) mod transpose;
pub(in crate::ops) mod trilu;
pub(in crate::ops) mod unary;
pub(in crate::ops) mod unique;
pub(in crate::ops) mod unsqueeze;
pub(in crate::ops) mod where_;
pub(in crate::ops) mod window;

/// The registrations of every file, in the order of their names.
#[rustfmt::skip]
pub(super) static BY_FILE: &[&[Registration]] = &[
    affine_grid::RULES,
    arg_max::RULES,
    batch_normalization::RULES,
    binary::RULES,
    bit_cast::RULES,
    bitwise::RULES,
    branch::RULES,
    cast::RULES,
    causal_conv_with_state::RULES,
    center_crop_pad::RULES,
    clip::RULES,
    col2im::RULES,
    comparison::RULES,
    compress::RULES,
    concat::RULES,
    concat_from_sequence::RULES,
    constant::RULES,
    constant_of_shape::RULES,
    conv::RULES,
    conv_integer::RULES,
    conv_transpose::RULES,
    cumulative::RULES,
    deform_conv::RULES,
    depth_to_space::RULES,
    det::RULES,
    dft::RULES,
    dropout::RULES,
    dynamic_quantize_linear::RULES,
    einsum::RULES,
    expand::RULES,
    eye_like::RULES,
    flatten::RULES,
    gather::RULES,
    gather_elements::RULES,
    gather_nd::RULES,
    gemm::RULES,
    grid_sample::RULES,
    group_normalization::RULES,
    identity::RULES,
    image_decoder::RULES,
    instance_normalization::RULES,
    layer_normalization::RULES,
    linear_attention::RULES,
    loop_::RULES,
    loss::RULES,
    lp_normalization::RULES,
    lrn::RULES,
    lstm::RULES,
    matmul::RULES,
    matmul_integer::RULES,
    max_roi_pool::RULES,
    max_unpool::RULES,
    mean_variance_normalization::RULES,
    mel_weight_matrix::RULES,
    non_max_suppression::RULES,
    non_zero::RULES,
    one_hot::RULES,
    optional::RULES,
    pad::RULES,
    pool::RULES,
    prelu::RULES,
    quantize_linear::RULES,
    random::RULES,
    range::RULES,
    reduce::RULES,
    reshape::RULES,
    resize::RULES,
    reverse_sequence::RULES,
    roi_align::RULES,
    scan::RULES,
    scatter_elements::RULES,
    scatter_nd::RULES,
    sequence_at::RULES,
    sequence_construct::RULES,
    sequence_erase::RULES,
    sequence_insert::RULES,
    sequence_length::RULES,
    shape::RULES,
    size::RULES,
    slice::RULES,
    softmax::RULES,
    split::RULES,
    split_to_sequence::RULES,
    squeeze::RULES,
    stft::RULES,
    string::RULES,
    swiglu::RULES,
    tensor_scatter::RULES,
    tf_idf_vectorizer::RULES,
    tile::RULES,
    top_k::RULES,
    transpose::RULES,
    trilu::RULES,
    unary::RULES,
    unique::RULES,
    unsqueeze::RULES,
    where_::RULES,
    window::RULES,
];
