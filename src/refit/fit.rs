//! The equations of one fit, accumulated chunk by chunk, and its solution as tensors.

use std::collections::HashMap;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use ndarray::{ArrayD, IxDyn};
use rand::SeedableRng;
use rand::seq::index;

use super::RefitOptions;
use super::arrays::back;
use super::held::Held;
use super::layers::{Bias, Event, Layer, Step, Use};
use super::segment::Changed;
use super::solve::{Centred, System};
use super::stored::Stored;
use crate::error::Error;
use crate::graph::ValueId;
use crate::onnx::TensorProto;

/// The result of a fit.
#[derive(Debug)]
pub(super) struct Found {
    /// The stored constants that change.
    pub(super) tensors: Vec<TensorProto>,
    /// New biases, each with its use and the layer that has it.
    pub(super) biases: Vec<(usize, usize, TensorProto)>,
    /// The errors before and after, divided by the squares of the target.
    pub(super) errors: (f64, f64),
}

/// The weight of a layer before the fit.
struct Old {
    value: ValueId,
    dims: Vec<usize>,
    values: Vec<f32>,
    /// By group, the matrix of shape `[columns, outputs]`.
    matrices: Vec<Vec<f32>>,
}

/// The bias of a use before the fit.
struct OldBias {
    /// The layer that has it.
    layer: usize,
    values: Vec<f32>,
    name: String,
    dims: Vec<i64>,
    scale: f64,
}

/// The equations of one event.
pub(super) struct Fit<'a> {
    stored: Stored<'a>,
    event: &'a Event,
    options: &'a RefitOptions,
    /// By layer of the first use; other uses read the same weights.
    old: Vec<Old>,
    /// By use.
    biases: Vec<Option<OldBias>>,
    /// By use, the sum of biases that are not fitted, for every output.
    fixed: Vec<Vec<f32>>,
    /// Whether all uses have the same bias.
    has_common_bias: bool,
    /// Constants that are added between the layer and its target.
    constants: HashMap<ValueId, ArrayD<f32>>,
    /// By group.
    pub(super) systems: Vec<System>,
    /// By group, rows of the chunks that are held out.
    pub(super) held: Vec<Held>,
    /// Number of rows of a held-out chunk; 0 if there are too few chunks to hold some out.
    held_per_chunk: usize,
    /// By use.
    rows_per_chunk: Vec<usize>,
    at: usize,
    /// The sum of the squares of the targets.
    pub(super) squares: f64,
    par: Par,
}

impl<'a> Fit<'a> {
    /// Sets up the equations. `memory` is their maximum size in bytes.
    pub(super) fn new(
        stored: Stored<'a>,
        event: &'a Event,
        changed: &Changed,
        options: &'a RefitOptions,
        (at, chunks, memory): (usize, usize, u64),
    ) -> Result<Self, Error> {
        let first = event.uses.first().ok_or_else(|| Error::unmet("a fit of no layer"))?;
        let mut old = Vec::new();
        for layer in &first.layers {
            let array = stored.value(layer.weight, changed)?;
            let (dims, values) = (array.shape().to_vec(), array.iter().copied().collect::<Vec<f32>>());
            let matrix = |group: usize| layer.rows.places(group).map(|place| values[place]).collect();
            let matrices = (0..layer.rows.groups()).map(matrix).collect();
            old.push(Old { value: layer.weight, dims, values, matrices });
        }
        let biases = event.uses.iter().map(|of| old_bias(stored, of, changed)).collect::<Result<Vec<_>, _>>()?;
        let fixed = event.uses.iter().zip(&biases).map(|(of, bias)| fixed_bias(stored, of, bias.as_ref(), changed));
        let fixed = fixed.collect::<Result<Vec<_>, _>>()?;
        let name = |of: &Option<OldBias>| of.as_ref().map(|bias| bias.name.clone());
        let has_common_bias = biases.len() > 1 && biases.iter().all(|of| of.is_some() && name(of) == name(&biases[0]));
        let mut constants = HashMap::new();
        for value in event.uses.iter().flat_map(Use::addends).filter(|value| !stored.network.is_computed(*value)) {
            constants.insert(value, stored.value(value, changed)?);
        }
        let of_first = first.layers.first().ok_or_else(|| Error::unmet("a fit of no layer"))?;
        let (groups, outputs) = (of_first.rows.groups(), of_first.rows.outputs());
        let columns = first.layers.iter().map(|layer| layer.rows.columns()).sum();
        let memory = memory / groups.max(1) as u64;
        let held = System::rows_held(columns, outputs, memory).unwrap_or(usize::MAX);
        let per_chunk = options.rows.min(held).div_ceil((chunks * event.uses.len()).max(1));
        let per_chunk = |of: &Use| per_chunk.clamp(1, of.layers[0].rows.count().max(1));
        let rows_per_chunk: Vec<usize> = event.uses.iter().map(per_chunk).collect();
        let rows = rows_per_chunk.iter().sum::<usize>() * chunks;
        let has_bias = |of: &Option<OldBias>| of.as_ref().is_some_and(|bias| bias.scale != 0.0);
        let centred: Vec<bool> = match has_common_bias {
            true => vec![has_bias(&biases[0])],
            false => biases.iter().map(has_bias).collect(),
        };
        let systems = (0..groups).map(|_| System::new(columns, outputs, rows, &centred, memory)).collect();
        let par = Par::rayon(0);
        let (at, squares) = (at, 0.0);
        let held = (0..groups).map(|_| Held::new(columns, outputs)).collect();
        let held_per_chunk = if chunks < 2 * Held::EVERY { 0 } else { Held::ROWS.div_ceil(chunks / Held::EVERY) };
        Ok(Self {
            stored,
            event,
            options,
            old,
            biases,
            fixed,
            has_common_bias,
            constants,
            systems,
            held,
            held_per_chunk,
            rows_per_chunk,
            at,
            squares,
            par,
        })
    }

