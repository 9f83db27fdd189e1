//! Intermediate values that a network shares with its teacher, and the part of each that the plan kept.

use std::borrow::Cow;
use std::collections::BTreeSet;

use regex::Regex;

use crate::analysis::Analysis;
use crate::array::{Array, ArrayData};
use crate::error::Error;
use crate::graph::fact::{Fact, static_shape};
use crate::graph::facts::Facts;
use crate::graph::sizes::Sizes;
use crate::graph::{Node, ValueId};
use crate::operator::couple::kept::Kept;
use crate::operator::part::{Part, PartCx};

/// Minimum and maximum number of automatically chosen values, if the network has as many.
const BORDERS: (usize, usize) = (4, 8);

/// Maximum number of values that an error lists.
const LISTED: usize = 12;

/// The choice of intermediate values that are compared with the teacher's.
#[derive(Clone, Debug)]
pub enum FeatureChoice {
    /// A few values of the residual stream, where its shape changes and in between.
    Auto,
    /// All values whose name, or whose node's name, matches.
    Matching(Regex),
}

/// An intermediate value of a network that is the kept part of a value of its teacher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name, the same in both networks.
    pub name: String,
    /// The indices that the cut kept on every axis of the teacher's value. `None`: all indices.
    pub kept: Vec<Option<Vec<usize>>>,
}

/// A network with the facts about its values at fixed sizes.
struct AtSizes<'a> {
    of: &'a Analysis,
    facts: Facts,
}

impl<'a> AtSizes<'a> {
    fn new((of, sizes): (&'a Analysis, &Sizes)) -> Result<Self, Error> {
        Ok(Self { of, facts: of.facts_at(sizes)? })
    }

    fn shape(&self, value: ValueId) -> Option<Vec<usize>> {
        static_shape(self.facts.values[value].as_ref()?.shape.as_ref()?)
    }

    fn is_float(&self, value: ValueId) -> bool {
        self.facts.values[value].as_ref().is_some_and(Fact::is_float)
    }

    /// Returns, by value, whether it is a floating point value that depends on the inputs.
    fn computed(&self) -> Vec<bool> {
        let mut changes = vec![false; self.of.graph.values.len()];
        self.of.graph.inputs.iter().for_each(|input| changes[*input] = true);
        for node in &self.of.graph.nodes {
            if node.inputs.iter().flatten().any(|value| changes[*value]) {
                node.outputs.iter().flatten().for_each(|value| changes[*value] = self.is_float(*value));
            }
        }
        self.of.graph.inputs.iter().for_each(|input| changes[*input] = false);
        changes
    }
}

/// The correspondence between a network (student) and the network that it was cut from (teacher).
pub struct Correspondence<'a> {
    teacher: AtSizes<'a>,
    student: AtSizes<'a>,
    kept: Option<&'a Kept>,
    /// By value of the student: whether it is computed from the inputs.
    computed: Vec<bool>,
}

