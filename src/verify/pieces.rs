//! A graph in pieces that run one after another.
//!
//! The time that ONNX Runtime takes to create a session grows faster than the number of nodes: at ten thousand nodes, twice
//! the nodes take four times as long. A graph is therefore cut into pieces of bounded size, with one session each. Values
//! that later pieces read from earlier ones are passed between them as arrays. Every piece has its own copy of the nodes
//! that it reads and that are a few steps from initializers alone, such as those of kept weights and of their masks.

use std::collections::{BTreeSet, HashMap, HashSet};

use prost::Message;

use crate::array::Array;
use crate::onnx::builder::{inputs_of, outputs_of};
use crate::onnx::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::type_proto::{Tensor, Value};
use crate::onnx::{
    GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
};
use crate::runtime::{Runtime, RuntimeError, Session, SessionOptions};

/// Maximum number of nodes of a piece, without those that are copied into every piece that reads them.
const NODES: usize = 1500;

/// Maximum distance from an initializer, in steps, of a node that is copied into every piece that reads it. The masks of a
/// deep network are computed from each other. If every piece computed them from the start, the work would grow with the
/// square of the depth.
const REPEATED: usize = 8;

/// The pieces of a graph.
pub(super) struct Pieces {
    pieces: Vec<Piece>,
    /// A model without nodes, inputs and outputs: it contains the operator sets.
    frame: ModelProto,
    outputs: Vec<String>,
    options: SessionOptions,
}

/// The inputs or outputs of a graph in one run.
pub(super) type Values = Vec<(String, Array)>;

/// One piece of a graph.
struct Piece {
    graph: GraphProto,
    /// The names of its inputs: those of the network, which the graph declares, and values of earlier pieces.
    inputs: Vec<String>,
    /// The names of its outputs: values that later pieces read, and outputs of the whole graph.
    outputs: Vec<String>,
    /// Values that no later piece reads.
    last: Vec<String>,
}

impl Pieces {
    /// Cuts a model whose nodes are in a topological order into pieces.
    pub(super) fn new(mut model: ModelProto, options: SessionOptions) -> Self {
        let graph = model.graph.take().unwrap_or_default();
        let outputs: Vec<String> = graph.output.iter().map(|output| output.name.clone()).collect();
        let frame = model;
        let pieces = if graph.node.len() <= NODES { vec![Piece::whole(graph)] } else { cut(graph) };
        Self { pieces, frame, outputs, options }
    }

    /// Runs all pieces on each of some inputs and returns the outputs of the graph for each. A piece runs on all inputs
    /// before the next one does, so there is one session at a time.
    ///
    /// # Errors
    /// ONNX Runtime rejects a piece, or the piece does not run on those inputs.
    pub(super) fn run(&self, runtime: &Runtime, inputs: &[Values]) -> Vec<Result<Values, RuntimeError>> {
        let mut runs: Vec<Result<HashMap<String, Array>, RuntimeError>> =
            inputs.iter().map(|_| Ok(HashMap::new())).collect();
        for piece in &self.pieces {
            let taken: Vec<Option<Values>> = runs
                .iter_mut()
                .zip(inputs)
                .map(|(run, inputs)| Some(piece.taken(inputs, run.as_mut().ok()?)))
                .collect();
            let shown: Vec<&[(String, Array)]> = taken.iter().flatten().map(Vec::as_slice).collect();
            if shown.is_empty() {
                break;
            }
            let model = piece.model(&self.frame, &shown);
            let mut session = None;
            for (run, taken) in runs.iter_mut().zip(taken) {
                let (Ok(known), Some(taken)) = (&mut *run, taken) else { continue };
                if let Err(error) = self.run_piece(piece, &model, &mut session, runtime, taken, known) {
                    *run = Err(error);
                }
            }
        }
        let outputs = |mut known: HashMap<String, Array>| {
            self.outputs.iter().filter_map(|name| Some((name.clone(), known.remove(name)?))).collect()
        };
        runs.into_iter().map(|run| run.map(outputs)).collect()
    }

    /// Runs a piece on its inputs and adds its outputs to the known values. Its session is created at the first run.
    fn run_piece(
        &self,
        piece: &Piece,
        model: &ModelProto,
        session: &mut Option<Session>,
        runtime: &Runtime,
        taken: Values,
        known: &mut HashMap<String, Array>,
    ) -> Result<(), RuntimeError> {
        let session = match session {
            Some(session) => session,
            None => session.insert(runtime.session_from_bytes(&model.encode_to_vec(), &self.options)?),
        };
        let given = session.run(&taken)?;
        known.extend(taken);
        known.extend(given);
        piece.last.iter().for_each(|name| _ = known.remove(name));
        Ok(())
    }
}