    /// Adds a chunk of a use. `target` is the original's value at the kept channels; `value` returns values of the pruned
    /// network.
    pub(super) fn add(
        &mut self,
        (number, chunk): (usize, usize),
        target: ArrayD<f32>,
        weight: f64,
        value: &mut dyn FnMut(ValueId) -> Result<ArrayD<f32>, Error>,
    ) -> Result<(), Error> {
        let of = &self.event.uses[number];
        let Some(first) = of.layers.first() else { return Ok(()) };
        let others = of.addends();
        let mut failed = None;
        let mut addend = |other: ValueId| {
            if let Some(constant) = self.constants.get(&other) {
                return Some(constant.clone());
            }
            if !others.contains(&other) {
                return None;
            }
            value(other).map_err(|error| failed = Some(error)).ok()
        };
        let y = if of.layers.len() == 1 {
            back(target, &first.steps, &mut addend)
        } else {
            // Several layers of one use have no moves among their steps: all addends have the shape of the target.
            let steps: Vec<Step> = others.iter().map(|value| Step::Add { value: *value }).collect();
            back(target, &steps, &mut addend)
        };
        if let Some(error) = failed {
            return Err(error);
        }
        let name = || self.stored.network.graph().nodes[first.node].name.clone();
        let y = y.ok_or_else(|| Error::unmet(format!("the target of node {:?} does not match its output", name())))?;
        let y = y.as_slice().ok_or_else(|| Error::unmet("a target that is not contiguous"))?;
        let inputs = of.layers.iter().map(|layer| value(layer.input)).collect::<Result<Vec<_>, _>>()?;
        let is_held = self.held_per_chunk > 0 && chunk % Held::EVERY == Held::EVERY - 1;
        let mut rows = self.chosen(first, number, chunk);
        if is_held {
            // Evenly spaced among the chosen rows.
            let every = rows.len().div_ceil(self.held_per_chunk).max(1);
            rows = rows.into_iter().step_by(every).collect();
        }
        let (outputs, columns) = (first.rows.outputs(), of.layers.iter().map(|layer| layer.rows.columns()).sum());
        for group in 0..first.rows.groups() {
            let mut x = vec![0.0f32; rows.len() * columns];
            let mut start = 0;
            let mut matrix = Vec::with_capacity(columns * outputs);
            for ((layer, input), old) in of.layers.iter().zip(&inputs).zip(&self.old) {
                let input = input.as_slice().ok_or_else(|| Error::unmet("an input that is not contiguous"))?;
                layer.rows.gather(input, group, &rows, (&mut x, columns, start));
                if layer.linear.scale != 1.0 {
                    let scale = layer.linear.scale as f32;
                    let own = start..start + layer.rows.columns();
                    x.chunks_exact_mut(columns).for_each(|row| row[own.clone()].iter_mut().for_each(|x| *x *= scale));
                }
                matrix.extend_from_slice(&old.matrices[group]);
                start += layer.rows.columns();
            }
            let mut r = vec![0.0f32; rows.len() * outputs];
            first.rows.targets(y, group, &rows, &mut r);
            let squares = weight * r.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
            let product = MatMut::from_row_major_slice_mut(&mut r, rows.len(), outputs);
            let of_x = MatRef::from_row_major_slice(&x, rows.len(), columns);
            matmul(product, Accum::Add, of_x, MatRef::from_row_major_slice(&matrix, columns, outputs), -1.0, self.par);
            if let Some(bias) = &self.biases[number] {
                let scale = bias.scale as f32;
                let own = &bias.values[group * outputs..(group + 1) * outputs];
                for row in r.chunks_exact_mut(outputs) {
                    row.iter_mut().zip(own).for_each(|(r, bias)| *r -= scale * bias);
                }
            }
            let own = &self.fixed[number][group * outputs..(group + 1) * outputs];
            if own.iter().any(|fixed| *fixed != 0.0) {
                r.chunks_exact_mut(outputs).for_each(|row| row.iter_mut().zip(own).for_each(|(r, fixed)| *r -= fixed));
            }
            let number = if self.has_common_bias { 0 } else { number };
            if is_held {
                self.held[group].add(number, x, r, weight);
            } else {
                self.squares += squares;
                self.systems[group].add(number, &x, &r, weight, self.par);
            }
        }
        Ok(())
    }

