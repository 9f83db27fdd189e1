//! Comparison of the pruned file with the original and the plan, without running either: what a cut must not change.
//!
//! Every node of the pruned file must equal the original's in operator, attributes, inputs and outputs. Every constant
//! that the plan names must contain the original's elements at the kept indices, every other constant all of them, bit for
//! bit. A cut may only write integers that name sizes: attributes, and inputs that an integer constant replaces. Whether
//! those are right is left to the runs ([`super::proof`]), which compare all outputs of such a node.

mod elements;

mod interface;

mod metadata;

mod nodes;

mod replaced;

mod unfused;

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::Serialize;

use crate::analysis::Analysis;
use crate::changed::ChangedWeights;
use crate::error::Error;
use crate::graph::fact::{Fact, Known, static_shape};
use crate::graph::model::Model;
use crate::graph::{Graph, Node, Reader, ValueId};
use crate::onnx::TensorProto;
use crate::operator::reference::KeptAxes;
use elements::difference;
use nodes::{Form, same_form};

/// The result of the comparison of two files.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UnchangedReport {
    /// Number of nodes of the pruned file that equal the original's.
    pub nodes: usize,
    /// Number of nodes whose attributes or inputs that name sizes were changed by the cut. The runs compare their outputs.
    pub edited: usize,
    /// Number of constants of the pruned file whose elements are all the original's, or its kept ones.
    pub constants: usize,
    /// Names of constants that could not be compared.
    pub not_compared: Vec<String>,
}

/// The origin of a constant of the pruned file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// A node of the original that reads it: its first output, and the input slot.
    pub(super) reader: (String, usize),
    /// The kept indices of the value that it reads.
    pub(super) axes: KeptAxes,
}

/// The results of the comparison that the runs need.
#[derive(Debug, Default)]
pub(super) struct Unchanged {
    /// Constants of the pruned file that contain elements of the original, by their names.
    pub(super) origins: HashMap<String, Origin>,
    /// First outputs of the nodes that differ from the original's in an attribute or an input.
    pub(super) edited: HashSet<String>,
    pub(super) report: UnchangedReport,
    /// What could not be computed for the comparison, and differences that no computation depends on.
    pub(super) notes: Vec<String>,
}

/// A difference between a pruned file and the original, in words.
#[derive(Debug)]
pub(super) struct Changed(pub(super) String);

/// The reason why the comparison ended.
enum Stop {
    Changed(String),
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Compares a pruned file with the original under a plan. Weights that `changed` names may have other elements.
///
/// # Errors
/// A tensor can't be read.
pub(super) fn compare(
    analysis: &Analysis,
    kept: &HashMap<Reader, KeptAxes>,
    pruned: &Model,
    changed: Option<&ChangedWeights>,
) -> Result<Result<Unchanged, Changed>, Error> {
    let graph = Graph::new(pruned)?;
    let constants = graph.values.iter().enumerate().filter_map(|(value, named)| {
        let tensor = graph.tensor(pruned, value)?;
        Some((named.name.as_str(), tensor))
    });
    let mut comparison = Comparison {
        analysis,
        kept,
        pruned,
        graph: &graph,
        constants: constants.collect(),
        exempt: changed.map(ChangedWeights::names).unwrap_or_default(),
        changed,
        new: HashSet::new(),
        found: Unchanged::default(),
        compared: HashSet::new(),
        not_compared: BTreeSet::new(),
    };
    match comparison.run() {
        Ok(()) => {
            comparison.found.report.edited = comparison.found.edited.len();
            comparison.found.report.constants = comparison.compared.len();
            comparison.found.report.not_compared = comparison.not_compared.into_iter().collect();
            let props = |model: &Model| model.proto().metadata_props.clone();
            comparison.found.notes.extend(metadata::difference(&props(&analysis.model), &props(pruned)));
            Ok(Ok(comparison.found))
        }
        Err(Stop::Changed(text)) => Ok(Err(Changed(text))),
        Err(Stop::Failed(error)) => Err(error),
    }
}

struct Comparison<'a> {
    analysis: &'a Analysis,
    kept: &'a HashMap<Reader, KeptAxes>,
    pruned: &'a Model,
    graph: &'a Graph,
    /// The constants of the pruned file by name.
    constants: HashMap<&'a str, &'a TensorProto>,
    /// Names of weights that may have other elements.
    exempt: HashSet<&'a str>,
    changed: Option<&'a ChangedWeights>,
    /// Outputs of nodes that the original lacks.
    new: HashSet<&'a str>,
    found: Unchanged,
    /// Constants that have been compared: the name in the pruned file, the value of the original, its kept indices.
    compared: HashSet<(String, ValueId, KeptAxes)>,
    not_compared: BTreeSet<String>,
}

