//! The equations of one fit, added up chunk by chunk, and its solution as tensors.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::ArrayD;
use rand::SeedableRng;
use rand::seq::index;

use super::RefitOptions;
use super::arrays::back;
use super::layers::{Bias, Event, Layer};
use super::network::Network;
use super::segment::Changed;
use super::solve::System;
use crate::array::{Array, ArrayData};
use crate::error::Error;
use crate::graph::ValueId;
use crate::onnx::TensorProto;
use crate::onnx::floats::Floats;

/// The elements of a float32 tensor.
pub(super) fn elements(tensor: &TensorProto) -> Vec<f32> {
    Floats::of(tensor.element_type(), &crate::graph::tensor::stored_bytes(tensor))
        .map(Floats::to_f32)
        .unwrap_or_default()
}

/// A constant of a network in float32.
pub(super) fn constant(network: &Network, value: ValueId) -> Result<Array, Error> {
    let (model, graph) = (&network.lowered.model, network.graph());
    let fail = || Error::unmet(format!("{:?} is no constant whose elements can be read", graph.values[value].name));
    let tensor = graph.tensor(model, value).ok_or_else(fail)?;
    let bytes = model.tensor_bytes(tensor)?;
    let values = Floats::of(tensor.element_type(), &bytes).map(Floats::to_f32).ok_or_else(fail)?;
    let dims = tensor.dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    Array::new(dims, ArrayData::F32(values)).map_err(|_| fail())
}

/// What a fit has found.
#[derive(Debug)]
pub(super) struct Found {
    /// By layer, its new weight.
    pub(super) weights: Vec<TensorProto>,
    /// The layer that takes up the bias, and that.
    pub(super) bias: Option<(usize, TensorProto)>,
    /// What was left before and after, over the squares of the target.
    pub(super) errors: (f64, f64),
}

/// The weights of a layer before the fit.
struct Old {
    name: String,
    dims: Vec<i64>,
    values: Vec<f32>,
    /// By group, the matrix `[columns, outputs]`.
    matrices: Vec<Vec<f32>>,
}

/// The equations of one event.
pub(super) struct Fit<'a> {
    network: &'a Network,
    event: &'a Event,
    options: &'a RefitOptions,
    old: Vec<Old>,
    /// The layer that takes up the bias, the bias before, and its name and sizes.
    bias: Option<(usize, Vec<f32>, String, Vec<i64>)>,
    /// By group.
    systems: Vec<System>,
    rows_per_chunk: usize,
    at: usize,
    /// The sum of the squares of the targets.
    squares: f64,
    par: Par,
}

impl<'a> Fit<'a> {
    pub(super) fn new(
        network: &'a Network,
        event: &'a Event,
        changed: &Changed,
        options: &'a RefitOptions,
        (at, chunks): (usize, usize),
    ) -> Result<Self, Error> {
        let graph = network.graph();
        let read = |value: ValueId| -> Result<(String, Vec<i64>, Vec<f32>), Error> {
            let name = graph.values[value].name.clone();
            if let Some(tensor) = changed.weights.get(&name) {
                return Ok((name, tensor.dims.clone(), elements(tensor)));
            }
            let array = constant(network, value)?;
            let dims = array.dims.iter().map(|size| *size as i64).collect();
            let ArrayData::F32(values) = array.data else {
                return Err(Error::unmet(format!("{name:?} is not float32")));
            };
            Ok((name, dims, values))
        };
        let mut old = Vec::new();
        for layer in &event.layers {
            let (name, dims, values) = read(layer.weight)?;
            let matrix = |group: usize| layer.rows.places(group).map(|place| values[place]).collect();
            let matrices = (0..layer.rows.groups()).map(matrix).collect();
            old.push(Old { name, dims, values, matrices });
        }
        let mut bias = None;
        for (number, layer) in event.layers.iter().enumerate() {
            let outputs = layer.rows.outputs() * layer.rows.groups();
            match &layer.bias {
                Some(Bias::Slot { value: Some(value), .. } | Bias::Added { value }) => {
                    let (name, dims, values) = read(*value)?;
                    if values.len() == outputs {
                        bias = Some((number, values, name, dims));
                        break;
                    }
                }
                Some(Bias::Slot { value: None, .. }) if bias.is_none() => {
                    let is_own = layer.rows.groups() == 1 && layer.rows.outputs() > 1;
                    let output = &graph.values[layer.output].name;
                    if is_own {
                        let name = format!("{output}/__refit_bias");
                        bias = Some((number, vec![0.0; outputs], name, vec![outputs as i64]));
                    }
                }
                _ => {}
            }
        }
        let first = event.layers.first().ok_or_else(|| Error::unmet("a fit of no layer"))?;
        let rows_per_chunk = options.rows.div_ceil(chunks.max(1)).clamp(1, first.rows.count().max(1));
        let columns = event.layers.iter().map(|layer| layer.rows.columns()).sum();
        let rows = rows_per_chunk * chunks;
        let systems = (0..first.rows.groups()).map(|_| System::new(columns, first.rows.outputs(), rows)).collect();
        let par = Par::rayon(0);
        Ok(Self { network, event, options, old, bias, systems, rows_per_chunk, at, squares: 0.0, par })
    }

