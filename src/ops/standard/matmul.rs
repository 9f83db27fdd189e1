//! # MatMul
//! `Y[..., m, n] = sum over k of A[..., m, k] * B[..., k, n]`, as numpy.matmul.
//! Spec: <https://onnx.ai/onnx/operators/onnx__MatMul.html>. All opsets.
//!
//! Coupling: the last axis of A is the second to last of B; the others pass through, leading ones broadcast.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::macs::MacsCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{Folding, NodeRules, OpType, Registration, RuleError, broadcast, microsoft, onnx};

fn types_matmul() -> &'static [OpType] {
    const { &[onnx("MatMul"), microsoft("FusedMatMul"), microsoft("TransposeMatMul")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_matmul, &MatMul)];

struct MatMul;

/// Whether a fused form transposes its last two axes.
fn transposes(node: &Node) -> (bool, bool) {
    (node.int("transA", 0) != 0, node.int("transB", 0) != 0)
}

/// Whether a fused form moves the first axis of A or B behind the other leading ones before it multiplies.
fn moves_first(node: &Node) -> (bool, bool) {
    (node.int("transBatchA", 0) != 0, node.int("transBatchB", 0) != 0)
}

/// `[first, leading..., last]` as `[leading..., first, last]`, where that is asked for.
fn arranged<T: Clone>(sizes: &[T], moves_first: bool) -> Vec<T> {
    let mut sizes = sizes.to_vec();
    if moves_first && sizes.len() > 2 {
        let last = sizes.len() - 1;
        sizes[..last].rotate_left(1);
    }
    sizes
}

/// The permutation that undoes another.
fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut back = vec![0; perm.len()];
    perm.iter().enumerate().for_each(|(at, axis)| back[*axis] = at);
    back
}

/// Both shapes as (leading sizes, rows, columns); a vector gets the missing row or column as `None`.
fn split<T: Clone>(sizes: &[T], is_left: bool, transposed: bool) -> Option<(Vec<T>, Option<T>, Option<T>)> {
    match sizes {
        [] => None,
        [one] if is_left => Some((vec![], None, Some(one.clone()))),
        [one] => Some((vec![], Some(one.clone()), None)),
        [leading @ .., rows, columns] => {
            let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
            Some((leading.to_vec(), Some(rows.clone()), Some(columns.clone())))
        }
    }
}

