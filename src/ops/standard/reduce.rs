//! # Reductions
//! ReduceMean, ReduceSum and their like along axes.
//! Spec: <https://onnx.ai/onnx/operators/onnx__ReduceMean.html>. All opsets (`axes` is an input from 13 for ReduceSum,
//! from 18 for the others).
//!
//! Coupling: axes that are not reduced pass through; a reduction over channels acts on the kept ones.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known, reduced_places, static_shape};
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{Folding, NodeRules, OpType, Registration, RuleError, axis_index, onnx};

fn types_reduce() -> &'static [OpType] {
    const {
        &[
            onnx("ReduceMean"),
            onnx("ReduceSum"),
            onnx("ReduceMax"),
            onnx("ReduceMin"),
            onnx("ReduceProd"),
            onnx("ReduceL1"),
            onnx("ReduceL2"),
            onnx("ReduceSumSquare"),
            onnx("ReduceLogSum"),
            onnx("ReduceLogSumExp"),
        ]
    }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_reduce, &Reduce)];

struct Reduce;

/// The known elements of the result.
fn reduced_known(op_type: &str, known: &Known, sizes: &[usize], axes: &[usize]) -> Option<Known> {
    let places = reduced_places(sizes, axes);
    match known {
        Known::Ints(values) => {
            let of = |places: &Vec<usize>| {
                let mut values = places.iter().map(|at| values[*at].clone());
                match op_type {
                    "ReduceProd" => Some(crate::graph::dim::product(&values.collect::<Vec<_>>())),
                    "ReduceSum" => Some(values.fold(Dim::from(0), |sum, value| &sum + &value)),
                    "ReduceMax" => values.next().map(|first| values.fold(first, |a, b| Dim::max(&a, &b))),
                    "ReduceMin" => values.next().map(|first| values.fold(first, |a, b| Dim::min(&a, &b))),
                    _ => None,
                }
            };
            places.iter().map(of).collect::<Option<_>>().map(Known::Ints)
        }
        Known::Floats(values) => {
            let of = |places: &Vec<usize>| match op_type {
                "ReduceProd" => Some(places.iter().map(|at| values[*at]).product()),
                "ReduceSum" => Some(places.iter().map(|at| values[*at]).sum()),
                _ => None,
            };
            places.iter().map(of).collect::<Option<_>>().map(Known::Floats)
        }
    }
}

/// The axes that are reduced. None given means all, unless the node says that it then does nothing.
fn reduced(node: &Node, rank: usize, known: Option<Vec<Dim>>) -> Result<Vec<usize>, RuleError> {
    let attribute = node.proto.ints("axes").map(|axes| axes.iter().copied().map(Dim::from).collect());
    let axes: Option<Vec<Dim>> = attribute.or(known);
    match axes {
        None if node.input(1).is_some() => Err(RuleError::UnknownShape),
        Some(axes) if !axes.is_empty() => {
            axes.iter().map(|axis| axis_index(axis.as_const().ok_or(RuleError::UnknownShape)?, rank)).collect()
        }
        _ if node.int("noop_with_empty_axes", 0) != 0 => Ok(vec![]),
        _ => Ok((0..rank).collect()),
    }
}

/// What is left of a list with one entry per axis.
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