impl<'a> Correspondence<'a> {
    /// Creates the correspondence at the sizes of a run. `kept` holds the teacher's channels that the plan of the cut
    /// keeps. Without a plan, values of the same shape correspond.
    ///
    /// # Errors
    /// A node contradicts its operator's specification at these sizes.
    pub fn new(
        teacher: (&'a Analysis, &Sizes),
        student: (&'a Analysis, &Sizes),
        kept: Option<&'a Kept>,
    ) -> Result<Self, Error> {
        let (teacher, student) = (AtSizes::new(teacher)?, AtSizes::new(student)?);
        let computed = student.computed();
        Ok(Self { teacher, student, kept, computed })
    }

    /// Returns the values to compare, in the order of the graph.
    ///
    /// # Errors
    /// Nothing matches, or a matching value has no counterpart in the teacher.
    pub fn features(&self, choice: &FeatureChoice) -> Result<Vec<Feature>, Error> {
        let fail = |text: String| Error::usage(text).in_file(self.student.of.model.path()).hint(self.advice());
        let values = match choice {
            FeatureChoice::Auto => self.borders(),
            FeatureChoice::Matching(pattern) => self.matching(pattern),
        };
        match (values.is_empty(), choice) {
            (true, FeatureChoice::Auto) => Err(fail("--distill-features auto: found no residual stream".to_owned())),
            (true, FeatureChoice::Matching(pattern)) => Err(fail(format!(
                "--distill-features {:?}: matches no name of a node or value that is computed from the inputs",
                pattern.as_str()
            ))),
            _ => values.into_iter().map(|value| self.feature(value).map_err(fail)).collect(),
        }
    }

    /// Returns the hint of an error: which values can be compared.
    fn advice(&self) -> String {
        let all = self.computed().filter(|value| self.feature(*value).is_ok()).count();
        let borders = self.borders();
        let chosen = if borders.is_empty() {
            self.computed().filter(|value| self.feature(*value).is_ok()).take(LISTED).collect()
        } else {
            borders
        };
        let names: Vec<&str> = chosen.iter().map(|value| self.name(*value)).collect();
        match names.as_slice() {
            [] => "no value of the network has a counterpart in the teacher: use the network that it was cut from as \
                   --teacher, and its plan as --plan"
                .to_owned(),
            names => format!("choose from the {all} values that can be compared, for example {}", names.join(", ")),
        }
    }

    fn name(&self, value: ValueId) -> &str {
        &self.student.of.graph.values[value].name
    }

    /// Iterates over the values that are computed from the inputs, in the order of the graph.
    fn computed(&self) -> impl Iterator<Item = ValueId> {
        let outputs = self.student.of.graph.nodes.iter().flat_map(|node| node.outputs.iter().flatten().copied());
        outputs.filter(|value| self.computed[*value])
    }

    fn matching(&self, pattern: &Regex) -> Vec<ValueId> {
        let graph = &self.student.of.graph;
        let is_meant = |value: &ValueId| {
            let of_node =
                graph.values[*value].producer.is_some_and(|(node, _)| pattern.is_match(&graph.nodes[node].name));
            of_node || pattern.is_match(self.name(*value))
        };
        self.computed().filter(is_meant).collect()
    }

    /// Returns the counterpart of a value, or the reason why there is none.
    fn feature(&self, value: ValueId) -> Result<Feature, String> {
        let name = self.name(value).to_owned();
        let lacks = |why: String| Err(format!("--distill-features: value {name:?} {why}"));
        let Some(original) = self.teacher.of.graph.value(&name).filter(|value| self.teacher.is_float(*value)) else {
            return lacks("does not exist in the teacher".to_owned());
        };
        let (Some(before), Some(after)) = (self.teacher.shape(original), self.student.shape(value)) else {
            return lacks("has an unknown shape".to_owned());
        };
        let layout = self.teacher.of.coupling.layouts[original].as_ref();
        let kept: Vec<Option<Vec<usize>>> = match (self.kept, layout) {
            (Some(kept), Some(layout)) => layout.axes.iter().map(|axis| kept.axis_indices(axis)).collect(),
            _ => vec![None; before.len()],
        };
        let fits = |((kept, before), after): ((&Option<Vec<usize>>, &usize), &usize)| {
            kept.as_ref().map_or(*before, Vec::len) == *after
        };
        let has_rank = kept.len() == before.len() && before.len() == after.len() && !after.is_empty();
        if !(has_rank && kept.iter().zip(&before).zip(&after).all(fits)) {
            let what = match self.kept {
                Some(_) => "this is not the part of it that the plan keeps",
                None => "without the plan of the cut (--plan), the kept part is unknown",
            };
            return lacks(format!("has shape {after:?}, in the teacher {before:?}: {what}"));
        }
        Ok(Feature { name, kept })
    }

    /// Returns values of the residual stream: sums of two values of the same shape, where one summand is the output of
    /// a layer, or several nodes take the sum as input. Chooses the last values before the teacher's shape changes, and
    /// further ones in between up to the minimum number.
    fn borders(&self) -> Vec<ValueId> {
        let graph = &self.student.of.graph;
        let mut stream: Vec<ValueId> = Vec::new();
        for sum in graph.nodes.iter().filter_map(|node| self.sum(node)) {
            let value = self.along(sum);
            let is_stream = self.adds_layer(sum) || self.readers(value).len() > 1;
            if is_stream && !stream.contains(&value) && self.feature(value).is_ok() {
                stream.push(value);
            }
        }
        let shape =
            |value: ValueId| self.teacher.of.graph.value(self.name(value)).and_then(|of| self.teacher.shape(of));
        let is_last = |at: &usize| stream.get(at + 1).is_none_or(|next| shape(*next) != shape(stream[*at]));
        let ends: Vec<usize> = (0..stream.len()).filter(is_last).collect();
        let mut chosen: BTreeSet<usize> = spread(&ends, BORDERS.1).into_iter().collect();
        let others: Vec<usize> = (0..stream.len()).filter(|at| !chosen.contains(at)).collect();
        chosen.extend(spread(&others, BORDERS.0.saturating_sub(chosen.len())));
        chosen.into_iter().map(|at| stream[at]).collect()
    }

    /// Returns the output of a node that adds two computed values of the output's shape.
    fn sum(&self, node: &Node) -> Option<ValueId> {
        let AtSizes { of, facts } = &self.student;
        let part = of.operators.get(node.id)?.part(&PartCx { node, facts })?;
        let output = node.output(0).filter(|output| part == Part::Sum && self.computed[*output])?;
        let shape = self.student.shape(output)?;
        let is_whole = |value: &Option<ValueId>| {
            value.is_some_and(|value| self.computed[value] && self.student.shape(value).as_ref() == Some(&shape))
        };
        (node.inputs.len() == 2 && node.inputs.iter().all(is_whole)).then_some(output)
    }

    /// Returns whether one of the two summands of a value is the output of a layer, up to a bias, a scale and a
    /// reshape. Neither summand may be computed from the other in this way, as in approximations of activations.
    fn adds_layer(&self, sum: ValueId) -> bool {
        let graph = &self.student.of.graph;
        let Some((node, _)) = graph.values[sum].producer else { return false };
        let &[Some(one), Some(other)] = graph.nodes[node].inputs.as_slice() else { return false };
        let (first, second) = (self.back(one), self.back(other));
        let is_apart = !first.0.contains(&other) && !second.0.contains(&one);
        is_apart && (first.1 || second.1)
    }

    /// Follows a value back through nodes that combine a single computed value with scalars or vectors only. Returns
    /// the values on the way, and whether the first of them is the output of a layer.
    fn back(&self, value: ValueId) -> (Vec<ValueId>, bool) {
        let graph = &self.student.of.graph;
        let mut way = vec![value];
        let mut at = value;
        while let Some((node, _)) = graph.values[at].producer {
            let (mut computed, mut axes) = (Vec::new(), 0);
            for input in graph.nodes[node].inputs.iter().flatten() {
                if self.computed[*input] {
                    computed.push(*input);
                } else if self.student.is_float(*input) {
                    let shape = self.student.shape(*input).unwrap_or_default();
                    axes = axes.max(shape.iter().filter(|size| **size > 1).count());
                }
            }
            let [one] = computed.as_slice() else { return (way, false) };
            if axes > 1 {
                return (way, true);
            }
            at = *one;
            way.push(at);
        }
        (way, false)
    }

    /// Returns the nodes that compute floating point values from a value.
    fn readers(&self, value: ValueId) -> BTreeSet<usize> {
        let graph = &self.student.of.graph;
        let gives = |node: &usize| graph.nodes[*node].outputs.iter().flatten().any(|output| self.computed[*output]);
        graph.values[value].consumers.iter().map(|(node, _)| *node).filter(gives).collect()
    }

    /// Follows a value forward through nodes that are its only reader and combine it with scalars, such as the scale of
    /// a block.
    fn along(&self, mut value: ValueId) -> ValueId {
        let graph = &self.student.of.graph;
        loop {
            let readers = self.readers(value);
            let (Some(node), 1) = (readers.first().map(|node| &graph.nodes[*node]), readers.len()) else {
                return value;
            };
            let is_number = |other: &ValueId| {
                let elements = self.student.shape(*other).map(|shape| shape.iter().product::<usize>());
                *other == value || !self.computed[*other] && elements == Some(1)
            };
            let next = node.output(0).filter(|next| self.student.shape(*next) == self.student.shape(value));
            match next.filter(|_| node.inputs.iter().flatten().all(is_number)) {
                Some(next) => value = next,
                None => return value,
            }
        }
    }
}

/// Returns at most `count` evenly spread elements, including the last.
fn spread(all: &[usize], count: usize) -> Vec<usize> {
    let count = count.min(all.len());
    (1..=count).map(|at| all[(at * all.len()).div_ceil(count) - 1]).collect()
}

impl Feature {
    /// Returns the part of the teacher's value that the network keeps.
    pub fn gathered(&self, mut array: Array) -> Array {
        for (axis, kept) in self.kept.iter().enumerate() {
            if let Some(kept) = kept {
                array = along_axis(&array, axis, kept);
            }
        }
        array
    }
}

/// Returns the elements in float32.
fn floats(array: &Array) -> Cow<'_, [f32]> {
    match &array.data {
        ArrayData::F32(values) => Cow::Borrowed(values),
        _ => Cow::Owned(array.to_f64().into_iter().map(|value| value as f32).collect()),
    }
}

/// Gathers these indices of an axis, in float32.
fn along_axis(array: &Array, axis: usize, places: &[usize]) -> Array {
    let inner: usize = array.dims[axis + 1..].iter().product();
    let run = array.dims[axis] * inner;
    let values = floats(array);
    let mut taken = Vec::with_capacity(values.len() / array.dims[axis].max(1) * places.len());
    for block in values.chunks(run.max(1)) {
        for place in places {
            taken.extend_from_slice(&block[place * inner..(place + 1) * inner]);
        }
    }
    let mut dims = array.dims.clone();
    dims[axis] = places.len();
    Array { dims, data: ArrayData::F32(taken) }
}

/// Returns one divided by the mean square of the elements of every row of axis 0, so that differences count relative to
/// the row. Zero for a row of zeros.
pub fn weights_of_rows(array: &Array) -> Vec<f32> {
    let row = array.dims.iter().skip(1).product::<usize>().max(1);
    let weight = |row: &[f32]| {
        let square = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / row.len() as f64;
        if square > 0.0 { (1.0 / square) as f32 } else { 0.0 }
    };
    floats(array).chunks(row).map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_indices_are_gathered_on_every_axis() {
        let array = Array { dims: vec![2, 3, 2], data: ArrayData::F32((0..12).map(|at| at as f32).collect()) };
        let feature = Feature { name: "x".to_owned(), kept: vec![None, Some(vec![0, 2]), Some(vec![1])] };
        let taken = feature.gathered(array);
        assert_eq!((taken.dims.as_slice(), taken.to_f64()), ([2, 2, 1].as_slice(), vec![1.0, 5.0, 7.0, 11.0]));
        assert_eq!(weights_of_rows(&taken), [1.0 / 13.0, 1.0 / 85.0]);
        assert_eq!(weights_of_rows(&Array { dims: vec![1, 2], data: ArrayData::F32(vec![0.0; 2]) }), [0.0]);
    }

    #[test]
    fn elements_are_spread_evenly_and_include_the_last() {
        let all: Vec<usize> = (10..20).collect();
        assert_eq!(spread(&all, 2), [14, 19]);
        assert_eq!(spread(&all, 3), [13, 16, 19]);
        assert_eq!(spread(&all, 20), all);
        assert!(spread(&all, 0).is_empty() && spread(&[], 3).is_empty());
    }
}