    /// Adds a chunk: `target` is the original's value at the kept channels, `value` gives those of the pruned network.
    pub(super) fn add(
        &mut self,
        chunk: usize,
        target: ArrayD<f32>,
        weight: f64,
        value: &mut dyn FnMut(ValueId) -> Result<ArrayD<f32>, Error>,
    ) -> Result<(), Error> {
        let Some(first) = self.event.layers.first() else { return Ok(()) };
        let others = self.event.addends();
        let mut failed = None;
        let mut addend = |other: ValueId| {
            if !others.contains(&other) {
                return None;
            }
            value(other).map_err(|error| failed = Some(error)).ok()
        };
        let y = if self.event.layers.len() == 1 {
            back(target, &first.steps, &mut addend)
        } else {
            // None of several layers moves elements: all addends have the form of the target.
            let steps: Vec<super::layers::Step> =
                others.iter().map(|value| super::layers::Step::Add { value: *value }).collect();
            back(target, &steps, &mut addend)
        };
        if let Some(error) = failed {
            return Err(error);
        }
        let name = || self.network.graph().nodes[first.node].name.clone();
        let y = y.ok_or_else(|| Error::unmet(format!("the target of node {:?} does not fit its output", name())))?;
        let y = y.as_slice().ok_or_else(|| Error::unmet("a target that is not contiguous"))?;
        let inputs = self.event.layers.iter().map(|layer| value(layer.input)).collect::<Result<Vec<_>, _>>()?;
        let rows = self.chosen(first, chunk);
        let (outputs, columns) =
            (first.rows.outputs(), self.event.layers.iter().map(|layer| layer.rows.columns()).sum());
        for group in 0..first.rows.groups() {
            let mut x = vec![0.0f32; rows.len() * columns];
            let mut start = 0;
            let mut matrix = Vec::with_capacity(columns * outputs);
            for ((layer, input), old) in self.event.layers.iter().zip(&inputs).zip(&self.old) {
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
            self.squares += weight * r.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
            let product = MatMut::from_row_major_slice_mut(&mut r, rows.len(), outputs);
            let of_x = MatRef::from_row_major_slice(&x, rows.len(), columns);
            matmul(product, Accum::Add, of_x, MatRef::from_row_major_slice(&matrix, columns, outputs), -1.0, self.par);
            if let Some((number, bias, ..)) = &self.bias {
                let scale = self.bias_scale(*number) as f32;
                let own = &bias[group * outputs..(group + 1) * outputs];
                for row in r.chunks_exact_mut(outputs) {
                    row.iter_mut().zip(own).for_each(|(r, bias)| *r -= scale * bias);
                }
            }
            self.systems[group].add(&x, &r, weight, self.par);
        }
        Ok(())
    }

    fn bias_scale(&self, layer: usize) -> f64 {
        match self.event.layers[layer].bias {
            Some(Bias::Slot { scale, .. }) => scale,
            _ => 1.0,
        }
    }

    /// The rows of a chunk that count, in ascending order.
    fn chosen(&self, layer: &Layer, chunk: usize) -> Vec<usize> {
        let count = layer.rows.count();
        if self.rows_per_chunk >= count {
            return (0..count).collect();
        }
        let seed = self.options.seed ^ ((self.at as u64) << 32) ^ chunk as u64;
        let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(seed);
        let mut rows = index::sample(&mut random, count, self.rows_per_chunk).into_vec();
        rows.sort_unstable();
        rows
    }

    /// The new weights; `None` where the error does not fall.
    pub(super) fn solve(self) -> Result<Option<Found>, Error> {
        let has_bias = self.bias.as_ref().is_some_and(|(number, ..)| self.bias_scale(*number) != 0.0);
        let mut weights: Vec<Vec<f32>> = self.old.iter().map(|old| old.values.clone()).collect();
        let mut bias = self.bias.as_ref().map(|(_, values, ..)| values.clone());
        let (mut before, mut after) = (0.0, 0.0);
        for (group, system) in self.systems.iter().enumerate() {
            let Some(solution) = system.solve(self.options.ridge, has_bias, self.par) else { continue };
            before += solution.before;
            // A group that gets no better stays as it is.
            if !solution.after.is_finite() || solution.after >= solution.before {
                after += solution.before;
                continue;
            }
            after += solution.after;
            let mut change = solution.change.iter();
            for (layer, weights) in self.event.layers.iter().zip(&mut weights) {
                for (place, change) in layer.rows.places(group).zip(&mut change) {
                    weights[place] = (f64::from(weights[place]) + change) as f32;
                }
            }
            if let (Some(bias), Some(change), Some((number, ..))) = (&mut bias, solution.bias, &self.bias) {
                let scale = self.bias_scale(*number);
                let own = &mut bias[group * change.len()..];
                own.iter_mut()
                    .zip(change)
                    .for_each(|(bias, change)| *bias = (f64::from(*bias) + change / scale) as f32);
            }
        }
        let is_finite = weights.iter().flatten().chain(bias.iter().flatten()).all(|value| value.is_finite());
        if !is_finite || after >= before {
            return Ok(None);
        }
        let weights = self.old.iter().zip(&weights);
        let weights = weights.map(|(old, values)| TensorProto::of_floats(&old.name, values, &old.dims)).collect();
        let bias = self.bias.as_ref().zip(bias).filter(|_| has_bias);
        let bias = bias.map(|((number, _, name, dims), values)| (*number, TensorProto::of_floats(name, &values, dims)));
        let squares = self.squares.max(f64::MIN_POSITIVE);
        Ok(Some(Found { weights, bias, errors: (before / squares, after / squares) }))
    }
}
