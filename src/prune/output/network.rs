//! A function of one input as it stands in a graph.

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
    /// The name of the output that counts.
    pub(in crate::prune) output: String,
    /// The sizes that are given, and those of the samples.
    given: Sizes,
}

/// The sizes that are given, and for the last two axes of the one input those of a sample, as far as they are symbols.
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

/// Sizes for the symbols of the last two axes, where channels stand before them.
fn sizes_of_edges(shape: &[Dim], (height, width): (usize, usize)) -> Sizes {
    let [_, _, .., of_height, of_width] = shape else { return Sizes::new() };
    let size = |(dim, size): (&Dim, usize)| Some((dim.as_symbol()?, i64::try_from(size).ok()?));
    [(of_height, height), (of_width, width)].into_iter().filter_map(size).collect()
}

impl<'a> OutputNetwork<'a> {
    /// # Errors
    /// No float input with a batch, or more than one input; no float output.
    pub(in crate::prune) fn new(analysis: &'a Analysis, samples: &OutputSamples, given: &Sizes) -> Result<Self, Error> {
        let (graph, facts) = (&analysis.graph, &analysis.facts);
        let fail = |text: String| {
            Error::usage(text).in_file(analysis.model.path()).hint("score it with --criterion magnitude and --no-refit")
        };
        let names = || graph.inputs.iter().map(|id| graph.values[*id].name.as_str()).collect::<Vec<_>>().join(", ");
        let [id] = graph.inputs.as_slice() else {
            return Err(fail(format!("expected a network of one input, found {}", names())));
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
        // Costs and verification may be of larger ones.
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

    /// The graph, and what is known of its values.
    pub(in crate::prune) fn known(&self) -> (&'a Graph, &'a Facts) {
        (&self.analysis.graph, &self.analysis.facts)
    }

    fn facts(&self) -> &'a Facts {
        &self.analysis.facts
    }

    /// The batch that the graph fixes, if it does.
    pub(in crate::prune) fn fixed_batch(&self) -> Option<usize> {
        usize::try_from(self.shape.first()?.as_const()?).ok()
    }

    /// Sizes for every symbolic dimension at a batch.
    pub(in crate::prune) fn sizes(&self, batch: usize) -> Sizes {
        let mut given = self.given.clone();
        if let Some(name) = self.shape.first().and_then(Dim::as_symbol) {
            given.insert(name, i64::try_from(batch).unwrap_or(i64::MAX));
        }
        sizes_for(self.facts(), &given)
    }

    /// The shape of a batch of samples.
    ///
    /// # Errors
    /// A size that is not known.
    pub(in crate::prune) fn dims(&self, batch: usize) -> Result<Vec<usize>, Error> {
        let sizes = self.sizes(batch);
        let size = |dim: &Dim| dim.eval(&sizes).and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
        self.shape.iter().map(size).collect::<Option<_>>().ok_or_else(|| {
            Error::usage(format!("a size of input {:?} is not known", self.input))
                .in_file(self.path())
                .hint("give it with --size NAME=N")
        })
    }

    /// What a run on one sample costs.
    pub(in crate::prune) fn cost(&self) -> Cost {
        let sizes = self.sizes(1);
        self.analysis.count(|counter| counter.cost(None, &sizes))
    }
}