impl NodeRules for Reduce {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let axes = reduced(node, shape.len(), cx.ints(1).map(<[Dim]>::to_vec))?;
        let keeps = node.int("keepdims", 1) != 0;
        let input = cx.input(0)?;
        let known = input.known.as_ref().zip(static_shape(&shape));
        let known = known.and_then(|(known, sizes)| reduced_known(&node.proto.op_type, known, &sizes, &axes));
        let fact = Fact::new(input.dtype, without(&shape, &axes, keeps, &Dim::from(1))).with_known(known);
        cx.set(0, fact);
        Ok(())
    }

    fn folding(&self, _node: &Node) -> Folding {
        Folding::Mixes
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        let axes = reduced(node, layout.rank(), cx.ints(1).map(<[Dim]>::to_vec))?;
        let keeps = node.int("keepdims", 1) != 0;
        cx.set(0, Layout { axes: without(&layout.axes, &axes, keeps, &Axis::new()) });
        Ok(())
    }

    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let Some(mask) = cx.mask(0) else {
            return Ok(());
        };
        let rank = cx.rank(0)?;
        let axes = reduced(node, rank, cx.known_ints(1))?;
        if axes.is_empty() {
            // Nothing is reduced, so that every element stands for itself.
            return cx.elementwise(&[0]);
        }
        let signed: Vec<i64> = axes.iter().map(|axis| *axis as i64).collect();
        match node.proto.op_type.as_str() {
            "ReduceMean" => {
                let x = cx.zeroed(0);
                let x = cx.cast_to_float(&x, 0);
                let sum = cx.reduce("ReduceSum", &x, &signed);
                let count = cx.kept_count(0, &signed);
                let mean = cx.add("Div", &[&sum, &count], vec![]);
                let mean = cx.cast_to_input(&mean, 0);
                let mean = drop_axes(node, cx, &mean, &axes);
                cx.emit_as(0, &mean);
            }
            "ReduceMax" | "ReduceLogSumExp" => {
                let x = cx.filled(&cx.input(0), &mask, -60_000.0, 0);
                cx.emit(&[(0, x)]);
            }
            "ReduceMin" => {
                let x = cx.filled(&cx.input(0), &mask, 60_000.0, 0);
                cx.emit(&[(0, x)]);
            }
            "ReduceProd" => {
                let x = cx.filled(&cx.input(0), &mask, 1.0, 0);
                cx.emit(&[(0, x)]);
            }
            _ => {
                let x = cx.zeroed(0);
                cx.emit(&[(0, x)]);
            }
        }
        let left = cx.reduce("ReduceMax", &mask, &signed);
        let left = drop_axes(node, cx, &left, &axes);
        cx.set_mask(0, left);
        Ok(())
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let axes = reduced(node, shape.len(), cx.known_ints(1))?;
        let count: i64 = axes.iter().map(|axis| shape[*axis]).product();
        let kept = without(&shape, &axes, true, &1);
        // Where the reduced axes are gone, they come back with size one.
        let keep = |cx: &mut GradientCx<'_>, value: &str| {
            if node.int("keepdims", 1) != 0 { value.to_owned() } else { cx.reshape(value, &kept) }
        };
        let (x, y) = (cx.input(0), cx.output(0));
        let dy = keep(cx, &dy);
        let dx = match node.proto.op_type.as_str() {
            "ReduceSum" => cx.expand(&dy, &shape),
            "ReduceMean" => {
                let dy = cx.scaled(&dy, 1.0 / count.max(1) as f64);
                cx.expand(&dy, &shape)
            }
            "ReduceL1" => {
                let sign = cx.op("Sign", &[&x]);
                cx.mul(&sign, &dy)
            }
            "ReduceL2" => {
                let y = keep(cx, &y);
                let slope = cx.op("Div", &[&dy, &y]);
                cx.mul(&x, &slope)
            }
            "ReduceSumSquare" => {
                let twice = cx.scaled(&dy, 2.0);
                cx.mul(&x, &twice)
            }
            "ReduceLogSum" => {
                let y = keep(cx, &y);
                let sum = cx.op("Exp", &[&y]);
                let slope = cx.op("Div", &[&dy, &sum]);
                cx.expand(&slope, &shape)
            }
            "ReduceLogSumExp" => {
                let y = keep(cx, &y);
                let difference = cx.op("Sub", &[&x, &y]);
                let share = cx.op("Exp", &[&difference]);
                cx.mul(&share, &dy)
            }
            "ReduceProd" => {
                let y = keep(cx, &y);
                let product = cx.mul(&dy, &y);
                cx.op("Div", &[&product, &x])
            }
            _ => {
                // A maximum or minimum passes its gradient to the elements that reach it, in equal parts.
                let y = keep(cx, &y);
                let hits = cx.equal(&x, &y);
                let total = cx.reduce_sum(&hits, &axes, true);
                let share = cx.op("Div", &[&dy, &total]);
                cx.mul(&hits, &share)
            }
        };
        cx.give(0, dx);
        Ok(())
    }
}

/// Removes reduced axes of size one where the node does not keep them.
fn drop_axes(node: &Node, cx: &mut ReferenceCx<'_>, value: &str, axes: &[usize]) -> String {
    if node.int("keepdims", 1) != 0 {
        return value.to_owned();
    }
    let signed: Vec<i64> = axes.iter().map(|axis| *axis as i64).collect();
    if cx.opset() >= 13 {
        let axes = cx.ints(&signed, &[signed.len() as i64]);
        cx.add("Squeeze", &[value, &axes], vec![])
    } else {
        cx.add("Squeeze", &[value], vec![crate::onnx::attr_ints("axes", &signed)])
    }
}