    /// Returns the rows of a chunk that enter the equations, in ascending order.
    fn chosen(&self, layer: &Layer, number: usize, chunk: usize) -> Vec<usize> {
        let (count, wanted) = (layer.rows.count(), self.rows_per_chunk[number]);
        if wanted >= count {
            return (0..count).collect();
        }
        let seed = self.options.seed ^ ((self.at as u64) << 32) ^ ((number as u64) << 24) ^ chunk as u64;
        let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(seed);
        let mut rows = index::sample(&mut random, count, wanted).into_vec();
        rows.sort_unstable();
        rows
    }

    /// Solves the equations and returns the new constants. The inner `Err` is the reason why there are none.
    pub(super) fn solve(mut self, changed: &mut Changed) -> Result<Result<Found, String>, Error> {
        let layers = &self.event.uses[0].layers;
        let mut weights: Vec<Vec<f32>> = self.old.iter().map(|old| old.values.clone()).collect();
        let systems: Vec<System> = std::mem::take(&mut self.systems);
        let mut systems: Vec<Centred> = systems.into_iter().map(|system| system.centred(self.par)).collect();
        let mut solved: Vec<Option<(Mat<f64>, f64)>> = Vec::new();
        for (group, system) in systems.iter_mut().enumerate() {
            // A group whose error does not decrease keeps its weights.
            let solution = self.held[group].best(system, self.options.ridge, self.par);
            if let Some(solution) = &solution {
                let mut start = 0;
                for (layer, weights) in layers.iter().zip(&mut weights) {
                    let outputs = layer.rows.outputs();
                    for (at, place) in layer.rows.places(group).enumerate() {
                        let change = solution.change[(start + at / outputs, at % outputs)];
                        weights[place] = (f64::from(weights[place]) + change) as f32;
                    }
                    start += layer.rows.columns();
                }
            }
            solved.push(solution.map(|solution| (solution.change, solution.after)));
        }
        if solved.iter().all(Option::is_none) {
            return Ok(Err("its fit does not lower the error".to_owned()));
        }
        if !weights.iter().flatten().all(|value| value.is_finite()) {
            return Ok(Err("its fit produces weights that are not finite".to_owned()));
        }
        let mut tensors: Vec<TensorProto> = Vec::new();
        let mut is_exact = true;
        for (old, values) in self.old.iter().zip(&mut weights) {
            if self.stored.is_direct(old.value) {
                let name = &self.stored.network.graph().values[old.value].name;
                let dims: Vec<i64> = old.dims.iter().map(|size| *size as i64).collect();
                tensors.push(TensorProto::of_floats(name, values, &dims));
                continue;
            }
            let wanted = ArrayD::from_shape_vec(IxDyn(&old.dims), values.clone());
            let wanted = wanted.map_err(|error| Error::unmet(error.to_string()))?;
            match self.stored.assign(old.value, wanted, changed)? {
                Ok(assigned) => {
                    is_exact = false;
                    *values = assigned.weight;
                    tensors.extend(assigned.tensors);
                }
                Err(why) => return Ok(Err(why)),
            }
        }
        if !is_exact {
            // The error counts after rounding to the stored types.
            for (group, system) in systems.iter().enumerate() {
                let change = self.change(group, &weights);
                let after = system.after(&change, self.par);
                solved[group] = Some((change, after));
            }
        }
        let before: f64 = systems.iter().map(|system| system.before).sum();
        let after: f64 =
            solved.iter().zip(&systems).map(|(of, system)| of.as_ref().map_or(system.before, |of| of.1)).sum();
        if !after.is_finite() || after >= before {
            return Ok(Err("its fit does not lower the error".to_owned()));
        }
        let biases = self.new_biases(&systems, &solved);
        if !biases
            .iter()
            .all(|(_, _, bias)| super::stored::elements(bias).is_some_and(|all| all.iter().all(|of| of.is_finite())))
        {
            return Ok(Err("its fit produces a bias that is not finite".to_owned()));
        }
        let squares = self.squares.max(f64::MIN_POSITIVE);
        Ok(Ok(Found { tensors, biases, errors: (before / squares, after / squares) }))
    }

