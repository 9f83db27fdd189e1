//! # Einsum
//! Products and sums over named axes, `bhid,bhjd->bhij`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Einsum.html>. Opsets 12 and later.
//!
//! Coupling: axes with the same letter are the same axis. The axes of an ellipsis are treated as letters, counted from
//! the right.

use std::collections::BTreeMap;

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::onnx::attr_string;
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::{
    CoupleCx, Folding, GradientCx, InferCx, Linear, LinearCx, MacsCx, OpType, Operator, ReferenceCx, Registration,
    RuleError, onnx,
};

fn types_einsum() -> &'static [OpType] {
    const { &[onnx("Einsum")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_einsum, |node| Ok(Box::new(Einsum::parse(node)?))).summing_products()];

/// The character that stands for `...`, so that a term has one character per axis that it names.
const ELLIPSIS: char = '*';

#[derive(Debug)]
struct Einsum {
    /// The term of every operand.
    operands: Vec<Vec<char>>,
    /// The term of the result, if the equation has one.
    result: Option<Vec<char>>,
    /// The number of inputs.
    inputs: usize,
}

impl Einsum {
    fn parse(node: &Node) -> Result<Self, RuleError> {
        let text = node.proto.string("equation").ok_or_else(|| RuleError::invalid("it has no attribute equation"))?;
        let text: String = text.chars().filter(|letter| !letter.is_whitespace()).collect();
        let text = text.replace("...", &ELLIPSIS.to_string());
        let (left, right) = match text.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (text.as_str(), None),
        };
        let operands = left.split(',').map(|term| term.chars().collect()).collect();
        Ok(Self { operands, result: right.map(|right| right.chars().collect()), inputs: node.inputs.len() })
    }

    /// Returns the letters of the operands, which have these ranks, and of the result. The axes of an ellipsis get
    /// letters that the equation does not use, from the right.
    fn letters(&self, ranks: &[usize]) -> Result<(Vec<Vec<char>>, Vec<char>), RuleError> {
        if self.operands.len() != ranks.len() {
            let text =
                format!("the equation has {} operands, but the node has {} inputs", self.operands.len(), ranks.len());
            return Err(RuleError::invalid(text));
        }
        // The number of axes that the ellipsis of every operand stands for.
        let lengths = self.operands.iter().zip(ranks).map(|(operand, rank)| {
            let named = operand.iter().filter(|letter| **letter != ELLIPSIS).count();
            if operand.contains(&ELLIPSIS) { rank.saturating_sub(named) } else { 0 }
        });
        let lengths: Vec<usize> = lengths.collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let is_used = |letter: &char| self.operands.iter().chain(&self.result).any(|term| term.contains(letter));
        let unused: Vec<char> = ('a'..='z').chain('A'..='Z').filter(|letter| !is_used(letter)).take(longest).collect();
        if unused.len() < longest {
            return Err(RuleError::unsupported("the operands have more axes than there are letters"));
        }
        let expanded = |term: &[char], length: usize| -> Vec<char> {
            let of = |letter: &char| match *letter {
                ELLIPSIS => unused[longest - length..].to_vec(),
                letter => vec![letter],
            };
            term.iter().flat_map(of).collect()
        };
        let operands: Vec<Vec<char>> =
            self.operands.iter().zip(&lengths).map(|(operand, length)| expanded(operand, *length)).collect();
        for operand in &operands {
            let mut letters = operand.clone();
            letters.sort_unstable();
            letters.dedup();
            if letters.len() != operand.len() {
                return Err(RuleError::unsupported("a letter occurs twice in one operand"));
            }
        }
        let result = match &self.result {
            Some(result) => expanded(result, longest),
            None => {
                // The ellipsis, then the letters that occur once, in alphabetical order.
                let mut counts: BTreeMap<char, usize> = BTreeMap::new();
                operands.iter().flatten().for_each(|letter| *counts.entry(*letter).or_default() += 1);
                let once = counts.into_iter().filter(|(letter, count)| *count == 1 && !unused.contains(letter));
                unused.iter().copied().chain(once.map(|(letter, _)| letter)).collect()
            }
        };
        Ok((operands, result))
    }
}