impl NodeRules for MatMul {
    fn sums_products(&self) -> bool {
        true
    }

    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let ((trans_a, trans_b), (moves_a, moves_b)) = (transposes(node), moves_first(node));
        let scalar = || RuleError::invalid("a scalar can't be multiplied as a matrix");
        let (a, b) = (arranged(&cx.shape(0)?, moves_a), arranged(&cx.shape(1)?, moves_b));
        let (a_leading, rows, k) = split(&a, true, trans_a).ok_or_else(scalar)?;
        let (b_leading, l, columns) = split(&b, false, trans_b).ok_or_else(scalar)?;
        if let (Some(k), Some(l)) = (k.as_ref().and_then(Dim::as_const), l.as_ref().and_then(Dim::as_const))
            && k != l
        {
            return Err(RuleError::invalid(format!("A has {k} columns, B has {l} rows")));
        }
        let mut shape = broadcast(&[a_leading, b_leading])?;
        shape.extend(rows);
        shape.extend(columns);
        let dtype = cx.input(0)?.dtype;
        cx.set(0, Fact::new(dtype, shape));
        Ok(())
    }

    fn folding(&self, _node: &Node) -> Folding {
        Folding::Mixes
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let ((trans_a, trans_b), (moves_a, moves_b)) = (transposes(node), moves_first(node));
        let scalar = || RuleError::invalid("a scalar can't be multiplied as a matrix");
        let a: Vec<Axis> = arranged(&cx.separated(0)?.axes, moves_a);
        let b: Vec<Axis> = arranged(&cx.separated(1)?.axes, moves_b);
        let (a_leading, rows, k) = split(&a, true, trans_a).ok_or_else(scalar)?;
        let (b_leading, l, columns) = split(&b, false, trans_b).ok_or_else(scalar)?;
        if let (Some(k), Some(l)) = (&k, &l) {
            cx.tie(k, l);
        }
        for (slot, inner, outer) in [(0, &k, &rows), (1, &l, &columns)] {
            if cx.is_weight(slot) && !cx.is_weight(1 - slot) {
                if let Some(inner) = inner {
                    cx.consumes(inner);
                }
                if let Some(outer) = outer {
                    cx.produces(outer);
                }
            }
        }
        let leading = [Layout { axes: a_leading }, Layout { axes: b_leading }];
        let mut layout = cx.tie_broadcast(&leading);
        layout.axes.extend(rows);
        layout.axes.extend(columns);
        cx.set(0, layout);
        Ok(())
    }

    fn macs(&self, node: &Node, cx: &MacsCx<'_>) -> f64 {
        let ((trans_a, _), (moves_a, _)) = (transposes(node), moves_first(node));
        let a = cx.input(0).map(|a| arranged(a, moves_a));
        let k = a.as_deref().and_then(|a| if trans_a && a.len() > 1 { a.get(a.len() - 2) } else { a.last() });
        cx.output_elements(0) * k.map_or(0.0, |k| *k as f64)
    }

    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let ((trans_a, trans_b), (moves_a, moves_b)) = (transposes(node), moves_first(node));
        let replaced = [(0, cx.zeroed(0)), (1, cx.zeroed(1))];
        cx.emit(&replaced);
        let mut out: Option<String> = None;
        for (slot, transposed, moves, is_left) in [(0, trans_a, moves_a, true), (1, trans_b, moves_b, false)] {
            let Some(mut mask) = cx.mask(slot) else {
                continue;
            };
            let rank = cx.rank(slot)? as i64;
            if (transposed || moves) && rank > 1 {
                let mut perm: Vec<i64> = arranged(&(0..rank).collect::<Vec<i64>>(), moves);
                if transposed {
                    perm.swap(rank as usize - 1, rank as usize - 2);
                }
                mask = cx.add("Transpose", &[&mask], vec![crate::onnx::attr_ints("perm", &perm)]);
            }
            // What is left of a row of A or a column of B once the common axis is summed over.
            let summed = if is_left || rank == 1 { rank - 1 } else { rank - 2 };
            if rank == 1 {
                // All of a vector is summed over; nothing of the product depends on where it has zeros.
                continue;
            }
            mask = cx.reduce("ReduceMax", &mask, &[summed]);
            if cx.rank(1 - slot)? == 1 {
                // The product with a vector has no axis in the place of the vector's.
                mask = cx.without_axis(&mask, summed);
            }
            out = Some(match out {
                None => mask,
                Some(other) => cx.add("Mul", &[&other, &mask], vec![]),
            });
        }
        if let Some(mask) = out {
            let rank = cx.output_rank(0)?;
            let ones = cx.ints(&vec![1; rank], &[rank as i64]);
            let mask = cx.add("Expand", &[&mask, &ones], vec![]);
            cx.set_mask(0, mask);
        }
        Ok(())
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let ((trans_a, trans_b), (moves_a, moves_b)) = (transposes(node), moves_first(node));
        let (a_shape, b_shape) = (arranged(&cx.shape(0)?, moves_a), arranged(&cx.shape(1)?, moves_b));
        let y_shape = cx.output_shape(0)?;
        let dy = cx.dy()?;
        let dy = cx.scaled(&dy, f64::from(node.float("alpha", 1.0)));
        // Vectors are matrices of one row or column.
        let as_matrix = |shape: &[i64], is_left: bool| match shape {
            [one] if is_left => vec![1, *one],
            [one] => vec![*one, 1],
            more => more.to_vec(),
        };
        let (a2, b2) = (as_matrix(&a_shape, true), as_matrix(&b_shape, false));
        let mut y2 = y_shape.clone();
        if a_shape.len() == 1 {
            y2.insert(y_shape.len().saturating_sub(usize::from(b_shape.len() > 1)), 1);
        }
        if b_shape.len() == 1 {
            y2.push(1);
        }
        let reshaped = |cx: &mut GradientCx<'_>, value: String, from: &[i64], to: &[i64]| {
            if from == to { value } else { cx.reshape(&value, to) }
        };
        let dy = reshaped(cx, dy, &y_shape, &y2);
        let arrange = |rank: usize, moves: bool| arranged(&(0..rank).collect::<Vec<usize>>(), moves);
        let (to_a, to_b) = (arrange(a_shape.len(), moves_a), arrange(b_shape.len(), moves_b));
        let (a, b) = (cx.input(0), cx.input(1));
        let (a, b) = (cx.transpose(&a, &to_a), cx.transpose(&b, &to_b));
        let a = reshaped(cx, a, &a_shape, &a2);
        let b = reshaped(cx, b, &b_shape, &b2);
        let leading = &y2[..y2.len() - 2];
        if cx.wants(0) {
            // A' = A or its transpose: dA' = dY B'^T.
            let b_t = if trans_b { b.clone() } else { cx.matrix_transpose(&b, b2.len()) };
            let mut da = cx.op("MatMul", &[&dy, &b_t]);
            if trans_a {
                da = cx.matrix_transpose(&da, y2.len().max(b2.len()));
            }
            let from = [leading, &a2[a2.len() - 2..]].concat();
            let da = cx.sum_to(&da, &from, &a2);
            let da = reshaped(cx, da, &a2, &a_shape);
            let da = cx.transpose(&da, &inverse(&to_a));
            cx.give(0, da);
        }
        if cx.wants(1) {
            let [.., m, k] = a2[..] else { return Err(RuleError::UnknownShape) };
            let n = y2[y2.len() - 1];
            let db = if b2.len() == 2 && a2.len() > 2 && !trans_a {
                // All rows of all matrices at once.
                let rows: i64 = leading.iter().product::<i64>() * m;
                let (a, dy) = (cx.reshape(&a, &[rows, k]), cx.reshape(&dy, &[rows, n]));
                if trans_b { cx.gemm(&dy, &a, true, false) } else { cx.gemm(&a, &dy, true, false) }
            } else {
                let a_t = if trans_a { a } else { cx.matrix_transpose(&a, a2.len()) };
                let mut db = cx.op("MatMul", &[&a_t, &dy]);
                if trans_b {
                    db = cx.matrix_transpose(&db, y2.len().max(a2.len()));
                }
                let from = [leading, &b2[b2.len() - 2..]].concat();
                cx.sum_to(&db, &from, &b2)
            };
            let db = reshaped(cx, db, &b2, &b_shape);
            let db = cx.transpose(&db, &inverse(&to_b));
            cx.give(1, db);
        }
        Ok(())
    }
}
