//! A network that is a function of one input.

use std::path::Path;

use super::OutputSamples;
use crate::analysis::Analysis;
use crate::array::ElementType;
use crate::error::Error;
use crate::graph::Graph;
use crate::graph::dim::Dim;
use crate::graph::facts::Facts;
use crate::graph::sizes::{Sizes, sizes_for};
use crate::macs::Cost;

/// The input and the output of a network that is a function of one input.
#[derive(Clone, Debug)]
pub(in crate::prune) struct OutputNetwork<'a> {
    analysis: &'a Analysis,
    /// The name of the input.
    pub(in crate::prune) input: String,
    pub(in crate::prune) element_type: ElementType,
    shape: Vec<Dim>,
    /// The name of the output that is compared.
    pub(in crate::prune) output: String,
    /// The given sizes, and those of the samples.
    given: Sizes,
}

/// Returns the given sizes, and the sizes of a sample for the last two axes of the single input, as far as these are
/// symbolic.
pub(in crate::prune) fn with_edges(analysis: &Analysis, given: &Sizes, edges: (usize, usize)) -> Sizes {
    let mut sizes = given.clone();
    if let [input] = analysis.graph.inputs.as_slice()
        && let Some(shape) = analysis.facts.values[*input].as_ref().and_then(|fact| fact.shape.as_ref())
    {
        for (name, size) in sizes_of_edges(shape, edges) {
            sizes.entry(name).or_insert(size);
        }
    }
    sizes
}

/// Returns the sizes for the symbols of the last two axes, if there is a batch and a channel axis before them.
fn sizes_of_edges(shape: &[Dim], (height, width): (usize, usize)) -> Sizes {
    let [_, _, .., of_height, of_width] = shape else { return Sizes::new() };
    let size = |(dim, size): (&Dim, usize)| Some((dim.as_symbol()?, i64::try_from(size).ok()?));
    [(of_height, height), (of_width, width)].into_iter().filter_map(size).collect()
}

impl<'a> OutputNetwork<'a> {
    /// Finds input and output of the network.
    ///
    /// # Errors
    /// Fails if there is no float input with a batch, more than one input, or no float output.
    pub(in crate::prune) fn new(analysis: &'a Analysis, samples: &OutputSamples, given: &Sizes) -> Result<Self, Error> {
        let (graph, facts) = (&analysis.graph, &analysis.facts);
        let fail = |text: String| {
            Error::usage(text)
                .in_file(analysis.model.path())
                .hint("use --criterion magnitude and --no-refit, which need no samples")
        };
        let names = || graph.inputs.iter().map(|id| graph.values[*id].name.as_str()).collect::<Vec<_>>().join(", ");
        let [id] = graph.inputs.as_slice() else {
            return Err(fail(format!("expected a network with one input, found {}", names())));
        };
        let fact = facts.values[*id].as_ref();
        let element_type = fact.and_then(|fact| ElementType::from_onnx(fact.dtype as i32)).filter(|of| of.is_float());
        let shape = fact.and_then(|fact| fact.shape.clone()).filter(|shape| shape.len() >= 2);
        let (Some(element_type), Some(shape)) = (element_type, shape) else {
            return Err(fail(format!("expected a float input with a batch and more axes, found {}", names())));
        };
        let is_float = |value: &&usize| {
            let fact = facts.values[**value].as_ref();
            fact.is_some_and(|fact| ElementType::from_onnx(fact.dtype as i32).is_some_and(ElementType::is_float))
        };
        let Some(output) = graph.outputs.iter().find(is_float) else {
            return Err(fail("expected a float output, found none".to_owned()));
        };
        // The given sizes may be larger ones, for costs and verification.
        let mut given = given.clone();
        if let Some(edges) = samples.edges() {
            given.extend(sizes_of_edges(&shape, edges));
        }
        let name = |value: usize| graph.values[value].name.clone();
        Ok(Self { analysis, input: name(*id), element_type, shape, output: name(*output), given })
    }

    pub(in crate::prune) fn path(&self) -> &'a Path {
        self.analysis.model.path()
    }

    /// Returns the graph, and the facts about its values.
    pub(in crate::prune) fn known(&self) -> (&'a Graph, &'a Facts) {
        (&self.analysis.graph, &self.analysis.facts)
    }

    fn facts(&self) -> &'a Facts {
        &self.analysis.facts
    }

    /// Returns the batch size that the graph fixes; `None` if it fixes none.
    pub(in crate::prune) fn fixed_batch(&self) -> Option<usize> {
        usize::try_from(self.shape.first()?.as_const()?).ok()
    }

    /// Returns sizes for every symbolic dimension at a batch size.
    pub(in crate::prune) fn sizes(&self, batch: usize) -> Sizes {
        let mut given = self.given.clone();
        if let Some(name) = self.shape.first().and_then(Dim::as_symbol) {
            given.insert(name, i64::try_from(batch).unwrap_or(i64::MAX));
        }
        sizes_for(self.facts(), &given)
    }

    /// Returns the shape of a batch of samples.
    ///
    /// # Errors
    /// Fails if a size is not known.
    pub(in crate::prune) fn dims(&self, batch: usize) -> Result<Vec<usize>, Error> {
        let sizes = self.sizes(batch);
        let size = |dim: &Dim| dim.eval(&sizes).and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
        self.shape.iter().map(size).collect::<Option<_>>().ok_or_else(|| {
            Error::usage(format!("input {:?} has a symbolic dimension without a size", self.input))
                .in_file(self.path())
                .hint("set it with --size NAME=N")
        })
    }

    /// Returns the cost of a run with one sample.
    pub(in crate::prune) fn cost(&self) -> Cost {
        let sizes = self.sizes(1);
        self.analysis.count(|counter| counter.cost(None, &sizes))
    }
}
