//! Verification of a cut whose weights have changed since.
//!
//! The reference of such a file is that of *another original*: the original with the changed weights scattered into the
//! indices that the plan keeps. Every reader gets a copy for the indices that it keeps. The readers of a folded weight
//! read the changed weight instead of the fold's output. An Add adds a bias that the original lacks to the output of
//! its node. This original is written to a temporary folder, masked like any other, and compared. Everything that the
//! plan does not name as changed must equal the verified cut bit for bit.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::conversion::{Conversion, verify_converted};
use super::scatter::Scattered;
use super::{Changed, Cut, VerifyOptions, VerifyReport, compared, prove, verify};
use crate::analysis::{Analysis, analyse};
use crate::changed::{AddedBias, ChangedWeight, ChangedWeights};
use crate::error::Error;
use crate::files::TemporaryFolder;
use crate::graph::fact::{Fact, static_shape};
use crate::graph::model::Model;
use crate::graph::{Node, Reader, ValueId};
use crate::load::load;
use crate::onnx::names::Names;
use crate::onnx::{NodeProto, TensorProto};
use crate::operator::reference::KeptAxes;
use crate::plan::{Plan, kept_axes};
use crate::rewrite::unread::NewNodes;
use crate::runtime::Runtime;
use crate::write::{Edits, InitializerOut, NodeOut, Streamed, write};

/// The indices that the readers of constants keep, by node and input slot.
type Kept = HashMap<Reader, KeptAxes>;

/// Compares a file with the reference of the original under a plan. Weights that the plan names as changed replace those
/// of the original in the reference. `path` is the plan's file, for messages.
///
/// # Errors
/// The plan belongs to another model; the reference can't be built or run. A file that does not run, or that differs,
/// is not an error: the report has not passed.
pub fn verify_plan(
    analysis: &Analysis,
    plan: &Plan,
    path: &Path,
    file: &Model,
    runtime: &Runtime,
    options: &VerifyOptions,
) -> Result<VerifyReport, Error> {
    let kept = kept_axes(plan, analysis, path)?;
    let Some(changed) = &plan.changed else {
        return match Conversion::is_found(analysis, file) {
            true => verify_converted(analysis, (plan, &kept), file, runtime, options),
            false => verify(analysis, &kept, file, runtime, options),
        };
    };
    if let Some(difference) = changed.unnamed_difference(file)? {
        return Ok(VerifyReport::failed(analysis, runtime, options, difference));
    }
    let unchanged = match compared(analysis, &kept, file, runtime, Some(changed))? {
        Ok(unchanged) => unchanged,
        Err(Changed(text)) => return Ok(VerifyReport::failed(analysis, runtime, options, text)),
    };
    let mut original = Original {
        analysis,
        plan: path,
        file,
        kept: &kept,
        names: Names::of_graph(analysis.model.graph()),
        edits: Edits::default(),
        inputs: HashMap::new(),
    };
    let renamed = match original.replace(changed).and_then(|()| original.nodes(&changed.biases)) {
        Ok(renamed) => renamed,
        Err(Wrong::File(failure)) => return Ok(VerifyReport::failed(analysis, runtime, options, failure)),
        Err(Wrong::Other(error)) => return Err(error),
    };
    let folder = TemporaryFolder::anywhere().map_err(|error| {
        let text = format!("a temporary folder for the reference can't be created: {error}");
        Error::usage(text).hint("set TMPDIR to a folder that can be written to")
    })?;
    let written = folder.path().join("original.onnx");
    write(&analysis.model, &original.edits, &written)?;
    let compare = || {
        let changed_original = load(&written).and_then(|model| analyse(&model))?;
        let kept = moved(&kept, analysis, &changed_original, &renamed);
        prove(Cut { analysis: &changed_original, kept: &kept, pruned: file, unchanged, renamed }, runtime, options)
    };
    compare().map_err(|error| error.instead_of_file(&written, analysis.model.path()))
}

/// The reason why a file can't be compared.
enum Wrong {
    /// A fault of the file that is verified.
    File(String),
    /// A fault of the plan, or a file that can't be read.
    Other(Error),
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// The original with weights of a file instead of its own, under construction.
struct Original<'a> {
    analysis: &'a Analysis,
    plan: &'a Path,
    file: &'a Model,
    kept: &'a Kept,
    names: Names,
    edits: Edits,
    /// The name that replaces a changed weight among the inputs of a node, by node and input slot.
    inputs: HashMap<Reader, String>,
}

