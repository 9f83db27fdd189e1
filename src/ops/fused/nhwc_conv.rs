//! # NhwcConv
//! A convolution of values `[N, ..., C]` with weights `[M, kernel..., C / group]`.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft. It has no CPU kernel.
//!
//! Coupling: as Conv, with channels on the last axes.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::infer::InferCx;
use crate::operator::lower::LowerCx;
use crate::operator::macs::{MacsCx, elements};
use crate::operator::patch::PatchCx;
use crate::operator::{OpType, Operator, Registration, RuleError, microsoft};
use crate::ops::standard::conv::Spatial;
use crate::ops::standard::conv::groups::couple_groups;

fn types_nhwcconv() -> &'static [OpType] {
    const { &[microsoft("NhwcConv")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_nhwcconv, NhwcConv::parse)];

#[derive(Debug)]
struct NhwcConv {
    group: i64,
    spatial: Spatial,
}

impl NhwcConv {
    fn parse(node: &Node) -> Result<Box<dyn Operator>, RuleError> {
        Ok(Box::new(Self { group: node.int("group", 1), spatial: Spatial::parse(node) }))
    }
}

impl Operator for NhwcConv {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (x, w) = (cx.shape(0)?, cx.shape(1)?);
        if x.len() < 3 || w.len() != x.len() {
            return Err(RuleError::invalid(format!("X of rank {} and W of rank {} do not fit", x.len(), w.len())));
        }
        let last = x.len() - 1;
        let group = self.group;
        let channels = &w[last] * &Dim::from(group);
        if !cx.equal(&x[last], &channels) {
            let found = &x[last];
            let text =
                format!("expected {channels} input channels (last axis of W times group {group}), found {found}");
            return Err(RuleError::invalid(text));
        }
        cx.expect_vector(2, Some(&w[0]))?;
        let window = self.spatial.window(&w[1..last], last - 1)?;
        let mut shape = vec![x[0].clone()];
        shape.extend(window.outputs(cx, &x[1..last]));
        shape.push(w[0].clone());
        let dtype = cx.input(0)?.dtype;
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let (x, w) = (cx.separated(0)?.axes, cx.separated(1)?.axes);
        let shape = cx.output_shape(0)?;
        let last = x.len() - 1;
        for axis in x[1..last].iter().chain(&w[1..last]) {
            cx.keep(axis, "the axis is a spatial axis of a convolution");
        }
        let group = usize::try_from(self.group).unwrap_or(1).max(1);
        let out = couple_groups(cx, group, &x[last], &w[0], &w[last]);
        if cx.is_weight(1) {
            cx.produces(&w[0]);
            cx.consumes(&w[last]);
        }
        if cx.has(2) {
            let b = cx.separated(2)?;
            cx.tie(&out, &b.axes[0]);
        }
        let mut axes = vec![x[0].clone()];
        axes.extend(shape[1..last].iter().map(fixed_axis));
        axes.push(out);
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn macs(&self, cx: &MacsCx<'_>) -> f64 {
        let per_output = cx.input(1).map_or(0.0, |w| elements(&w[1..]));
        let bias = if cx.input(2).is_some() { 1.0 } else { 0.0 };
        cx.output_elements(0) * (per_output + bias)
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let (group, last) = (self.group, cx.rank(0).saturating_sub(1));
        if let (true, Some(channels), Some(per_group)) = (group > 1, cx.new_size(0, last), cx.new_size(1, last))
            && per_group > 0
            && channels / per_group != group
        {
            cx.set_int("group", channels / per_group);
        }
        Ok(())
    }

    fn lacks_cpu_kernel(&self) -> bool {
        true
    }

    fn lower(&self, cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        let last = cx.rank(0)?.saturating_sub(1) as i64;
        let first: Vec<i64> = [0, last].into_iter().chain(1..last).collect();
        let back: Vec<i64> = std::iter::once(0).chain(2..=last).chain([1]).collect();
        let (x, w) = (cx.float(0), cx.float(1));
        let (x, w) = (cx.transposed(&x, &first), cx.transposed(&w, &first));
        let attributes = cx.attributes().to_vec();
        let y = cx.add_biased("Conv", [&x, &w], attributes);
        let y = cx.transposed(&y, &back);
        cx.emit(0, &y);
        Ok(true)
    }
}
