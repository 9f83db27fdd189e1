//! # MatMul
//! `Y[..., m, n] = sum over k of A[..., m, k] * B[..., k, n]`, as numpy.matmul. FusedMatMulActivation applies an
//! activation to the product, GemmFastGelu adds a bias and applies FastGelu.
//! Spec: <https://onnx.ai/onnx/operators/onnx__MatMul.html>. All opsets; the others are ONNX Runtime's contrib operators,
//! domain com.microsoft. FusedMatMulActivation and GemmFastGelu have no CPU kernel.
//!
//! Coupling: the last axis of A is the second to last of B; the others pass through, and leading ones are broadcast.
//! The bias of GemmFastGelu is the last axis of Y. A softmax over channels acts on the kept ones.

use crate::graph::Node;
use crate::graph::fact::Fact;
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::lower::Activation;
use crate::operator::{
    CoupleCx, Folding, GradientCx, InferCx, Linear, LinearCx, LowerCx, MacsCx, OpType, Operator, Quantized,
    ReferenceCx, Registration, RuleError, axis_index, microsoft, onnx,
};

fn types_matmul() -> &'static [OpType] {
    const {
        &[
            onnx("MatMul"),
            microsoft("FusedMatMul"),
            microsoft("TransposeMatMul"),
            microsoft("FusedMatMulActivation"),
            microsoft("GemmFastGelu"),
        ]
    }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_matmul, |node| Ok(Box::new(MatMul::parse(node)?))).summing_products()];

/// The input of a GemmFastGelu that is added to the product, a vector.
const BIAS: usize = 2;

#[derive(Debug)]
struct MatMul {
    a: Operand,
    b: Operand,
    /// The factor of the product in a fused form.
    alpha: f32,
    /// Whether it is one of ONNX Runtime's operators, which have attributes or a function after the product.
    is_fused: bool,
    function: Function,
}

/// The function that is applied to the product.
#[derive(Debug)]
enum Function {
    None,
    /// An elementwise activation.
    Activation(Activation),
    /// Softmax or LogSoftmax along one axis.
    Softmax {
        op_type: String,
        axis: i64,
    },
    /// The sum with the bias, if there is one, and GELU, approximated with a tanh.
    FastGelu,
}

impl Function {
    fn parse(node: &Node) -> Result<Self, RuleError> {
        match node.proto.op_type.as_str() {
            "GemmFastGelu" => return Ok(Self::FastGelu),
            "FusedMatMulActivation" => {}
            _ => return Ok(Self::None),
        }
        if let Some(op_type @ ("Softmax" | "LogSoftmax")) = node.proto.string("activation") {
            return Ok(Self::Softmax { op_type: op_type.to_owned(), axis: node.int("activation_axis", -1) });
        }
        let missing = || RuleError::invalid("the attribute activation is missing");
        let activation = Activation::with_attributes(node).ok_or_else(missing)?;
        activation.check()?;
        Ok(Self::Activation(activation))
    }
}

impl MatMul {
    fn parse(node: &Node) -> Result<Self, RuleError> {
        let is_set = |name: &str| node.int(name, 0) != 0;
        Ok(Self {
            a: Operand { is_transposed: is_set("transA"), moves_first: is_set("transBatchA") },
            b: Operand { is_transposed: is_set("transB"), moves_first: is_set("transBatchB") },
            alpha: node.float("alpha", 1.0),
            is_fused: node.proto.op_type != "MatMul",
            function: Function::parse(node)?,
        })
    }
}

/// How a fused form transposes A or B.
#[derive(Clone, Copy, Debug)]
struct Operand {
    /// Whether its last two axes are swapped.
    is_transposed: bool,
    /// Whether its first axis moves behind the other leading ones before that.
    moves_first: bool,
}

impl Operand {
    /// Arranges `[first, leading..., last]` as `[leading..., first, last]`, if the first axis moves.
    fn arranged<T: Clone>(self, sizes: &[T]) -> Vec<T> {
        let mut sizes = sizes.to_vec();
        if self.moves_first && sizes.len() > 2 {
            let last = sizes.len() - 1;
            sizes[..last].rotate_left(1);
        }
        sizes
    }

    /// Returns input `slot` as the product uses it.
    fn matrix(self, cx: &mut LowerCx<'_>, slot: usize) -> Result<String, RuleError> {
        let (value, rank) = (cx.float(slot), cx.rank(slot)?);
        let own: Vec<i64> = (0..rank as i64).collect();
        let mut perm = self.arranged(&own);
        if self.is_transposed && rank > 1 {
            perm.swap(rank - 1, rank - 2);
        }
        Ok(if perm == own { value } else { cx.transposed(&value, &perm) })
    }

