//! One graph of the original's reference and of the nodes of the pruned network.
//!
//! The graph contains every node of the pruned network that the cut touches. Such a node reads the kept part of the
//! reference's values instead of its predecessors' outputs. The graph compares its output with the kept part of the
//! reference's value of the same name. Weights are the kept part of the original's;
//! [`super::super::unchanged`] has already shown that the file contains these. Sizes and indices come from the pruned
//! network itself.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::looks::{Looks, ProofGraph, Seen, Watched};
use super::networks::Networks;
use super::noise::Noise;
use super::subgraph::rename_captured;
use crate::graph::{NodeId, ValueId};
use crate::kernels::DOMAIN;
use crate::kernels::proof::{KEPT, NOISE};
use crate::onnx::builder::{Builder, inputs_of};
use crate::onnx::order::captured;
use crate::onnx::{
    DataLocation, DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
    attr_int,
};
use crate::operator::reference::{KeptAxes, Reference};
use crate::verify::reference::{self, Unmasked};

/// Removes the kept parts that nothing reads, so that those comparisons return numbers only.
fn leave_out_unread(graph: &mut GraphProto) {
    let read: HashSet<String> = graph.node.iter().flat_map(inputs_of).map(str::to_owned).collect();
    let comparisons = graph.node.iter_mut().filter(|node| node.domain == DOMAIN && node.op_type.starts_with(KEPT));
    for kept in comparisons.filter_map(|node| node.output.first_mut()).filter(|kept| !read.contains(*kept)) {
        kept.clear();
    }
}

/// What a node of the pruned network reads for a value.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// A value of the reference, which the cut does not touch.
    Same(String),
    /// The kept part of a value of the reference, and the value that the pruned network computed.
    Kept { name: String, own: String },
    /// A value that the pruned network computed.
    Own(String),
}

/// Builds the graph of a proof.
///
/// # Errors
/// An operator whose input lost channels can't be masked.
pub(super) fn build(networks: Networks<'_>, looks: &Looks) -> Result<ProofGraph, Unmasked> {
    let mut reference = Reference::new(&networks.lowered.graph);
    let noise = Noise { networks, looks };
    let mut made = HashSet::new();
    reference::build_into(&mut reference, networks.lowered, networks.kept, &mut |node, builder| {
        noise.opened(node, builder, &mut made)
    })?;
    let masks = std::mem::take(&mut reference.masks);
    let mut taken = networks.analysis.graph.names();
    taken.add_graph(networks.pruned.graph());
    let mut builder = Builder::new("__proof", networks.analysis.graph.opset, taken);
    let mut construction = Construction {
        networks,
        looks,
        masks,
        builder: &mut builder,
        sources: HashMap::new(),
        slices: HashMap::new(),
        open: HashMap::new(),
        constants: networks.constants(),
        inlined: HashMap::new(),
        watched: Vec::new(),
        seen: BTreeMap::new(),
        exceptions: Vec::new(),
        given: reference.builder.nodes.iter().flat_map(|node| node.output.iter().cloned()).collect(),
    };
    construction.run();
    let Construction { watched, seen, exceptions, .. } = construction;
    let seen: Vec<Seen> = seen.into_iter().map(|(value, output)| Seen { value, output }).collect();
    let (proto, graph) = (networks.lowered.model.proto(), networks.lowered.model.graph());
    let info = |name: &String| ValueInfoProto { name: name.clone(), ..ValueInfoProto::default() };
    let mut initializer = graph.initializer.clone();
    initializer.extend(reference.builder.initializers);
    initializer.extend(builder.initializers);
    let mut node = reference.builder.nodes;
    node.extend(builder.nodes);
    // The outputs of the network are compared once; for a look at some values, only the nodes before them are needed.
    let mut output = if looks.only.is_some() { Vec::new() } else { graph.output.clone() };
    output
        .extend(watched.iter().flat_map(|watched| std::iter::once(&watched.output).chain(&watched.rounded)).map(info));
    output.extend(seen.iter().map(|seen| info(&seen.output)));
    let mut opset_import = proto.opset_import.clone();
    opset_import.push(OperatorSetIdProto { domain: DOMAIN.to_owned(), version: 1 });
    let mut graph = GraphProto {
        name: "proof".to_owned(),
        node,
        initializer,
        sparse_initializer: graph.sparse_initializer.clone(),
        input: graph.input.clone(),
        output,
        ..GraphProto::default()
    };
    graph.drop_dead();
    leave_out_unread(&mut graph);
    let model = ModelProto { ir_version: proto.ir_version, opset_import, graph: Some(graph), ..ModelProto::default() };
    Ok(ProofGraph { model, watched, seen, exceptions })
}

