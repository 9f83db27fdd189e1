//! # Reductions
//! ReduceMean, ReduceSum and their like along axes.
//! Spec: <https://onnx.ai/onnx/operators/onnx__ReduceMean.html>. All opsets (`axes` is an input from 13 for ReduceSum,
//! from 18 for the others).
//!
//! Coupling: axes that are not reduced pass through; a reduction over channels acts on the kept ones.

use std::sync::OnceLock;

use crate::graph::Node;
use crate::graph::dim::{Dim, product};
use crate::graph::fact::{Fact, Known, reduced_positions, static_shape};
use crate::onnx::attr_ints;
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::{
    CoupleCx, Folding, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, axis_index, onnx,
};

fn types_reduce() -> &'static [OpType] {
    static TYPES: OnceLock<Vec<OpType>> = OnceLock::new();
    TYPES.get_or_init(|| TABLE.iter().map(|(name, _)| onnx(name)).collect())
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_reduce, |node| Ok(Box::new(Reduce::parse(node)?)))];

const TABLE: &[(&str, Kind)] = &[
    ("ReduceMean", Kind::Mean),
    ("ReduceSum", Kind::Sum),
    ("ReduceMax", Kind::Max),
    ("ReduceMin", Kind::Min),
    ("ReduceProd", Kind::Product),
    ("ReduceL1", Kind::L1),
    ("ReduceL2", Kind::L2),
    ("ReduceSumSquare", Kind::SumOfSquares),
    ("ReduceLogSum", Kind::LogOfSum),
    ("ReduceLogSumExp", Kind::LogOfSumOfExp),
];

/// How elements are reduced to one.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Mean,
    Sum,
    Max,
    Min,
    Product,
    L1,
    L2,
    SumOfSquares,
    LogOfSum,
    LogOfSumOfExp,
}

#[derive(Debug)]
struct Reduce {
    kind: Kind,
    /// The axes as an attribute; `None`: an input or all.
    axes: Option<Vec<i64>>,
    has_axes_input: bool,
    /// Whether reduced axes are kept, with size one.
    keeps_axes: bool,
    /// Whether the node does nothing if no axes are given.
    is_noop_without_axes: bool,
}

impl Reduce {
    fn parse(node: &Node) -> Result<Self, RuleError> {
        let op_type = node.proto.op_type.as_str();
        let (_, kind) = TABLE
            .iter()
            .find(|(name, _)| *name == op_type)
            .ok_or_else(|| RuleError::unsupported("this version does not know the reduction"))?;
        Ok(Self {
            kind: *kind,
            axes: node.proto.ints("axes").map(<[i64]>::to_vec),
            has_axes_input: node.input(1).is_some(),
            keeps_axes: node.int("keepdims", 1) != 0,
            is_noop_without_axes: node.int("noop_with_empty_axes", 0) != 0,
        })
    }

    /// Returns the reduced axes of an input of rank `rank`; `known` holds the known integers of the input that states
    /// them. No axes means all, unless the node then does nothing.
    fn reduced(&self, rank: usize, known: Option<&[Dim]>) -> Result<Vec<usize>, RuleError> {
        let attribute = self.axes.as_ref().map(|axes| axes.iter().copied().map(Dim::from).collect());
        let axes: Option<Vec<Dim>> = attribute.or_else(|| known.map(<[Dim]>::to_vec));
        match axes {
            None if self.has_axes_input => Err(RuleError::UnknownShape),
            Some(axes) if !axes.is_empty() => {
                axes.iter().map(|axis| axis_index(axis.as_const().ok_or(RuleError::UnknownShape)?, rank)).collect()
            }
            _ if self.is_noop_without_axes => Ok(vec![]),
            _ => Ok((0..rank).collect()),
        }
    }

    /// Removes reduced axes of size one unless the node keeps them.
    fn drop_axes(&self, cx: &mut ReferenceCx<'_>, value: &str, axes: &[i64]) -> String {
        if self.keeps_axes {
            return value.to_owned();
        }
        if cx.opset() >= 13 {
            let axes = cx.ints(axes, &[axes.len() as i64]);
            cx.add("Squeeze", &[value, &axes], vec![])
        } else {
            cx.add("Squeeze", &[value], vec![attr_ints("axes", axes)])
        }
    }
}

/// Computes the known elements of the result.
fn reduced_known(kind: Kind, known: &Known, sizes: &[usize], axes: &[usize]) -> Option<Known> {
    let places = reduced_positions(sizes, axes);
    match known {
        Known::Ints(values) => {
            let of = |places: &Vec<usize>| {
                let mut values = places.iter().map(|at| values[*at].clone());
                match kind {
                    Kind::Product => Some(product(&values.collect::<Vec<_>>())),
                    Kind::Sum => Some(values.fold(Dim::from(0), |sum, value| &sum + &value)),
                    Kind::Max => values.next().map(|first| values.fold(first, |a, b| Dim::max(&a, &b))),
                    Kind::Min => values.next().map(|first| values.fold(first, |a, b| Dim::min(&a, &b))),
                    _ => None,
                }
            };
            places.iter().map(of).collect::<Option<_>>().map(Known::Ints)
        }
        Known::Floats(values) => {
            let of = |places: &Vec<usize>| match kind {
                Kind::Product => Some(places.iter().map(|at| values[*at]).product()),
                Kind::Sum => Some(places.iter().map(|at| values[*at]).sum()),
                _ => None,
            };
            places.iter().map(of).collect::<Option<_>>().map(Known::Floats)
        }
    }
}