impl<'a> Comparison<'a> {
    fn run(&mut self) -> Result<(), Stop> {
        self.interface()?;
        for node in &self.graph.nodes {
            let original = self.original_of(node);
            let Some(original) = original else {
                self.new_node(node)?;
                continue;
            };
            self.node(original, node)?;
            self.found.report.nodes += 1;
        }
        Ok(())
    }

    /// Returns the node of the original with the same first output as a node of the pruned file.
    fn original_of(&self, node: &Node) -> Option<&'a Node> {
        let graph = &self.analysis.graph;
        let (producer, _) = graph.values[graph.value(node.proto.first_output())?].producer?;
        Some(&graph.nodes[producer])
    }

    /// Checks a node that the original lacks: its outputs may only replace sizes.
    fn new_node(&mut self, node: &'a Node) -> Result<(), Stop> {
        self.new.extend(node.proto.output.iter().map(String::as_str).filter(|name| !name.is_empty()));
        let taken =
            node.proto.output.iter().find(|name| {
                !name.is_empty() && self.analysis.graph.value(name).is_some_and(|value| self.is_given(value))
            });
        match taken {
            Some(name) => {
                let text = format!("node {:?} outputs {name:?}, a name that the original uses elsewhere", node.name);
                Err(Stop::Changed(text))
            }
            None => Ok(()),
        }
    }

    /// Whether a value of the original has a source: a node, an initializer, or an input.
    fn is_given(&self, value: ValueId) -> bool {
        let value = &self.analysis.graph.values[value];
        value.producer.is_some() || value.initializer.is_some() || value.is_input
    }

    fn node(&mut self, original: &Node, node: &'a Node) -> Result<(), Stop> {
        let fail = |text: String| Stop::Changed(format!("node {:?} ({}): {text}", original.name, original.op()));
        if original.op() != node.op() && (self.replaced(original, node)? || self.unfused(original, node)?.is_some()) {
            self.found.edited.insert(node.proto.first_output().to_owned());
            return Ok(());
        }
        let pair = Form { model: &self.analysis.model, node: &original.proto };
        let found = Form { model: self.pruned, node: &node.proto };
        let mut is_edited = same_form(&pair, &found)?.map_err(fail)?;
        for slot in 0..original.inputs.len().max(node.inputs.len()) {
            is_edited |= self.input(original, node, slot)?;
        }
        for name in crate::onnx::order::captured(&original.proto) {
            if let Some(value) = self.analysis.graph.value(name)
                && self.constants.contains_key(name)
            {
                self.constant(name, value, &KeptAxes::new(), None)?;
            }
        }
        if is_edited {
            self.found.edited.insert(node.proto.first_output().to_owned());
        }
        Ok(())
    }

    /// Compares the inputs of two nodes at a slot. Returns whether the cut has put a size there.
    fn input(&mut self, original: &Node, node: &Node, slot: usize) -> Result<bool, Stop> {
        let (expected, found) = (input_of(original, slot), input_of(node, slot));
        let output = original.proto.first_output();
        let fail =
            |text: String| Stop::Changed(format!("node {:?} ({}): input {slot}: {text}", original.name, original.op()));
        let reader = Reader { node: original.id, slot };
        let value = original.input(slot);
        if found.is_empty() {
            if expected.is_empty() {
                return Ok(false);
            }
            return Err(fail(format!("expected {expected:?}, found none")));
        }
        let Some(value) = value else {
            let is_bias = |bias: &crate::changed::AddedBias| {
                bias.name == found && bias.node == output && bias.slot == slot && self.constants.contains_key(found)
            };
            if self.changed.is_some_and(|changed| changed.biases.iter().any(is_bias)) || self.is_size(found) {
                return Ok(true);
            }
            return Err(fail(format!("expected none, found {found:?}")));
        };
        let whole = KeptAxes::new();
        let axes = self.kept.get(&reader).unwrap_or(&whole);
        if self.constants.contains_key(found) {
            if self.exempt.contains(found) {
                self.origin(found, (output.to_owned(), slot), axes);
                return Ok(false);
            }
            let same_name = found == expected;
            match self.constant(found, value, axes, Some((output.to_owned(), slot))) {
                // A size that the cut has written under a new name.
                Err(Stop::Changed(_)) if !same_name && axes.is_empty() && self.takes_size(value, found) => {
                    return Ok(true);
                }
                Err(Stop::Changed(text)) => return Err(fail(text)),
                Err(failed) => return Err(failed),
                Ok(()) => return Ok(false),
            }
        }
        if !axes.is_empty() {
            return Err(fail(format!("the plan cuts {expected:?}, but {found:?} is not a constant")));
        }
        if found == expected {
            return Ok(false);
        }
        if self.new.contains(found) && self.takes_size(value, found) {
            return Ok(true);
        }
        Err(fail(format!("expected {expected:?}, found {found:?}")))
    }

    /// Whether a value of the original may be a size because it does not have a floating point type.
    fn takes_size(&self, value: ValueId, found: &str) -> bool {
        let fact = self.analysis.facts.values[value].as_ref();
        fact.is_none_or(|fact| !fact.is_float()) && self.is_size(found)
    }

    /// Whether a name of the pruned file is that of an integer constant, or of an output of a new node. Names that the
    /// original uses elsewhere do not count.
    fn is_size(&self, name: &str) -> bool {
        if self.analysis.graph.value(name).is_some_and(|value| self.is_given(value)) {
            return false;
        }
        let is_integer = |tensor: &TensorProto| !crate::graph::fact::is_float(tensor.element_type());
        self.constants.get(name).map_or(self.new.contains(name), |tensor| is_integer(tensor))
    }

    fn origin(&mut self, name: &str, reader: (String, usize), axes: &KeptAxes) {
        let origin = || Origin { reader, axes: axes.clone() };
        self.found.origins.entry(name.to_owned()).or_insert_with(origin);
    }

    /// Compares a constant of the pruned file with the kept part of a value of the original.
    fn constant(
        &mut self,
        name: &str,
        value: ValueId,
        axes: &KeptAxes,
        reader: Option<(String, usize)>,
    ) -> Result<(), Stop> {
        let key = (name.to_owned(), value, axes.clone());
        if !self.compared.contains(&key) {
            self.elements(name, value, axes)?;
            self.compared.insert(key);
        }
        if let Some(reader) = reader {
            self.origin(name, reader, axes);
        }
        Ok(())
    }

    fn elements(&mut self, name: &str, value: ValueId, axes: &KeptAxes) -> Result<(), Stop> {
        let Analysis { model, graph, fold, facts, .. } = self.analysis;
        let found = self.constants[name];
        let original = &graph.values[value].name;
        let what = || if axes.is_empty() { format!("{original:?}") } else { format!("the kept part of {original:?}") };
        if let Some(expected) = fold.constant(model, graph, value) {
            let is_computed = fold.contains(value);
            let result = difference((model, expected), axes, (self.pruned, found), is_computed)?;
            return match result {
                elements::Comparison::Same => Ok(()),
                elements::Comparison::Unknown => {
                    self.not_compared.insert(name.to_owned());
                    Ok(())
                }
                elements::Comparison::Differs(text) => {
                    Err(Stop::Changed(format!("{name:?} is not {}: {text}", what())))
                }
            };
        }
        if fold.contains(value) {
            // The value could not be computed; the runs compare what is computed from it.
            self.not_compared.insert(name.to_owned());
            return Ok(());
        }
        // A number that the original computes from sizes. The cut keeps its old value.
        if let Some(frozen) = facts.values[value].as_ref().and_then(|fact| frozen(name, fact))
            && axes.is_empty()
            && let elements::Comparison::Same = difference((model, &frozen), axes, (self.pruned, found), false)?
        {
            return Ok(());
        }
        Err(Stop::Changed(format!("found constant {name:?} instead of {}, which the original computes", what())))
    }
}

fn input_of(node: &Node, slot: usize) -> &str {
    node.proto.input.get(slot).map_or("", String::as_str)
}

/// Returns a value that is known without a run, as a tensor.
fn frozen(name: &str, fact: &Fact) -> Option<TensorProto> {
    let Some(Known::Floats(values)) = &fact.known else { return None };
    let dims = static_shape(fact.shape.as_ref()?)?.into_iter().map(|size| size as i64).collect::<Vec<_>>();
    TensorProto::of_numbers(name, fact.dtype, values, &dims)
}