pub(super) struct Construction<'a> {
    pub(super) networks: Networks<'a>,
    pub(super) looks: &'a Looks,
    /// Names of masks, by the values of the reference.
    masks: HashMap<String, String>,
    pub(super) builder: &'a mut Builder,
    /// What the nodes read for the values of the pruned network.
    sources: HashMap<String, Source>,
    /// Kept parts of constants of the reference.
    slices: HashMap<(String, KeptAxes), String>,
    /// Kept parts of noise, by the value that it replaces.
    open: HashMap<String, String>,
    constants: HashMap<&'a str, &'a TensorProto>,
    /// Constants of the pruned network that contain sizes.
    inlined: HashMap<String, String>,
    pub(super) watched: Vec<Watched>,
    seen: BTreeMap<String, String>,
    exceptions: Vec<(String, NodeId, String)>,
    /// Outputs of the nodes of the reference.
    given: HashSet<String>,
}

impl Construction<'_> {
    fn run(&mut self) {
        let networks = self.networks;
        let graph = &networks.analysis.graph;
        for name in graph.inputs.iter().map(|input| &graph.values[*input].name) {
            self.sources.insert(name.clone(), Source::Same(name.clone()));
        }
        for (node, owner) in networks.nodes {
            if !self.constants.contains_key(node.first_output()) {
                self.node(node, networks.original(owner));
            }
        }
    }

    /// Returns what a node of the pruned network reads for a name. `node` is the corresponding node of the original.
    fn source(&mut self, name: &str, node: Option<NodeId>) -> Source {
        if let Some(source) = self.sources.get(name) {
            return source.clone();
        }
        let networks = self.networks;
        let Some(tensor) = self.constants.get(name).copied() else {
            // Neither a value nor a constant known here: an initializer that is also an input, for example.
            return Source::Same(name.to_owned());
        };
        let Some(origin) = networks.unchanged.origins.get(name).filter(|_| tensor.element_type().byte_size().is_some())
        else {
            return Source::Own(self.inline(name, tensor));
        };
        let (output, slot) = &origin.reader;
        let reads = networks.original(output).and_then(|node| networks.analysis.graph.nodes[node].input(*slot));
        let Some(value) = reads else { return Source::Own(self.inline(name, tensor)) };
        let noise = Noise { networks, looks: self.looks };
        let base = networks.analysis.graph.values[value].name.clone();
        let base = match node.and_then(|node| noise.of(node, value)) {
            Some(_) => Noise::name(&base),
            None => base,
        };
        if origin.axes.is_empty() {
            return Source::Same(base);
        }
        let sliced = self.slice(&base, &origin.axes);
        Source::Own(sliced)
    }

    /// Adds a constant of the pruned network that the original lacks, and returns its name.
    fn inline(&mut self, name: &str, tensor: &TensorProto) -> String {
        if let Some(known) = self.inlined.get(name) {
            return known.clone();
        }
        let fresh = self.builder.fresh("constant");
        let mut tensor = TensorProto { name: fresh.clone(), ..tensor.clone() };
        if tensor.data_location == DataLocation::External as i32 {
            let bytes = self.networks.pruned.tensor_view(&tensor).unwrap_or_default();
            tensor.raw_data = bytes;
            tensor.external_data.clear();
            tensor.data_location = DataLocation::Default as i32;
        }
        self.builder.initializers.push(tensor);
        self.inlined.insert(name.to_owned(), fresh.clone());
        fresh
    }

    /// Returns the kept part of a constant.
    fn slice(&mut self, name: &str, axes: &KeptAxes) -> String {
        let key = (name.to_owned(), axes.clone());
        if let Some(known) = self.slices.get(&key) {
            return known.clone();
        }
        let mut sliced = name.to_owned();
        for (axis, kept) in axes {
            let indices: Vec<i64> = kept.iter().map(|index| *index as i64).collect();
            let indices = self.builder.int_vector(&indices);
            sliced = self.builder.add("Gather", &[&sliced, &indices], vec![attr_int("axis", *axis as i64)]);
        }
        self.slices.insert(key, sliced.clone());
        sliced
    }

    /// Adds a node of the pruned network; `original` is the node that it comes from.
    fn node(&mut self, node: &NodeProto, original: Option<NodeId>) {
        let networks = self.networks;
        let graph = &networks.analysis.graph;
        let named = |name: &&String| !name.is_empty();
        let sources: Vec<Option<Source>> =
            node.input.iter().map(|name| (!name.is_empty()).then(|| self.source(name, original))).collect();
        let inner: BTreeMap<String, Source> =
            captured(node).into_iter().map(|name| (name.to_owned(), self.source(name, original))).collect();
        let is_same = |source: &Source| matches!(source, Source::Same(_));
        let reads_same = sources.iter().flatten().all(is_same) && inner.values().all(is_same);
        let is_original = original.is_some_and(|id| {
            graph.nodes[id].proto.op_type == node.op_type && graph.nodes[id].proto.first_output() == node.first_output()
        });
        let is_edited = networks.unchanged.edited.contains(node.first_output());
        let is_cut = original.is_some_and(|original| networks.is_cut(original));
        if reads_same && is_original && !is_edited && !is_cut {
            for name in node.output.iter().filter(named) {
                self.sources.insert(name.clone(), Source::Same(name.clone()));
            }
            return;
        }
        let reads_own = sources.iter().flatten().chain(inner.values()).any(|source| matches!(source, Source::Own(_)));
        let names = self.names_read(node, &sources, original);
        let mut proto = node.clone();
        // Node names must be unique, and the nodes of the file may share a name or have none.
        proto.name = self.builder.fresh(&node.name);
        for (input, name) in proto.input.iter_mut().zip(&names) {
            if let Some(name) = name {
                input.clone_from(name);
            }
        }
        let inner_names: HashMap<String, String> =
            inner.iter().map(|(name, source)| (name.clone(), self.name_of(source))).collect();
        rename_captured(&mut proto, &inner_names);
        proto.output = node.output.iter().map(|name| self.local_name(name)).collect();
        self.builder.nodes.push(proto.clone());
        let outputs: Vec<(String, String)> = node
            .output
            .iter()
            .cloned()
            .zip(proto.output.iter().cloned())
            .filter(|(name, _)| !name.is_empty())
            .collect();
        for (name, own) in &outputs {
            let source = match (graph.value(name), original) {
                (Some(value), Some(original)) => {
                    self.output(name, value, own, original, (reads_own, node.input.clone()))
                }
                _ => Source::Own(own.clone()),
            };
            self.sources.insert(name.clone(), source);
        }
        self.rounded(node, &proto, &sources, &outputs);
    }

    pub(super) fn local_name(&mut self, name: &str) -> String {
        if name.is_empty() { String::new() } else { self.builder.fresh(name) }
    }

    fn name_of(&self, source: &Source) -> String {
        match source {
            Source::Same(name) | Source::Own(name) | Source::Kept { name, .. } => name.clone(),
        }
    }

    /// Returns the names of the inputs that a node reads, with the names of noise for those that it replaces.
    fn names_read(
        &mut self,
        node: &NodeProto,
        sources: &[Option<Source>],
        original: Option<NodeId>,
    ) -> Vec<Option<String>> {
        let networks = self.networks;
        let graph = &networks.analysis.graph;
        let noise = Noise { networks, looks: self.looks };
        let mut names = Vec::new();
        for (input, source) in node.input.iter().zip(sources) {
            let Some(source) = source else {
                names.push(None);
                continue;
            };
            let value = graph.value(input).filter(|_| !self.constants.contains_key(input.as_str()));
            let dtype = value.zip(original).and_then(|(value, original)| noise.of(original, value));
            let name = match (source, dtype) {
                (Source::Kept { own, .. }, Some(dtype)) => self.open(input, own, dtype),
                (Source::Same(_), Some(_)) => Noise::name(input),
                (Source::Same(name), None) => {
                    if let Some(dtype) = graph.value(name).and_then(|value| networks.float_type(value)) {
                        self.see(name, dtype);
                    }
                    name.clone()
                }
                (source, _) => self.name_of(source),
            };
            names.push(Some(name));
        }
        names
    }

    /// Returns the kept part of the noise that replaces a value.
    fn open(&mut self, value: &str, own: &str, dtype: DataType) -> String {
        if let Some(known) = self.open.get(value) {
            return known.clone();
        }
        // Only the sizes of the pruned network's value are used.
        let own = match self.looks.sizes.get(value) {
            Some((_, found)) => {
                let sizes = self.builder.int_vector(found);
                self.builder.add_in(DOMAIN, &Networks::operator(NOISE, dtype), &["", &sizes], vec![])
            }
            None => own.to_owned(),
        };
        let (kept, _) = self.kept(&Noise::name(value), value, &own, dtype);
        self.open.insert(value.to_owned(), kept.clone());
        kept
    }

    /// Compares the pruned network's value with `expected`, which has the mask of the value.
    fn kept(&mut self, expected: &str, value: &str, own: &str, dtype: DataType) -> (String, String) {
        let mut inputs = vec![expected, own];
        let mask = self.masks.get(value).cloned();
        inputs.extend(mask.as_deref());
        let outputs = vec![self.builder.fresh("kept"), self.builder.fresh("measured")];
        self.builder.push(DOMAIN, &Networks::operator(KEPT, dtype), &inputs, outputs.clone(), vec![]);
        let [kept, measured] = <[String; 2]>::try_from(outputs).unwrap_or_default();
        (kept, measured)
    }

    /// Measures a value that the cut does not touch.
    fn see(&mut self, name: &str, dtype: DataType) {
        if self.looks.only.is_some() || self.seen.contains_key(name) {
            return;
        }
        let measured = self.builder.fresh("measured");
        let outputs = vec![String::new(), measured.clone()];
        self.builder.push(DOMAIN, &Networks::operator(KEPT, dtype), &[name, name], outputs, vec![]);
        self.seen.insert(name.to_owned(), measured);
    }

    /// Adds the comparison of an output of a node of the pruned network.
    fn output(&mut self, name: &str, value: ValueId, own: &str, original: NodeId, read: (bool, Vec<String>)) -> Source {
        let Some(dtype) = self.networks.float_type(value) else {
            let is_known = self.networks.analysis.facts.values[value].is_some();
            if !is_known {
                self.exceptions.push((name.to_owned(), original, "its element type is not known".to_owned()));
            }
            return Source::Own(own.to_owned());
        };
        // The reference may lack an output that nothing reads.
        if !self.given.contains(name) {
            return Source::Own(own.to_owned());
        }
        let (kept, measured) = self.kept(name, name, own, dtype);
        if self.looks.only.as_ref().is_none_or(|only| only.contains(name)) {
            let (value, output, (shrinks, reads)) = (name.to_owned(), measured, read);
            self.watched.push(Watched { value, node: original, output, rounded: Vec::new(), reads, shrinks });
        }
        Source::Kept { name: kept, own: own.to_owned() }
    }
}