/// Joins the entries of every letter over all operands.
fn by_letter<T: Clone>(
    operands: &[Vec<char>],
    entries: &[Vec<T>],
    mut join: impl FnMut(&T, &T) -> T,
) -> Result<BTreeMap<char, T>, RuleError> {
    let mut letters: BTreeMap<char, T> = BTreeMap::new();
    for (operand, entries) in operands.iter().zip(entries) {
        if operand.len() != entries.len() {
            let text = format!("the equation has {} axes for a value of rank {}", operand.len(), entries.len());
            return Err(RuleError::invalid(text));
        }
        for (letter, entry) in operand.iter().zip(entries) {
            let joined = letters.get(letter).map_or_else(|| entry.clone(), |known| join(known, entry));
            letters.insert(*letter, joined);
        }
    }
    Ok(letters)
}

fn ranks<T>(entries: &[Vec<T>]) -> Vec<usize> {
    entries.iter().map(Vec::len).collect()
}

fn pick<T: Clone>(letters: &BTreeMap<char, T>, result: &[char]) -> Result<Vec<T>, RuleError> {
    let missing = |letter: &char| RuleError::invalid(format!("the result has axis {letter:?}, which no operand has"));
    result.iter().map(|letter| letters.get(letter).cloned().ok_or_else(|| missing(letter))).collect()
}