    /// Returns the difference of weights from the old ones, as the matrix of a group.
    fn change(&self, group: usize, weights: &[Vec<f32>]) -> Mat<f64> {
        let layers = &self.event.uses[0].layers;
        let columns = layers.iter().map(|layer| layer.rows.columns()).sum();
        let outputs = layers[0].rows.outputs();
        let mut change = Mat::zeros(columns, outputs);
        let mut start = 0;
        for ((layer, old), new) in layers.iter().zip(&self.old).zip(weights) {
            for (at, place) in layer.rows.places(group).enumerate() {
                change[(start + at / outputs, at % outputs)] = f64::from(new[place]) - f64::from(old.values[place]);
            }
            start += layer.rows.columns();
        }
        change
    }

    fn new_biases(&self, systems: &[Centred], solved: &[Option<(Mat<f64>, f64)>]) -> Vec<(usize, usize, TensorProto)> {
        let count = if self.has_common_bias { 1 } else { self.biases.len() };
        let mut biases = Vec::new();
        for (number, old) in self.biases.iter().enumerate().take(count) {
            let Some(old) = old.as_ref().filter(|old| old.scale != 0.0) else { continue };
            let mut values = old.values.clone();
            for (group, (system, found)) in systems.iter().zip(solved).enumerate() {
                let change = found.as_ref().and_then(|(change, _)| system.bias(number, change));
                let Some(change) = change else { continue };
                let own = &mut values[group * change.len()..];
                let new = |(bias, change): (&mut f32, f64)| *bias = (f64::from(*bias) + change / old.scale) as f32;
                own.iter_mut().zip(change).for_each(new);
            }
            biases.push((number, old.layer, TensorProto::of_floats(&old.name, &values, &old.dims)));
        }
        biases
    }
}

/// Returns the current bias of a use, or zeros if the file has none and can have one.
fn old_bias(stored: Stored<'_>, of: &Use, changed: &Changed) -> Result<Option<OldBias>, Error> {
    let graph = stored.network.graph();
    let mut found = None;
    for (number, layer) in of.layers.iter().enumerate() {
        let outputs = layer.rows.outputs() * layer.rows.groups();
        let scale = match layer.bias {
            Some(Bias::Slot { scale, .. }) => scale,
            _ => 1.0,
        };
        if let Some(value) = layer.bias_value() {
            let array = stored.value(value, changed)?;
            if array.len() == outputs {
                let dims = array.shape().iter().map(|size| *size as i64).collect();
                let (name, values) = (graph.values[value].name.clone(), array.iter().copied().collect());
                return Ok(Some(OldBias { layer: number, values, name, dims, scale }));
            }
        } else if layer.bias.is_some() && found.is_none() {
            let name = format!("{}/__refit_bias", graph.values[layer.output].name);
            let dims = vec![outputs as i64];
            found = Some(OldBias { layer: number, values: vec![0.0; outputs], name, dims, scale });
        }
    }
    Ok(found)
}

/// Returns the sum of the biases of a use that are not fitted: those that can't be, and those besides the fitted one.
fn fixed_bias(stored: Stored<'_>, of: &Use, fitted: Option<&OldBias>, changed: &Changed) -> Result<Vec<f32>, Error> {
    let count = of.layers.first().map_or(0, |layer| layer.rows.outputs() * layer.rows.groups());
    let mut sum = vec![0.0; count];
    for (number, layer) in of.layers.iter().enumerate() {
        let scale = match layer.bias {
            Some(Bias::Slot { scale, .. }) => scale,
            _ => 1.0,
        };
        let other = layer.bias_value().filter(|_| fitted.is_none_or(|fitted| fitted.layer != number));
        for (value, scale) in other.map(|value| (value, scale)).into_iter().chain(layer.fixed) {
            let array = stored.value(value, changed)?;
            let elements = array.iter().cycle().take(if array.is_empty() { 0 } else { count });
            sum.iter_mut().zip(elements).for_each(|(sum, value)| *sum += scale as f32 * value);
        }
    }
    Ok(sum)
}
