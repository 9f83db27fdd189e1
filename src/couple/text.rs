//! The coupling of one node as text, in the style of einsum and einops.
//!
//! The text lists the node's inputs, `->` and its outputs, each as its axes in square brackets. A convolution with bias
//! is `[. a . .], [b a . .], [b] -> [. b . .]`. The text shows the rule of this node: which axes are the same, how they
//! are divided, and what is kept. It does not show what other nodes state about the same axes.
//!
//! | Text | Meaning |
//! | --- | --- |
//! | `a` | An axis that may shrink. Axes with the same letter lose the same indices. Different letters are independent. |
//! | `.`, `1` | An axis that never shrinks; one of size one. Within a product or sum, a static size replaces the dot. |
//! | `a!` | The node keeps every index of the axis. `a![0:2]`: it keeps these. |
//! | `a*` | Copies of one value: they follow the axis that they meet. |
//! | `(a b)` | A product, outermost first. Either factor may shrink, and loses the same indices wherever it occurs. |
//! | `(a\|b)`, `a\|b` | A product that is not separated yet; its parts may be on adjacent axes. See below. |
//! | `a+b` | A sum, the result of a Concat: the indices of `a`, then those of `b`. |
//! | `a[0:4]`, `a[8:0:-2]`, `a[5,3]` | Some indices of `a`, as Python slices and lists; `…` if there are many runs. |
//! | `a=(b c)`, `(a b)=(c d)` | One axis in several forms. |
//! | `a4` | `a` has 4 indices. The size follows the first occurrence of a letter, unless it is a whole axis there. |
//! | `-`, `?`, `[]` | An omitted input or output; a value of unknown rank; a scalar. |
//! | `{barrier: why}` | No rule covers the node: all channels of its inputs are kept. |
//!
//! In `(a b)`, index `i` of `a` and `j` of `b` is index `i * size of b + j` of the axis. In `(a|b)`, different indices
//! of `b` may be removed for every index of `a`, but the same number for each, or whole indices of `a`.
//!
//! Letters run from `a` to `z`, then `aa` and so on, in the order in which they occur in the text of one node. The same
//! letter in the texts of two nodes has no common meaning.

mod notation;

use std::collections::BTreeSet;

use super::{apply_rule, is_constant_node};
use crate::fold::Fold;
use crate::graph::facts::Facts;
use crate::graph::{Graph, Node, ValueId};
use crate::operator::Operators;
use crate::operator::couple::layout::{Axis, Layout, Piece};
use crate::operator::couple::space::Spaces;
use crate::operator::couple::{CoupleCx, Coupling};
use notation::{Operand, write};

/// The input for the texts of a network's nodes.
pub struct Texts<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// Its operators.
    pub operators: &'a Operators,
    /// The facts of its values.
    pub facts: &'a Facts,
    /// The values that are computed ahead of time.
    pub fold: &'a Fold,
    /// Returns whether a value counts as a constant.
    pub is_constant: &'a dyn Fn(ValueId) -> bool,
    /// The coupling, which maps the axes of the values to spaces.
    pub coupling: &'a Coupling,
}

impl Texts<'_> {
    /// Returns the text of every node. `None`: no rule is applied because the node is computed ahead of time.
    pub fn all(&self) -> Vec<Option<String>> {
        // One scratch coupling for all nodes: each node leaves the layouts empty again.
        let mut scratch = Coupling {
            spaces: Spaces::default(),
            layouts: vec![None; self.graph.values.len()],
            uses: Vec::new(),
            origins: self.coupling.origins.clone(),
            grids: self.coupling.grids.clone(),
            barriers: Vec::new(),
        };
        let text = |node: &Node| (!is_constant_node(node, self.fold)).then(|| self.text(node, &mut scratch));
        self.graph.nodes.iter().map(text).collect()
    }

    /// Applies the node's rule to its inputs alone. Their axes are free here, and not united.
    fn text(&self, node: &Node, scratch: &mut Coupling) -> String {
        let read: Vec<ValueId> =
            node.inputs.iter().flatten().copied().filter(|value| !(self.is_constant)(*value)).collect();
        let layouts = || read.iter().filter_map(|value| self.coupling.layouts[*value].as_ref());
        let pieces = layouts().flat_map(|layout| layout.axes.iter().flatten());
        let wanted: BTreeSet<_> = pieces.filter_map(Piece::space).collect();
        let (spaces, renamed) = self.coupling.spaces.excerpt(&wanted);
        let rename = |piece: &Piece| match piece {
            Piece::Part { space, inner, extent } => {
                Piece::Part { space: renamed[space], inner: *inner, extent: *extent }
            }
            Piece::Fixed(size) => Piece::Fixed(size.clone()),
        };
        let local = |layout: &Layout| Layout {
            axes: layout.axes.iter().map(|axis| axis.iter().map(rename).collect()).collect(),
        };
        scratch.spaces = spaces;
        scratch.uses.clear();
        scratch.barriers.clear();
        for value in &read {
            scratch.layouts[*value] = self.coupling.layouts[*value].as_ref().map(local);
        }
        let (graph, facts, is_constant) = (self.graph, self.facts, self.is_constant);
        apply_rule(
            CoupleCx { node, graph, facts, is_constant, coupling: scratch, asked: BTreeSet::new() },
            self.operators,
        );
        let inputs = (0..node.inputs.len()).map(|slot| self.input(node, slot, scratch)).collect();
        let layout = |value: ValueId| scratch.layouts[value].clone();
        let outputs = node.outputs.iter().map(|value| Operand::of(value.map(layout))).collect();
        let mut text = write(std::mem::take(&mut scratch.spaces), inputs, outputs);
        if let Some(barrier) = scratch.barriers.first() {
            text += &format!(" {{barrier: {}}}", barrier.cause);
        }
        for value in node.inputs.iter().chain(&node.outputs).flatten() {
            scratch.layouts[*value] = None;
        }
        text
    }

    /// Returns the axes of an input after the rule was applied. A constant that the rule does not use never shrinks.
    fn input(&self, node: &Node, slot: usize, coupling: &Coupling) -> Operand {
        let Some(value) = node.input(slot) else { return Operand::Omitted };
        if !(self.is_constant)(value) {
            return Operand::of(Some(coupling.layouts[value].clone()));
        }
        let used = coupling.uses.iter().find(|weight| weight.node == node.id && weight.slot == slot);
        let layout = match used {
            Some(weight) => {
                let axis = |space: &Option<_>| space.map_or_else(Axis::new, |space| coupling.spaces.whole(space));
                Some(Layout { axes: weight.axes.iter().map(axis).collect() })
            }
            None => {
                let shape = self.facts.values[value].as_ref().and_then(|fact| fact.shape.as_ref());
                shape.map(|shape| Layout::fixed(shape))
            }
        };
        Operand::of(Some(layout))
    }
}