impl Operator for Einsum {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shapes = (0..cx.input_count()).map(|slot| cx.shape(slot)).collect::<Result<Vec<_>, _>>()?;
        let (operands, result) = self.letters(&ranks(&shapes))?;
        let better = |a: &Dim, b: &Dim| {
            if a.is(1) || (a.as_const().is_none() && b.as_const().is_some() && !b.is(1)) {
                b.clone()
            } else {
                a.clone()
            }
        };
        let letters = by_letter(&operands, &shapes, better)?;
        for (operand, shape) in operands.iter().zip(&shapes) {
            for (letter, size) in operand.iter().zip(shape) {
                if let Some(whole) = letters.get(letter) {
                    cx.meet(size, whole);
                }
            }
        }
        let dtype = cx.input(0)?.dtype;
        cx.set(0, Fact::new(dtype, pick(&letters, &result)?));
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layouts =
            (0..self.inputs).map(|slot| cx.separated(slot).map(|layout| layout.axes)).collect::<Result<Vec<_>, _>>()?;
        let (operands, result) = self.letters(&ranks(&layouts))?;
        let weights: Vec<bool> = (0..self.inputs).map(|slot| cx.is_weight(slot)).collect();
        let letters = by_letter(&operands, &layouts, |a: &Axis, b: &Axis| {
            if a.is_empty() {
                b.clone()
            } else if b.is_empty() {
                a.clone()
            } else {
                cx.tie(a, b)
            }
        })?;
        if weights.iter().any(|is_weight| !is_weight) {
            for ((operand, axes), _) in operands.iter().zip(&layouts).zip(&weights).filter(|(_, is_weight)| **is_weight)
            {
                for (letter, axis) in operand.iter().zip(axes) {
                    if result.contains(letter) { cx.produces(axis) } else { cx.consumes(axis) }
                }
            }
        }
        cx.set(0, Layout { axes: pick(&letters, &result)? });
        Ok(())
    }

    fn macs(&self, cx: &MacsCx<'_>) -> f64 {
        let shapes: Option<Vec<Vec<i64>>> = (0..self.inputs).map(|slot| cx.input(slot).map(<[i64]>::to_vec)).collect();
        let Some(shapes) = shapes.filter(|shapes| shapes.len() > 1) else {
            return 0.0;
        };
        let Ok((operands, _)) = self.letters(&ranks(&shapes)) else {
            return 0.0;
        };
        by_letter(&operands, &shapes, |a, b| *a.max(b))
            .map_or(0.0, |letters| letters.values().map(|s| *s as f64).product())
    }

    fn linear(&self, cx: &LinearCx<'_>) -> Option<Linear> {
        if self.inputs != 2 {
            return None;
        }
        let slots = cx.weight_of(0, 1)?;
        let shapes = [cx.shape(0)?, cx.shape(1)?];
        let (operands, result) = self.letters(&ranks(&shapes)).ok()?;
        let (x, w) = slots;
        Linear::of_letters(slots, [&operands[x], &operands[w], &result], [&shapes[x], &shapes[w], &cx.output_shape()?])
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let ranks = (0..self.inputs).map(|slot| cx.rank(slot)).collect::<Result<Vec<_>, _>>()?;
        let (operands, result) = self.letters(&ranks)?;
        let mut replaced = Vec::new();
        for slot in 0..operands.len() {
            if !cx.is_planned(slot) {
                replaced.push((slot, cx.zeroed(slot)));
            }
        }
        cx.emit(&replaced);
        let mut out: Option<String> = None;
        for (slot, operand) in operands.iter().enumerate() {
            if cx.mask(slot).is_none() {
                continue;
            }
            // The mask of the operand, summed over the letters that the result lacks, in the order of the result.
            let mask = cx.full_mask(slot);
            let left: String = operand.iter().collect();
            let kept: String = result.iter().filter(|letter| operand.contains(letter)).collect();
            let ones: Vec<i64> =
                (0..result.len() as i64).filter(|at| !operand.contains(&result[*at as usize])).collect();
            let mut mask = cx.add("Einsum", &[&mask], vec![attr_string("equation", &format!("{left}->{kept}"))]);
            for axis in ones {
                mask = cx.unsqueeze(&mask, axis);
            }
            out = Some(match out {
                None => mask,
                Some(other) => cx.add("Mul", &[&other, &mask], vec![]),
            });
        }
        if let Some(sum) = out {
            // The sums count kept elements; the mask is one where there are any.
            let one = cx.floats(&[1.0], &[]);
            let mask = cx.add("Min", &[&sum, &one], vec![]);
            cx.set_mask(0, mask);
        }
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let shapes = (0..self.inputs).map(|slot| cx.shape(slot)).collect::<Result<Vec<_>, _>>()?;
        let (operands, result) = self.letters(&ranks(&shapes))?;
        let sizes = by_letter(&operands, &shapes, |a, b| *a.max(b))?;
        let dy = cx.dy()?;
        for slot in 0..operands.len() {
            if !cx.wants(slot) {
                continue;
            }
            let mut inputs = vec![dy.clone()];
            let mut terms = vec![result.clone()];
            for other in (0..operands.len()).filter(|other| *other != slot) {
                inputs.push(cx.input(other));
                terms.push(operands[other].clone());
            }
            let is_known = |letter: &char| terms.iter().any(|term| term.contains(letter));
            // A letter of this operand alone was summed over: its gradient is constant along it.
            let found: Vec<char> = operands[slot].iter().copied().filter(is_known).collect();
            let terms: Vec<String> = terms.iter().map(|term| term.iter().collect()).collect();
            let text = format!("{}->{}", terms.join(","), found.iter().collect::<String>());
            let names: Vec<&str> = inputs.iter().map(String::as_str).collect();
            let mut dx = cx.op_with("Einsum", &names, vec![attr_string("equation", &text)]);
            // An axis of size one is broadcast.
            let of = |letter: &char, size: i64| if found.contains(letter) { sizes[letter] } else { size };
            let full: Vec<i64> = operands[slot].iter().zip(&shapes[slot]).map(|(l, size)| of(l, *size)).collect();
            if found.len() < full.len() {
                let kept: Vec<i64> = operands[slot].iter().map(|letter| of(letter, 1)).collect();
                dx = cx.reshape(&dx, &kept);
                dx = cx.expand(&dx, &full);
            }
            dx = cx.sum_to(&dx, &full, &shapes[slot]);
            cx.add_gradient(slot, dx);
        }
        Ok(())
    }
}
