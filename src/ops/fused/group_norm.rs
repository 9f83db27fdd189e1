//! # GroupNorm and SkipGroupNorm
//! `S = X + skip + bias` (only SkipGroupNorm), `Y = activation(gamma * (S - mean) / sqrt(variance + epsilon) + beta)`,
//! with moments over the members of each of `groups` groups of consecutive channels. Values are `[N, H, W, C]`, or
//! `[N, C, H, W]` if `channels_last` is 0.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft. They have no CPU kernel; their CUDA kernel takes an
//! even number of channels per group, 512 at most.
//!
//! Coupling: the channels of X, gamma, beta, skip, bias, Y and S are one; the other axes pass through.

use crate::graph::Node;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::Layout;
use crate::operator::infer::InferCx;
use crate::operator::kernel::KernelCx;
use crate::operator::lower::LowerCx;
use crate::operator::patch::PatchCx;
use crate::operator::{OpType, Operator, Registration, RuleError, microsoft};

fn types_groupnorm() -> &'static [OpType] {
    const { &[microsoft("GroupNorm"), microsoft("SkipGroupNorm")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_groupnorm, GroupNorm::parse)];

/// The CUDA kernel takes channels last only. Each of its threads processes two channels of one norm group, and the
/// threads of a block together at least one whole group (`onnxruntime/contrib_ops/cuda/diffusion/group_norm_impl.cu`).
const CHANNELS_AT_ONCE: i64 = 2;
const MOST_MEMBERS: i64 = 512;

const SKIP: usize = 3;
const BIAS: usize = 4;

#[derive(Debug)]
struct GroupNorm {
    groups: i64,
    epsilon: f32,
    is_channels_last: bool,
    has_silu: bool,
}

impl GroupNorm {
    fn parse(node: &Node) -> Result<Box<dyn Operator>, RuleError> {
        let groups = node.int("groups", 1);
        if groups < 1 {
            return Err(RuleError::invalid(format!("expected groups of 1 or more, found {groups}")));
        }
        Ok(Box::new(Self {
            groups,
            epsilon: node.float("epsilon", 1e-5),
            is_channels_last: node.int("channels_last", 1) != 0,
            has_silu: node.int("activation", 0) == 1,
        }))
    }

    /// Returns the axis of the channels in a value of rank `rank`.
    fn channel_axis(&self, rank: usize) -> usize {
        if self.is_channels_last { rank - 1 } else { 1 }
    }

    /// Returns parameter `slot`, `[C]`, in float32 with a shape that broadcasts to X.
    fn parameter(&self, cx: &mut LowerCx<'_>, slot: usize) -> String {
        let parameter = cx.float(slot);
        if self.is_channels_last { parameter } else { cx.reshaped(&parameter, &[1, -1, 1, 1]) }
    }

    /// Computes the input of the norm.
    fn sum(&self, cx: &mut LowerCx<'_>) -> Result<String, RuleError> {
        let mut sum = cx.float(0);
        if cx.has(SKIP) {
            let mut skip = cx.float(SKIP);
            if cx.rank(SKIP)? == 2 {
                // [N, C] is the same for every pixel.
                skip = cx.unsqueezed(&skip, if self.is_channels_last { &[1, 2] } else { &[2, 3] });
            }
            sum = cx.add("Add", &[&sum, &skip], vec![]);
        }
        if cx.has(BIAS) {
            let bias = self.parameter(cx, BIAS);
            sum = cx.add("Add", &[&sum, &bias], vec![]);
        }
        Ok(sum)
    }
}

impl Operator for GroupNorm {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        if shape.len() != 4 {
            return Err(RuleError::invalid(format!("X must have rank 4, found {}", shape.len())));
        }
        let channels = &shape[self.channel_axis(4)];
        let groups = self.groups;
        if channels.as_const().is_some_and(|channels| channels % groups != 0) {
            return Err(RuleError::invalid(format!("{channels} channels can't be divided into {groups} norm groups")));
        }
        for slot in [1, 2, BIAS] {
            cx.expect_vector(slot, Some(channels))?;
        }
        cx.set_shape(1, dtype, shape.clone());
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let mut x = cx.separated(0)?;
        let axis = self.channel_axis(x.rank());
        for slot in [1, 2, BIAS] {
            if cx.has(slot) {
                let parameter = cx.separated(slot)?;
                x.axes[axis] = cx.tie(&x.axes[axis], &parameter.axes[0]);
            }
        }
        if cx.has(SKIP) {
            let mut skip = cx.separated(SKIP)?;
            if skip.rank() == 2 {
                // [N, C] is the same for every pixel.
                let at = if self.is_channels_last { 1 } else { 2 };
                skip.axes.splice(at..at, [vec![], vec![]]);
            }
            x = cx.tie_broadcast(&[x, skip]);
        }
        let groups = usize::try_from(self.groups).unwrap_or(1);
        let multiple = if self.is_channels_last { CHANNELS_AT_ONCE as usize } else { 1 };
        cx.norm_groups_of(&x.axes[axis], groups, multiple);
        cx.set(1, Layout { axes: x.axes.clone() });
        cx.set(0, x);
        Ok(())
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let (axis, groups) = (self.channel_axis(cx.rank(0)), self.groups);
        // If whole groups are removed, the size of the kept ones remains unchanged.
        if let (Some(left), Some(channels)) = (cx.norm_group_count(0, axis, groups), cx.new_size(0, axis))
            && left != groups
            && channels % left.max(1) == 0
        {
            cx.set_int("groups", left);
        }
        Ok(())
    }

    fn lacks_cpu_kernel(&self) -> bool {
        true
    }

    fn kernel_takes(&self, cx: &KernelCx<'_>) -> bool {
        let fits = |channels: i64| {
            let members = channels / self.groups;
            members % CHANNELS_AT_ONCE == 0 && members <= MOST_MEMBERS
        };
        self.is_channels_last && cx.size(0, None).is_none_or(fits)
    }

    fn lower(&self, cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        let sum = self.sum(cx)?;
        let mut y = if self.is_channels_last { cx.transposed(&sum, &[0, 3, 1, 2]) } else { sum.clone() };
        y = cx.group_norm(&y, self.groups, self.epsilon);
        // Scale and offset are applied where exporters apply them, on channels first.
        for (slot, op_type) in [(1, "Mul"), (2, "Add")] {
            let parameter = cx.float(slot);
            let parameter = cx.reshaped(&parameter, &[-1, 1, 1]);
            y = cx.add(op_type, &[&y, &parameter], vec![]);
        }
        if self.has_silu {
            y = cx.silu(&y);
        }
        if self.is_channels_last {
            y = cx.transposed(&y, &[0, 2, 3, 1]);
        }
        cx.emit(0, &y);
        cx.emit(1, &sum);
        Ok(true)
    }
}