impl Piece {
    fn whole(graph: GraphProto) -> Self {
        let initialized: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        let inputs = graph.input.iter().map(|input| input.name.clone());
        let inputs = inputs.filter(|name| !initialized.contains(name.as_str())).collect();
        let outputs = graph.output.iter().map(|output| output.name.clone()).collect();
        Self { inputs, outputs, last: Vec::new(), graph }
    }

    /// Returns the inputs of the piece, from the inputs of the network and the known values.
    fn taken(&self, inputs: &[(String, Array)], known: &mut HashMap<String, Array>) -> Values {
        let take = |name: &String| match known.remove(name) {
            Some(array) => Some((name.clone(), array)),
            None => inputs.iter().find(|(input, _)| input == name).cloned(),
        };
        self.inputs.iter().filter_map(take).collect()
    }

    /// Returns the piece as a model. Its inputs from earlier pieces are declared with the type that was computed, and with
    /// the sizes that are the same in all of the runs: without a size, ONNX Runtime treats some vectors of sizes as empty.
    fn model(&self, frame: &ModelProto, runs: &[&[(String, Array)]]) -> ModelProto {
        let mut graph = self.graph.clone();
        for (name, array) in runs.first().copied().unwrap_or_default() {
            if !graph.input.iter().any(|input| input.name == *name) {
                let others = runs.iter().flat_map(|run| run.iter().filter(|(other, _)| other == name));
                let shape = common_shape(others.map(|(_, array)| array.dims.as_slice()));
                let tensor = Tensor { elem_type: array.element_type().to_onnx(), shape };
                let r#type = TypeProto { value: Some(Value::TensorType(tensor)), ..TypeProto::default() };
                graph.input.push(ValueInfoProto { name: name.clone(), r#type: Some(r#type), ..Default::default() });
            }
        }
        for name in &self.outputs {
            if !graph.output.iter().any(|output| output.name == *name) {
                graph.output.push(ValueInfoProto { name: name.clone(), ..ValueInfoProto::default() });
            }
        }
        ModelProto { graph: Some(graph), ..frame.clone() }
    }
}

/// Returns the sizes that some shapes have in common. `None`: their ranks differ.
fn common_shape<'s>(mut shapes: impl Iterator<Item = &'s [usize]>) -> Option<TensorShapeProto> {
    let mut common: Vec<Option<usize>> = shapes.next()?.iter().copied().map(Some).collect();
    for shape in shapes {
        if shape.len() != common.len() {
            return None;
        }
        common.iter_mut().zip(shape).for_each(|(known, size)| *known = known.filter(|known| known == size));
    }
    let size = |size: Option<usize>| Dimension {
        value: size.map(|size| dimension::Value::DimValue(size as i64)),
        ..Dimension::default()
    };
    Some(TensorShapeProto { dim: common.into_iter().map(size).collect() })
}

/// Cuts a graph into pieces of about [`NODES`] nodes.
fn cut(graph: GraphProto) -> Vec<Piece> {
    let initializers: HashMap<&str, &TensorProto> =
        graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let sparse =
        graph.sparse_initializer.iter().filter_map(|sparse| Some((sparse.values.as_ref()?.name.as_str(), sparse)));
    let sparse: HashMap<&str, &SparseTensorProto> = sparse.collect();
    let is_initializer = |name: &str| initializers.contains_key(name) || sparse.contains_key(name);
    // Positions of the nodes that are copied into every piece that reads them, by their outputs.
    let mut free: HashMap<&str, usize> = HashMap::new();
    let mut bound: Vec<&NodeProto> = Vec::new();
    let mut depths: HashMap<&str, usize> = HashMap::new();
    for (at, node) in graph.node.iter().enumerate() {
        let read = inputs_of(node);
        let depth = 1 + read.iter().filter_map(|name| depths.get(name)).max().unwrap_or(&0);
        let is_free = read.iter().all(|name| is_initializer(name) || free.contains_key(name));
        if is_free && depth <= REPEATED {
            for name in outputs_of(node) {
                free.insert(name, at);
                depths.insert(name, depth);
            }
        } else {
            bound.push(node);
        }
    }
    let bound = by_depth(&bound);
    if bound.is_empty() {
        return vec![Piece::whole(graph)];
    }
    let chunks: Vec<&[&NodeProto]> = bound.chunks(NODES).collect();
    let wanted: HashSet<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
    // The last piece that reads each value.
    let mut last_read: HashMap<&str, usize> = HashMap::new();
    for (at, chunk) in chunks.iter().enumerate() {
        chunk.iter().flat_map(|node| inputs_of(node)).for_each(|name| _ = last_read.insert(name, at));
    }
    let piece = |at: usize, chunk: &[&NodeProto]| {
        let given: HashSet<&str> = chunk.iter().flat_map(|node| outputs_of(node)).collect();
        let mut open: Vec<&str> = chunk.iter().flat_map(|node| inputs_of(node)).collect();
        if at + 1 == chunks.len() {
            open.extend(wanted.iter().filter(|name| is_initializer(name) || free.contains_key(*name)));
        }
        let (mut taken, mut places, mut constants) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        while let Some(name) = open.pop() {
            if is_initializer(name) {
                constants.insert(name);
            } else if let Some(place) = free.get(name) {
                if places.insert(*place) {
                    open.extend(inputs_of(&graph.node[*place]));
                }
            } else if !given.contains(name) {
                taken.insert(name);
            }
        }
        let is_output = |name: &&str| wanted.contains(name) || last_read.get(name).is_some_and(|last| *last > at);
        let here = given.iter().copied().chain(places.iter().flat_map(|place| outputs_of(&graph.node[*place])));
        let outputs: BTreeSet<&str> = given
            .iter()
            .copied()
            .filter(is_output)
            .chain(here.chain(constants.iter().copied()).filter(|name| at + 1 == chunks.len() && wanted.contains(name)))
            .collect();
        let last = taken.iter().filter(|name| last_read.get(*name) == Some(&at) && !wanted.contains(*name));
        let owned = |names: &BTreeSet<&str>| names.iter().map(|name| (*name).to_owned()).collect();
        let free_nodes = places.iter().map(|place| graph.node[*place].clone());
        Piece {
            inputs: owned(&taken),
            outputs: owned(&outputs),
            last: last.map(|name| (*name).to_owned()).collect(),
            graph: GraphProto {
                name: graph.name.clone(),
                node: free_nodes.chain(chunk.iter().map(|node| (*node).clone())).collect(),
                initializer: constants.iter().filter_map(|name| Some((*initializers.get(name)?).clone())).collect(),
                sparse_initializer: constants.iter().filter_map(|name| Some((*sparse.get(name)?).clone())).collect(),
                input: graph.input.iter().filter(|input| taken.contains(input.name.as_str())).cloned().collect(),
                output: graph.output.iter().filter(|output| outputs.contains(output.name.as_str())).cloned().collect(),
                ..GraphProto::default()
            },
        }
    };
    chunks.iter().enumerate().map(|(at, chunk)| piece(at, chunk)).collect()
}

/// Sorts nodes by their distance from the inputs. A comparison is then close to the nodes whose values it compares.
fn by_depth<'g>(nodes: &[&'g NodeProto]) -> Vec<&'g NodeProto> {
    let mut depth_of: HashMap<&str, usize> = HashMap::new();
    let mut sorted: Vec<(usize, &NodeProto)> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let depth =
            inputs_of(node).into_iter().filter_map(|name| depth_of.get(name)).max().map_or(0, |depth| depth + 1);
        outputs_of(node).into_iter().for_each(|name| _ = depth_of.insert(name, depth));
        sorted.push((depth, node));
    }
    sorted.sort_by_key(|(depth, _)| *depth);
    sorted.into_iter().map(|(_, node)| node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(op_type: &str, input: &[&str], output: &str) -> NodeProto {
        NodeProto {
            op_type: op_type.to_owned(),
            input: input.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        }
    }

    #[test]
    fn pieces_output_the_values_that_later_pieces_read() {
        let info = |name: &str| ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() };
        let mut nodes = vec![node("Abs", &["w"], "free"), node("Add", &["x", "free"], "v0")];
        for at in 0..2 * NODES {
            nodes.push(node("Add", &[&format!("v{at}"), "free"], &format!("v{}", at + 1)));
        }
        nodes.push(node("Add", &[&format!("v{}", 2 * NODES), "v7"], "y"));
        let graph = GraphProto {
            node: nodes,
            initializer: vec![TensorProto { name: "w".to_owned(), ..TensorProto::default() }],
            input: vec![info("x")],
            output: vec![info("y"), info("v3"), info("free")],
            ..GraphProto::default()
        };
        let pieces = cut(graph);
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[0].inputs, ["x"]);
        assert!(pieces.iter().all(|piece| piece.graph.node[0].op_type == "Abs" && piece.graph.initializer.len() == 1));
        let first = format!("v{}", NODES - 1);
        assert_eq!(
            pieces[0].outputs,
            [first.as_str(), "v3", "v7"]
                .map(str::to_owned)
                .to_vec()
                .into_iter()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
        );
        assert_eq!((pieces[1].inputs.clone(), pieces[1].last.clone()), (vec![first.clone()], vec![first]));
        assert!(pieces[2].inputs.contains(&"v7".to_owned()));
        assert_eq!(pieces[2].outputs, ["free", "y"]);
    }
}
