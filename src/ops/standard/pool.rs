//! # Pooling
//! MaxPool, AveragePool and LpPool over windows, and their global forms.
//! Spec: <https://onnx.ai/onnx/operators/onnx__AveragePool.html>. All opsets.
//!
//! Coupling: batch and channels pass through; spatial axes are kept.

use super::conv::Window;
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::onnx::{DataType, attr_int};
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::macs::elements;
use crate::operator::{
    CoupleCx, GradientCx, InferCx, MacsCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx,
};

fn types_pool() -> &'static [OpType] {
    const {
        &[
            onnx("MaxPool"),
            onnx("AveragePool"),
            onnx("LpPool"),
            onnx("GlobalAveragePool"),
            onnx("GlobalMaxPool"),
            onnx("GlobalLpPool"),
        ]
    }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_pool, |node| Ok(Box::new(Pool::parse(node)?)))];

#[derive(Debug)]
struct Pool {
    kind: Kind,
    extent: Extent,
    /// Whether the indices of the maxima are used.
    returns_indices: bool,
}

/// How an element of the output follows from the elements in its window.
#[derive(Debug)]
enum Kind {
    Max,
    Average {
        /// Whether the zeros of the padding count as elements.
        counts_padding: bool,
    },
    /// `(sum of |x|^p)^(1 / p)`.
    Lp {
        p: f64,
    },
}

/// The elements from which one element of the output is computed.
#[derive(Debug)]
enum Extent {
    /// All elements of a channel.
    Global,
    /// A window, over this number of spatial axes.
    Window(Window, usize),
}

impl Pool {
    fn parse(node: &Node) -> Result<Self, RuleError> {
        let op_type = node.proto.op_type.as_str();
        let kind = match op_type.trim_start_matches("Global") {
            "AveragePool" => Kind::Average { counts_padding: node.int("count_include_pad", 0) != 0 },
            "LpPool" => Kind::Lp { p: node.int("p", 2) as f64 },
            _ => Kind::Max,
        };
        let extent = if op_type.starts_with("Global") {
            Extent::Global
        } else {
            let kernel = node
                .proto
                .ints("kernel_shape")
                .ok_or_else(|| RuleError::invalid("it has no attribute kernel_shape"))?;
            Extent::Window(Window::of(node, &[], kernel.len())?, kernel.len())
        };
        Ok(Self { kind, extent, returns_indices: node.uses_output(1) })
    }
}

impl Operator for Pool {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let mut shape = cx.shape(0)?;
        if shape.len() < 3 {
            return Err(RuleError::invalid(format!("X must have rank 3 or more, found {}", shape.len())));
        }
        match &self.extent {
            Extent::Global => shape[2..].iter_mut().for_each(|size| *size = Dim::from(1)),
            Extent::Window(window, spatial) => {
                if *spatial != shape.len() - 2 {
                    let text = format!("kernel_shape has {spatial} entries, expected {}", shape.len() - 2);
                    return Err(RuleError::invalid(text));
                }
                let sizes = window.outputs(cx, &shape[2..]);
                shape.splice(2.., sizes);
            }
        }
        let dtype = cx.input(0)?.dtype;
        cx.set(1, Fact::new(DataType::Int64, shape.clone()));
        cx.set(0, Fact::new(dtype, shape));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if self.returns_indices {
            return Err(RuleError::unsupported("the output with the indices of the maxima is used"));
        }
        let x = cx.separated(0)?;
        let shape = cx.output_shape(0)?;
        for axis in x.axes.iter().skip(2) {
            cx.keep(axis, "the axis is a spatial axis of a pooling");
        }
        let mut axes: Vec<_> = x.axes.iter().take(2).cloned().collect();
        axes.extend(shape.iter().skip(2).map(fixed_axis));
        cx.set(1, Layout { axes: axes.clone() });
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn macs(&self, cx: &MacsCx<'_>) -> f64 {
        // Averages count one per element of the window; maxima multiply nothing.
        match (&self.kind, &self.extent) {
            (Kind::Max, _) => 0.0,
            (_, Extent::Global) => cx.input(0).map_or(0.0, elements),
            (_, Extent::Window(window, _)) => cx.output_elements(0) * window.kernel_elements(),
        }
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if let Some(mask) = cx.mask(0) {
            // Channels are masked whole; along the spatial axes, the mask has size one.
            let rank = cx.rank(0)? as i64;
            let axes: Vec<i64> = (2..rank).collect();
            let mask = cx.reduce("ReduceMax", &mask, &axes);
            cx.set_mask(0, mask);
        }
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape, out) = (cx.dy()?, cx.shape(0)?, cx.output_shape(0)?);
        let spatial = shape.len() - 2;
        let dx = match (&self.kind, &self.extent) {
            (Kind::Average { .. }, Extent::Global) => {
                let area: i64 = shape[2..].iter().product();
                let share = cx.scaled(&dy, 1.0 / area.max(1) as f64);
                cx.expand(&share, &shape)
            }
            (Kind::Max, Extent::Global) => {
                let axes: Vec<usize> = (2..shape.len()).collect();
                let hits = cx.equal(&cx.input(0), &cx.output(0));
                let total = cx.reduce_sum(&hits, &axes, true);
                let share = cx.op("Div", &[&dy, &total]);
                cx.mul(&hits, &share)
            }
            (Kind::Average { counts_padding }, Extent::Window(window, _)) => {
                let mut dx = dy;
                for axis in 0..spatial {
                    let rows = window.average_rows(axis, shape[axis + 2], out[axis + 2], *counts_padding)?;
                    let matrix = cx.floats(&rows, &[shape[axis + 2], out[axis + 2]]);
                    dx = cx.along_axis(&dx, axis + 2, shape.len(), &matrix);
                }
                dx
            }
            (Kind::Max, Extent::Window(window, _)) => max_pool_gradient(cx, window, &dy, &shape, &out)?,
            // y^p is the sum of |x|^p: dx = sign(x) |x|^(p - 1) dy / y^(p - 1).
            (Kind::Lp { p }, extent) => {
                let less = cx.scalar(p - 1.0);
                let (x, y) = (cx.input(0), cx.output(0));
                let y_power = cx.op("Pow", &[&y, &less]);
                let mut share = cx.op("Div", &[&dy, &y_power]);
                // The gradient of a window of zeros is zero.
                let zero = cx.scalar(0.0);
                let is_some = cx.op("Greater", &[&y, &zero]);
                share = cx.op("Where", &[&is_some, &share, &zero]);
                if let Extent::Window(window, _) = extent {
                    for axis in 0..spatial {
                        let (size, count) = (shape[axis + 2], out[axis + 2]);
                        let rows = window.sum_rows(axis, size, count)?;
                        let matrix = cx.floats(&rows, &[size, count]);
                        share = cx.along_axis(&share, axis + 2, shape.len(), &matrix);
                    }
                }
                let (magnitude, sign) = (cx.op("Abs", &[&x]), cx.op("Sign", &[&x]));
                let x_power = cx.op("Pow", &[&magnitude, &less]);
                let derivative = cx.mul(&sign, &x_power);
                cx.mul(&derivative, &share)
            }
        };
        cx.add_gradient(0, dx);
        Ok(())
    }
}