impl Original<'_> {
    /// Returns an error about the plan.
    fn wrong(&self, text: String) -> Error {
        Error::unreadable(self.plan, text)
            .hint("the plan belongs to another model; verify with the plan that came with the file")
    }

    /// Returns an initializer of the file, which must have this type and these sizes.
    fn tensor(&self, name: &str, fact: &Fact, dims: &[i64]) -> Result<&TensorProto, Wrong> {
        let found = self.file.graph().initializer.iter().find(|tensor| tensor.name == name);
        let expected = format!("tensor {name:?}: expected {} {dims:?}", fact.dtype.spec_name());
        let found = found.ok_or_else(|| Wrong::File(format!("{expected}, found no such initializer")))?;
        if found.dims != dims || found.data_type != fact.dtype as i32 {
            let found_type = found.element_type().spec_name();
            return Err(Wrong::File(format!("{expected}, found {found_type} {:?}", found.dims)));
        }
        Ok(found)
    }

    /// Adds the changed weights, at the size of the original's weights.
    fn replace(&mut self, changed: &ChangedWeights) -> Result<(), Wrong> {
        for weight in &changed.weights {
            // One copy for all readers that keep the same indices.
            let mut copies: BTreeMap<&KeptAxes, String> = BTreeMap::new();
            let whole = KeptAxes::new();
            for (output, slot) in &weight.readers {
                let (node, value) = self.reader(weight, output, *slot)?;
                let kept = self.kept.get(&Reader { node, slot: *slot }).unwrap_or(&whole);
                let name = match copies.get(kept) {
                    Some(name) => name.clone(),
                    None => copies.entry(kept).or_insert(self.scatter(&weight.name, value, kept)?).clone(),
                };
                if self.inputs.insert(Reader { node, slot: *slot }, name).is_some() {
                    let text = format!("the plan names input {slot} of node {output:?} as changed twice");
                    return Err(self.wrong(text).into());
                }
            }
        }
        Ok(())
    }

    /// Returns the node that computes `output`, and the constant that it reads at `slot`.
    fn reader(&self, weight: &ChangedWeight, output: &str, slot: usize) -> Result<(usize, ValueId), Error> {
        let graph = &self.analysis.graph;
        let node = graph.value(output).and_then(|output| graph.values[output].producer).map(|(node, _)| node);
        let value = node.and_then(|node| graph.nodes[node].input(slot));
        let is_it = |value: &ValueId| graph.values[*value].name == weight.tensor;
        node.zip(value.filter(is_it)).ok_or_else(|| {
            let tensor = &weight.tensor;
            self.wrong(format!("the plan names node {output:?} as a reader of {tensor:?}, but it does not read it"))
        })
    }

    /// Adds an initializer of the file at the size of a value of the original, and returns its new name.
    fn scatter(&mut self, name: &str, value: ValueId, kept: &KeptAxes) -> Result<String, Wrong> {
        let fact = self.analysis.facts.values[value].as_ref();
        let sizes = fact.and_then(|fact| static_shape(fact.shape.as_ref()?));
        let Some((fact, sizes)) = fact.zip(sizes) else {
            let original = &self.analysis.graph.values[value].name;
            let text = format!("the plan names {original:?} as a changed weight, but it has no fixed size");
            return Err(self.wrong(text).into());
        };
        let sizes: Vec<i64> = sizes.into_iter().map(|size| size as i64).collect();
        let size = |(axis, size): (usize, &i64)| kept.get(&axis).map_or(*size, |kept| kept.len() as i64);
        let expected: Vec<i64> = sizes.iter().enumerate().map(size).collect();
        let tensor = self.tensor(name, fact, &expected)?.clone();
        Ok(self.add(&tensor, &sizes, &sizes, kept)?)
    }

    /// Adds a tensor of the file, scattered to `sizes`, under a new name and with the shape `dims`.
    fn add(&mut self, tensor: &TensorProto, sizes: &[i64], dims: &[i64], kept: &KeptAxes) -> Result<String, Error> {
        let data_type = tensor.element_type();
        let scattered = Scattered::new(data_type, sizes, kept, self.file.tensor_view(tensor)?);
        let scattered = scattered.map_err(|text| self.wrong(format!("tensor {:?}: {text}", tensor.name)))?;
        let name = self.names.fresh(&format!("{}/changed", tensor.name));
        let source = Arc::new(scattered.reshaped(dims));
        let streamed = Streamed { index: None, name: name.clone(), data_type, dims: dims.to_vec(), source };
        self.edits.add_initializer(&self.analysis.model, streamed)?;
        Ok(name)
    }

    /// Adds the nodes and the initializers of the original. Returns the new names of the outputs to which a bias is added,
    /// by their old ones.
    fn nodes(&mut self, biases: &[AddedBias]) -> Result<HashMap<String, String>, Wrong> {
        let (model, graph) = (&self.analysis.model, &self.analysis.graph);
        let mut nodes = NewNodes::default();
        let mut renamed = HashMap::new();
        let mut open: Vec<&AddedBias> = biases.iter().collect();
        for node in &graph.nodes {
            let mut proto = node.proto.clone();
            for (slot, input) in proto.input.iter_mut().enumerate() {
                if let Some(name) = self.inputs.get(&Reader { node: node.id, slot }) {
                    input.clone_from(name);
                }
            }
            let at = open.iter().position(|bias| node.proto.first_output() == bias.node);
            if let Some(bias) = at.map(|at| open.remove(at)) {
                let sum = self.biased(node, &mut proto, bias)?;
                renamed.insert(bias.node.clone(), proto.first_output().to_owned());
                nodes.push(NodeOut::New(proto.clone()), &proto, graph, None);
                nodes.push(NodeOut::New(sum.clone()), &sum, graph, Some(node));
                continue;
            }
            let new = if proto == node.proto { NodeOut::Original(node.index) } else { NodeOut::New(proto.clone()) };
            nodes.push(new, &proto, graph, Some(node));
        }
        if let Some(bias) = open.first() {
            let text = format!("the plan adds a bias to {:?}, but no node computes it, or it has one", bias.node);
            return Err(self.wrong(text).into());
        }
        let mut edits = std::mem::take(&mut self.edits);
        edits.initializers.extend((0..model.graph().initializer.len()).map(InitializerOut::Original));
        nodes.settle(model, graph, &mut edits);
        self.edits = edits;
        Ok(renamed)
    }

    /// Renames the first output of a node, and returns the node that adds a bias to it.
    fn biased(&mut self, node: &Node, proto: &mut NodeProto, bias: &AddedBias) -> Result<NodeProto, Wrong> {
        let value = self.analysis.graph.value(&bias.node);
        let fact = value.and_then(|value| self.analysis.facts.values[value].as_ref());
        let sizes = fact.and_then(|fact| fact.shape.as_ref());
        let size = sizes.and_then(|sizes| sizes.get(bias.axis)?.as_const());
        let Some(((fact, sizes), size)) = fact.zip(sizes).zip(size) else {
            let (axis, output) = (bias.axis, &bias.node);
            let text = format!("the plan adds a bias along axis {axis} of {output:?}, but that axis has no fixed size");
            return Err(self.wrong(text).into());
        };
        if node.input(bias.slot).is_some() {
            let text = format!("the plan adds input {} to the node that computes {:?}", bias.slot, bias.node);
            return Err(self.wrong(format!("{text}, but that node has such an input")).into());
        }
        // The bias broadcasts over the axes after its axis.
        let mut dims = vec![size];
        dims.resize(sizes.len() - bias.axis, 1);
        let kept: KeptAxes = bias.keep.iter().map(|keep| (0, keep.clone())).collect();
        let tensor = self.tensor(&bias.name, fact, &[bias.size as i64])?.clone();
        let name = self.add(&tensor, &[size], &dims, &kept)?;
        let without = self.names.fresh(&format!("{}/without_bias", bias.node));
        for output in proto.output.iter_mut().filter(|output| **output == bias.node) {
            output.clone_from(&without);
        }
        Ok(NodeProto {
            op_type: "Add".to_owned(),
            // A node may have no name, but ONNX Runtime refuses two nodes with the same one.
            name: format!("{}/bias", if proto.name.is_empty() { &bias.node } else { &proto.name }),
            input: vec![without, name],
            output: vec![bias.node.clone()],
            ..NodeProto::default()
        })
    }
}

/// Returns what readers keep, by the nodes of the changed original. `renamed` maps old names of first outputs to new ones.
pub(super) fn moved(kept: &Kept, before: &Analysis, after: &Analysis, renamed: &HashMap<String, String>) -> Kept {
    let node = |id: usize| {
        let output = before.graph.nodes[id].proto.first_output();
        let output = renamed.get(output).map_or(output, String::as_str);
        Some(after.graph.values[after.graph.value(output)?].producer?.0)
    };
    let reader = |at: &Reader| Some(Reader { node: node(at.node)?, slot: at.slot });
    kept.iter().filter_map(|(at, axes)| Some((reader(at)?, axes.clone()))).collect()
}