/// Removes the reduced axes from a list with one entry per axis, or replaces their entries by `one` if they are kept.
fn without<T: Clone>(entries: &[T], axes: &[usize], keeps: bool, one: &T) -> Vec<T> {
    entries
        .iter()
        .enumerate()
        .filter_map(|(at, entry)| match (axes.contains(&at), keeps) {
            (false, _) => Some(entry.clone()),
            (true, true) => Some(one.clone()),
            (true, false) => None,
        })
        .collect()
}

impl Operator for Reduce {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let axes = self.reduced(shape.len(), cx.ints(1))?;
        let input = cx.input(0)?;
        let known = input.known.as_ref().zip(static_shape(&shape));
        let known = known.and_then(|(known, sizes)| reduced_known(self.kind, known, &sizes, &axes));
        let fact = Fact::new(input.dtype, without(&shape, &axes, self.keeps_axes, &Dim::from(1))).with_known(known);
        cx.set(0, fact);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        let axes = self.reduced(layout.rank(), cx.ints(1))?;
        cx.set(0, Layout { axes: without(&layout.axes, &axes, self.keeps_axes, &Axis::new()) });
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let Some(mask) = cx.mask(0) else {
            return Ok(());
        };
        let rank = cx.rank(0)?;
        let axes = self.reduced(rank, cx.known_ints(1).as_deref())?;
        if axes.is_empty() {
            // Nothing is reduced: the operator acts element by element.
            return cx.elementwise(&[0]);
        }
        let signed: Vec<i64> = axes.iter().map(|axis| *axis as i64).collect();
        match self.kind {
            Kind::Mean => {
                let x = cx.zeroed(0);
                let x = cx.cast_to_float(&x, 0);
                let sum = cx.reduce("ReduceSum", &x, &signed);
                let count = cx.kept_count(0, &signed);
                let mean = cx.add("Div", &[&sum, &count], vec![]);
                let mean = cx.cast_to_input(&mean, 0);
                let mean = self.drop_axes(cx, &mean, &signed);
                cx.emit_as(0, &mean);
            }
            Kind::Max | Kind::LogOfSumOfExp => {
                let x = cx.filled(&cx.input(0), &mask, -60_000.0, 0);
                cx.emit(&[(0, x)]);
            }
            Kind::Min => {
                let x = cx.filled(&cx.input(0), &mask, 60_000.0, 0);
                cx.emit(&[(0, x)]);
            }
            Kind::Product => {
                let x = cx.filled(&cx.input(0), &mask, 1.0, 0);
                cx.emit(&[(0, x)]);
            }
            Kind::Sum | Kind::L1 | Kind::L2 | Kind::SumOfSquares | Kind::LogOfSum => {
                let x = cx.zeroed(0);
                cx.emit(&[(0, x)]);
            }
        }
        let left = cx.reduce("ReduceMax", &mask, &signed);
        let left = self.drop_axes(cx, &left, &signed);
        cx.set_mask(0, left);
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let axes = self.reduced(shape.len(), cx.known_ints(1).as_deref())?;
        let count: i64 = axes.iter().map(|axis| shape[*axis]).product();
        let kept = without(&shape, &axes, true, &1);
        // Axes that the node removed are restored with size one.
        let keep = |cx: &mut GradientCx<'_>, value: &str| {
            if self.keeps_axes { value.to_owned() } else { cx.reshape(value, &kept) }
        };
        let (x, y) = (cx.input(0), cx.output(0));
        let dy = keep(cx, &dy);
        let dx = match self.kind {
            Kind::Sum => cx.expand(&dy, &shape),
            Kind::Mean => {
                let dy = cx.scaled(&dy, 1.0 / count.max(1) as f64);
                cx.expand(&dy, &shape)
            }
            Kind::L1 => {
                let sign = cx.op("Sign", &[&x]);
                cx.mul(&sign, &dy)
            }
            Kind::L2 => {
                let y = keep(cx, &y);
                let share = cx.op("Div", &[&dy, &y]);
                cx.mul(&x, &share)
            }
            Kind::SumOfSquares => {
                let twice = cx.scaled(&dy, 2.0);
                cx.mul(&x, &twice)
            }
            Kind::LogOfSum => {
                let y = keep(cx, &y);
                let sum = cx.op("Exp", &[&y]);
                let share = cx.op("Div", &[&dy, &sum]);
                cx.expand(&share, &shape)
            }
            Kind::LogOfSumOfExp => {
                let y = keep(cx, &y);
                let difference = cx.op("Sub", &[&x, &y]);
                let share = cx.op("Exp", &[&difference]);
                cx.mul(&share, &dy)
            }
            Kind::Product => {
                let y = keep(cx, &y);
                let product = cx.mul(&dy, &y);
                cx.op("Div", &[&product, &x])
            }
            Kind::Max | Kind::Min => {
                // The elements that are equal to the maximum or minimum share its gradient equally.
                let y = keep(cx, &y);
                let hits = cx.equal(&x, &y);
                let total = cx.reduce_sum(&hits, &axes, true);
                let share = cx.op("Div", &[&dy, &total]);
                cx.mul(&hits, &share)
            }
        };
        cx.add_gradient(0, dx);
        Ok(())
    }
}
