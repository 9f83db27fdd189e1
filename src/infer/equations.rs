//! Conclusions about symbolic sizes of the network's inputs from the constraints of nodes.
//!
//! A convolution runs only with the number of channels of its weight. A symbolic size that meets it, even after shape
//! arithmetic, is therefore that number ([`fixed`]). Symbols that meet each other, such as the rows of a time embedding
//! and the batch to which it is added, get the same size ([`ties`]).

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::Graph;
use crate::graph::dim::Dim;
use crate::graph::facts::{Equation, Facts, Fixed, Relation, Tie};
use crate::graph::sizes::{default_size, has_telling_name};

/// Returns the sizes in the shape of an input of the network.
fn shape(facts: &Facts, input: usize) -> &[Dim] {
    facts.values[input].as_ref().and_then(|fact| fact.shape.as_deref()).unwrap_or_default()
}

/// Returns the symbolic sizes of the network's inputs, the most informative first: those of the inputs with the most
/// axes, which are the samples, then in the order of inputs and axes.
fn symbols(facts: &Facts, graph: &Graph) -> Vec<String> {
    let mut inputs = graph.inputs.clone();
    inputs.sort_by_key(|input| std::cmp::Reverse(shape(facts, *input).len()));
    let mut names = Vec::new();
    for name in inputs.iter().flat_map(|input| shape(facts, *input)).filter_map(Dim::as_symbol) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Returns the numbers that symbolic sizes of the inputs must be. For [`Relation::Broadcast`], the numbers are only
/// likely.
pub(super) fn fixed(facts: &Facts, graph: &Graph, relation: Relation) -> BTreeMap<String, Fixed> {
    let mut found = BTreeMap::new();
    let names = symbols(facts, graph);
    if names.is_empty() {
        return found;
    }
    for equation in facts.equations.iter().filter(|equation| equation.relation == relation) {
        for (name, size) in equation.a.solutions(&equation.b) {
            let size = size.as_const().filter(|size| *size > 0);
            if let Some(size) = size.filter(|_| names.iter().any(|own| **own == *name)) {
                let node = &graph.nodes[equation.node];
                let node = format!("{} {:?}", node.op(), node.name);
                found.entry(name.to_string()).or_insert(Fixed { size, node });
            }
        }
    }
    found
}

/// Ties under construction.
struct Ties {
    /// The symbols of the inputs, see [`symbols`].
    names: Vec<String>,
    of: BTreeMap<String, Dim>,
    order: Vec<String>,
}

impl Ties {
    fn rank(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|own| own == name)
    }

    /// Follows a chain of ties to the symbol or expression at its end.
    fn resolve(&self, size: &Dim) -> Dim {
        let mut size = size.clone();
        while let Some(next) = size.as_symbol().and_then(|name| self.of.get(&name)) {
            size = next.clone();
        }
        size
    }

    /// Returns whether the value of `size` depends on `name`.
    fn depends(&self, size: &Dim, name: &str) -> bool {
        let (mut open, mut seen) = (BTreeSet::new(), BTreeSet::new());
        size.symbols(&mut open);
        while let Some(symbol) = open.pop_first() {
            if symbol == name {
                return true;
            }
            if let Some(next) = self.of.get(&symbol).filter(|_| seen.insert(symbol)) {
                next.symbols(&mut open);
            }
        }
        false
    }

    /// Ties a symbol to a size, unless it is tied already or the size depends on it.
    fn tie(&mut self, name: &str, size: &Dim) -> bool {
        let size = self.resolve(size);
        let mut symbols = BTreeSet::new();
        size.symbols(&mut symbols);
        let can_be = self.rank(name).is_some()
            && !self.of.contains_key(name)
            && symbols.iter().all(|symbol| self.rank(symbol).is_some())
            && !self.depends(&size, name);
        if can_be {
            self.of.insert(name.to_owned(), size);
            self.order.push(name.to_owned());
        }
        can_be
    }

    fn meet(&mut self, equation: &Equation) {
        let (a, b) = (self.resolve(&equation.a), self.resolve(&equation.b));
        let mut solutions = a.solutions(&b);
        // The less informative symbol follows the other.
        solutions.sort_by_key(|(name, _)| std::cmp::Reverse(self.rank(name)));
        for (name, size) in solutions {
            if self.tie(&name, &size) {
                break;
            }
        }
    }
}

/// Returns the minimum sizes that slices require of symbols whose default size is smaller.
fn least(facts: &Facts, ties: &Ties) -> BTreeMap<String, i64> {
    let mut found = BTreeMap::new();
    for equation in facts.equations.iter().filter(|equation| equation.relation == Relation::Reaches) {
        for (name, size) in ties.resolve(&equation.a).solutions(&equation.b) {
            if let Some(size) = size.as_const().filter(|size| *size > default_size(&name)) {
                let most = found.entry(name.to_string()).or_insert(size);
                *most = size.max(*most);
            }
        }
    }
    found
}

/// Returns the symbolic sizes of the inputs that follow from others.
pub(super) fn ties(facts: &Facts, graph: &Graph) -> Vec<Tie> {
    let names = symbols(facts, graph);
    let mut ties = Ties { names, of: BTreeMap::new(), order: Vec::new() };
    if ties.names.is_empty() {
        return Vec::new();
    }
    for relation in [Relation::Equal, Relation::Broadcast] {
        for equation in facts.equations.iter().filter(|equation| equation.relation == relation) {
            ties.meet(equation);
        }
    }
    for (name, size) in least(facts, &ties) {
        ties.tie(&name, &Dim::from(size));
    }
    // An input with one number per sample, such as a timestep, has as many elements as there are samples, unless its
    // size is determined otherwise.
    let batch = graph.inputs.iter().max_by_key(|input| (shape(facts, **input).len(), std::cmp::Reverse(**input)));
    let batch = batch.map(|input| shape(facts, *input)).filter(|shape| shape.len() > 1).and_then(<[Dim]>::first);
    for input in &graph.inputs {
        let [size] = shape(facts, *input) else { continue };
        let name = ties.resolve(size).as_symbol();
        let is_elsewhere = |name: &str| {
            let others = graph.inputs.iter().map(|input| shape(facts, *input)).filter(|shape| shape.len() > 1);
            others.flatten().any(|dim| dim.as_symbol().as_deref() == Some(name))
        };
        if let (Some(name), Some(batch)) = (name, batch)
            && !is_elsewhere(&name)
            && !has_telling_name(&name)
        {
            ties.tie(&name, batch);
        }
    }
    // Sorts the ties, because a tie may depend on one that was found later.
    let mut ordered: Vec<Tie> = Vec::new();
    let mut open = std::mem::take(&mut ties.order);
    while !open.is_empty() {
        let is_ready = |name: &String| {
            let mut symbols = BTreeSet::new();
            ties.of[name].symbols(&mut symbols);
            symbols.iter().all(|symbol| !open.contains(symbol))
        };
        let (ready, waiting): (Vec<String>, Vec<String>) = open.iter().cloned().partition(|name| is_ready(name));
        if ready.is_empty() {
            break;
        }
        ordered.extend(ready.into_iter().map(|symbol| Tie { size: ties.of[&symbol].clone(), symbol }));
        open = waiting;
    }
    ordered
}