/// Distributes the gradient of every window equally over the elements that are equal to its maximum. For each position
/// in the window, it takes the elements at that position from X, compares them with the maximum, and puts their
/// gradients back at their positions.
fn max_pool_gradient(
    cx: &mut GradientCx<'_>,
    window: &Window,
    dy: &str,
    shape: &[i64],
    out: &[i64],
) -> Result<String, RuleError> {
    let (x, y) = (cx.input(0), cx.output(0));
    let spatial = shape.len() - 2;
    let taps = window.taps()?;
    let mut taken = Vec::new();
    for tap in &taps {
        let mut rows = Vec::new();
        let mut at_tap = x.clone();
        let mut inside: Option<String> = None;
        for axis in 0..spatial {
            let (size, count) = (shape[axis + 2], out[axis + 2]);
            let from: Vec<Option<i64>> = window.positions(axis, tap[axis], size, count)?;
            let indices: Vec<i64> = from.iter().map(|at| at.unwrap_or(0)).collect();
            let indices = cx.ints(&indices);
            at_tap = cx.op_with("Gather", &[&at_tap, &indices], vec![attr_int("axis", axis as i64 + 2)]);
            let mut matrix = vec![0.0; (size * count) as usize];
            let mut valid = vec![0.0; count as usize];
            for (o, at) in from.iter().enumerate() {
                if let Some(at) = at {
                    matrix[(at * count) as usize + o] = 1.0;
                    valid[o] = 1.0;
                }
            }
            let mut dims = vec![1; shape.len()];
            dims[axis + 2] = count;
            let valid = cx.floats(&valid, &dims);
            inside = Some(match inside {
                None => valid,
                Some(other) => cx.mul(&other, &valid),
            });
            rows.push(cx.floats(&matrix, &[size, count]));
        }
        let hits = cx.equal(&at_tap, &y);
        let hits = match inside {
            Some(inside) => cx.mul(&hits, &inside),
            None => hits,
        };
        taken.push((hits, rows));
    }
    let all: Vec<&str> = taken.iter().map(|(hits, _)| hits.as_str()).collect();
    let total = cx.op("Sum", &all);
    let share = cx.op("Div", &[dy, &total]);
    let mut parts = Vec::new();
    for (hits, rows) in &taken {
        let mut part = cx.mul(hits, &share);
        for (axis, matrix) in rows.iter().enumerate() {
            part = cx.along_axis(&part, axis + 2, shape.len(), matrix);
        }
        parts.push(part);
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    Ok(cx.op("Sum", &parts))
}