    /// Splits an arranged shape into (leading sizes, rows, columns); a vector gets `None` for the row or column that
    /// it lacks.
    fn split<T: Clone>(self, sizes: &[T], is_left: bool) -> Option<(Vec<T>, Option<T>, Option<T>)> {
        match sizes {
            [] => None,
            [one] if is_left => Some((vec![], None, Some(one.clone()))),
            [one] => Some((vec![], Some(one.clone()), None)),
            [leading @ .., rows, columns] => {
                let (rows, columns) = if self.is_transposed { (columns, rows) } else { (rows, columns) };
                Some((leading.to_vec(), Some(rows.clone()), Some(columns.clone())))
            }
        }
    }
}

impl Operator for MatMul {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let scalar = || RuleError::invalid("A and B must have rank 1 or more, found a scalar");
        let (a, b) = (self.a.arranged(&cx.shape(0)?), self.b.arranged(&cx.shape(1)?));
        let (a_leading, rows, k) = self.a.split(&a, true).ok_or_else(scalar)?;
        let (b_leading, l, columns) = self.b.split(&b, false).ok_or_else(scalar)?;
        if let (Some(k), Some(l)) = (&k, &l)
            && !cx.equal(k, l)
        {
            return Err(RuleError::invalid(format!("A has {k} columns, but B has {l} rows")));
        }
        let mut shape = cx.broadcast(&[a_leading, b_leading])?;
        shape.extend(rows);
        shape.extend(columns);
        if let Function::Softmax { axis, .. } = &self.function {
            axis_index(*axis, shape.len())?;
        }
        cx.expect_vector(BIAS, shape.last())?;
        let dtype = cx.input(0)?.dtype;
        cx.set(0, Fact::new(dtype, shape));
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let scalar = || RuleError::invalid("A and B must have rank 1 or more, found a scalar");
        let a: Vec<Axis> = self.a.arranged(&cx.separated(0)?.axes);
        let b: Vec<Axis> = self.b.arranged(&cx.separated(1)?.axes);
        let (a_leading, rows, k) = self.a.split(&a, true).ok_or_else(scalar)?;
        let (b_leading, l, columns) = self.b.split(&b, false).ok_or_else(scalar)?;
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
        if cx.has(BIAS) {
            let bias = cx.separated(BIAS)?;
            layout = cx.tie_broadcast(&[layout, bias]);
        }
        if matches!(self.function, Function::Softmax { .. }) {
            layout = cx.separate(&layout);
        }
        cx.set(0, layout);
        Ok(())
    }

    fn macs(&self, cx: &MacsCx<'_>) -> f64 {
        let a = cx.input(0).map(|a| self.a.arranged(a));
        let k =
            a.as_deref().and_then(|a| if self.a.is_transposed && a.len() > 1 { a.get(a.len() - 2) } else { a.last() });
        let bias = if cx.input(BIAS).is_some() { 1.0 } else { 0.0 };
        cx.output_elements(0) * (k.map_or(0.0, |k| *k as f64) + bias)
    }

    fn lacks_cpu_kernel(&self) -> bool {
        !matches!(self.function, Function::None)
    }

    fn lower(&self, cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        if !self.is_fused {
            return Ok(false);
        }
        let (a, b) = (self.a.matrix(cx, 0)?, self.b.matrix(cx, 1)?);
        let mut y = cx.add("MatMul", &[&a, &b], vec![]);
        if self.alpha != 1.0 {
            y = cx.scaled(&y, f64::from(self.alpha));
        }
        if cx.has(BIAS) {
            let bias = cx.float(BIAS);
            y = cx.add("Add", &[&y, &bias], vec![]);
        }
        y = match &self.function {
            Function::None => y,
            Function::Activation(activation) => cx.activated(&y, Some(activation))?,
            Function::Softmax { op_type, axis } => {
                let (a, b) = (cx.rank(0)?, cx.rank(1)?);
                let rank = a.max(b).saturating_sub(2) + usize::from(a > 1) + usize::from(b > 1);
                cx.softmax(op_type, &y, axis_index(*axis, rank)?, rank)
            }
            Function::FastGelu => cx.gelu_by_tanh(&y),
        };
        cx.emit(0, &y);
        Ok(true)
    }

    fn quantized(&self, weight_rank: usize) -> Option<Quantized> {
        let is_plain = !self.is_fused && weight_rank == 2;
        // There is no bias: this slot does not exist for the operator.
        is_plain.then_some(Quantized { data: 0, weight: 1, channels: 1, bias: 2 })
    }

    fn linear(&self, cx: &LinearCx<'_>) -> Option<Linear> {
        if self.is_fused {
            return None;
        }
        let slots = cx.weight_of(0, 1)?;
        let (a, b, y) = (cx.shape(0)?, cx.shape(1)?, cx.output_shape()?);
        // Leading axes are numbered from the right, as they are broadcast; m, k and n are rows, columns and outputs of
        // a product.
        let leading = |rank: usize| (0..rank.saturating_sub(2)).rev().filter_map(|at| char::from_digit(at as u32, 36));
        let ends = |rank: usize, pair: [char; 2], vector: char| if rank == 1 { vec![vector] } else { pair.to_vec() };
        let a_letters: Vec<char> = leading(a.len()).chain(ends(a.len(), ['M', 'K'], 'K')).collect();
        let b_letters: Vec<char> = leading(b.len()).chain(ends(b.len(), ['K', 'N'], 'K')).collect();
        let mut y_letters: Vec<char> = leading(a.len().max(b.len())).collect();
        y_letters.extend((a.len() > 1).then_some('M'));
        y_letters.extend((b.len() > 1).then_some('N'));
        let (x, w) =
            if slots.0 == 0 { ((&a_letters, &a), (&b_letters, &b)) } else { ((&b_letters, &b), (&a_letters, &a)) };
        Linear::of_letters(slots, [x.0, w.0, &y_letters], [x.1, w.1, &y])
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if self.is_fused {
            return Err(RuleError::unsupported("the fused form must be lowered first"));
        }
        let replaced = [(0, cx.zeroed(0)), (1, cx.zeroed(1))];
        cx.emit(&replaced);
        let mut out: Option<String> = None;
        for (slot, is_left) in [(0, true), (1, false)] {
            let Some(mut mask) = cx.mask(slot) else {
                continue;
            };
            let rank = cx.rank(slot)? as i64;
            // The axis that is summed over; the other axis remains, the rows of A or the columns of B.
            let summed = if is_left || rank == 1 { rank - 1 } else { rank - 2 };
            if rank == 1 {
                // A vector is summed over completely, so its zeros mask nothing of the product.
                continue;
            }
            mask = cx.reduce("ReduceMax", &mask, &[summed]);
            if cx.rank(1 - slot)? == 1 {
                // The product with a vector lacks this axis.
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

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        if self.is_fused {
            return Err(RuleError::unsupported("the fused form must be lowered first"));
        }
        let (a_shape, b_shape, y_shape) = (cx.shape(0)?, cx.shape(1)?, cx.output_shape(0)?);
        let dy = cx.dy()?;
        // Vectors are matrices with one row or column.
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
        let (a, b) = (cx.input(0), cx.input(1));
        let a = reshaped(cx, a, &a_shape, &a2);
        let b = reshaped(cx, b, &b_shape, &b2);
        let leading = &y2[..y2.len() - 2];
        if cx.wants(0) {
            // dA = dY B^T.
            let b_t = cx.matrix_transpose(&b, b2.len());
            let da = cx.op("MatMul", &[&dy, &b_t]);
            let from = [leading, &a2[a2.len() - 2..]].concat();
            let da = cx.sum_to(&da, &from, &a2);
            let da = reshaped(cx, da, &a2, &a_shape);
            cx.add_gradient(0, da);
        }
        if cx.wants(1) {
            let [.., m, k] = a2[..] else { return Err(RuleError::UnknownShape) };
            let n = y2[y2.len() - 1];
            let db = if b2.len() == 2 && a2.len() > 2 {
                // All rows of all matrices at once.
                let rows: i64 = leading.iter().product::<i64>() * m;
                let (a, dy) = (cx.reshape(&a, &[rows, k]), cx.reshape(&dy, &[rows, n]));
                cx.gemm(&a, &dy, true, false)
            } else {
                let a_t = cx.matrix_transpose(&a, a2.len());
                let db = cx.op("MatMul", &[&a_t, &dy]);
                let from = [leading, &b2[b2.len() - 2..]].concat();
                cx.sum_to(&db, &from, &b2)
            };
            let db = reshaped(cx, db, &b2, &b_shape);
            cx.add_gradient(1, db);
        }
        Ok(())
    }
}
