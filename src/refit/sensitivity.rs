//! The weight of an error at a value of the original, by timestep.
//!
//! To first order, an error e at a value changes the network's output by J e, where J is the Jacobian of the output with
//! respect to that value. The squared error of the output, averaged over directions of e, is the squared error e times
//! the mean of `g^2` over all elements, with `g = J^T v` and v normal. This mean is the Gauss-Newton weight w(t) of the
//! value. One backward pass computes g for all values at once.

use std::collections::HashMap;

use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use super::{Probe, RefitOptions};
use crate::analysis::Analysis;
use crate::array::{Array, ArrayData};
use crate::error::Error;
use crate::gradient::loss::{Distance, LossTerm};
use crate::gradient::pass::{GradientPass, PassOptions};
use crate::gradient::{GradientGraph, GradientOptions, Network, TARGET, value_info};
use crate::lower::{Extent, Lowered};
use crate::macs::memory::refuse_beyond;
use crate::onnx::builder::Builder;
use crate::onnx::{DataType, attr_int};
use crate::runtime::{Device, Runtime, available_memory};

/// Weights of values by timestep.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Sensitivity {
    /// Timesteps, in ascending order.
    times: Vec<f64>,
    /// By the name of a value, the smoothed logarithm of its weight at each timestep.
    logarithms: HashMap<String, Vec<f64>>,
}

impl Sensitivity {
    /// Computes the weights of the values of the original with these names, on the samples of `probe`.
    ///
    /// # Errors
    /// An operator has no gradient, or a network does not run.
    pub(super) fn of(
        analysis: &Analysis,
        names: &[String],
        probe: &Probe<'_>,
        options: &RefitOptions,
        runtime: &Runtime,
        progress: &mut dyn FnMut(usize, usize) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let facts = analysis.facts_at(probe.sizes)?;
        let lowered = Lowered::new(&analysis.model, &analysis.graph, &analysis.operators, &facts, Extent::All)?;
        let wanted_values: Vec<usize> = names.iter().filter_map(|name| lowered.graph.value(name)).collect();
        let term = LossTerm { channels: probe.channels, ..LossTerm::squared(probe.prediction) };
        let gradients = GradientOptions {
            sizes: probe.sizes.clone(),
            prediction: Some(probe.prediction.to_owned()),
            loss: vec![LossTerm { distance: Distance::InnerProduct, ..term }],
            wanted_values,
            ..GradientOptions::default()
        };
        let network = Network::of(&lowered, &analysis.graph);
        let mut graph = GradientGraph::of(&network, &gradients, options.device == Device::Cpu)?;
        // The session keeps weights in internal layouts besides those of the file, and gradients during the computation.
        let weights = analysis.model.total_bytes()?.saturating_mul(3);
        let needed = graph.activation_bytes.saturating_mul(3) / 2 + weights;
        refuse_beyond(available_memory(), needed, "the backward pass for the weights of timesteps")
            .map_err(|error| Error::unsupported(error.to_string()))?;
        reduce_gradients(&mut graph);
        let pass = PassOptions {
            device: options.device,
            allow_fallback: options.allow_fallback,
            threads: options.threads,
            ..PassOptions::default()
        };
        let mut pass = GradientPass::with_options(runtime, &graph, &analysis.model, &pass)?;
        let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(options.seed);
        let mut by_time: Vec<(f64, Vec<f64>)> = Vec::new();
        let chunks = probe.data.chunks();
        let dims: Vec<usize> = graph.target_shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
        for chunk in 0..chunks {
            progress(chunk, chunks)?;
            let mut inputs = probe.data.inputs(chunk)?;
            let values = (0..dims.iter().product()).map(|_| StandardNormal.sample(&mut random)).collect();
            inputs.push((TARGET.to_owned(), Array { dims: dims.clone(), data: ArrayData::F32(values) }));
            let inputs = pass.needed(inputs);
            let found = pass.run(&analysis.model, &inputs)?;
            let mean = |values: &Vec<f32>| values.first().copied().map_or(f64::NAN, f64::from);
            by_time.push((probe.data.time(chunk), found.values.iter().map(mean).collect()));
        }
        by_time.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut logarithms = HashMap::new();
        for (at, gradient) in graph.value_gradients.iter().enumerate() {
            let raw: Vec<f64> = by_time.iter().map(|(_, values)| values[at]).collect();
            if raw.iter().all(|value| value.is_finite() && *value > 0.0) {
                let name = lowered.graph.values[gradient.value].name.clone();
                logarithms.insert(name, smoothed(&raw.iter().map(|value| value.ln()).collect::<Vec<_>>()));
            }
        }
        Ok(Self { times: by_time.into_iter().map(|(time, _)| time).collect(), logarithms })
    }

    /// Whether the weights of a value are known.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.logarithms.contains_key(name)
    }

    /// Returns the weight of a value at a timestep, of arbitrary scale; 1 if it is not known.
    pub(super) fn weight(&self, name: &str, time: f64) -> f64 {
        let Some(values) = self.logarithms.get(name) else { return 1.0 };
        let after = self.times.partition_point(|at| *at < time);
        let found = match (after.checked_sub(1), self.times.get(after)) {
            (None, _) => values.first().copied(),
            (Some(_), None) => values.last().copied(),
            (Some(before), Some(next)) => {
                let share = (time - self.times[before]) / (next - self.times[before]);
                Some(values[before] + share * (values[after] - values[before]))
            }
        };
        found.map_or(1.0, f64::exp)
    }

    /// Returns the mean weight of a value over timesteps, for normalising its weights.
    pub(super) fn mean(&self, name: &str) -> f64 {
        match self.logarithms.get(name) {
            Some(values) if !values.is_empty() => {
                values.iter().map(|value| value.exp()).sum::<f64>() / values.len() as f64
            }
            _ => 1.0,
        }
    }
}

/// Replaces every gradient with respect to a value by the mean of its squares, so that only scalars leave the graph.
fn reduce_gradients(of: &mut GradientGraph) {
    let graph = of.model.graph.get_or_insert_default();
    let mut builder = Builder::default();
    for gradient in &mut of.value_gradients {
        let (square, mean) = (format!("{}/square", gradient.output), format!("{}/mean", gradient.output));
        builder.push("", "Mul", &[&gradient.output, &gradient.output], vec![square.clone()], vec![]);
        // ReduceMean without axes reduces all of them in every opset.
        builder.push("", "ReduceMean", &[&square], vec![mean.clone()], vec![attr_int("keepdims", 0)]);
        graph.output.retain(|output| output.name != gradient.output);
        graph.output.push(value_info(&mean, DataType::Float, &[]));
        gradient.output = mean;
    }
    graph.node.append(&mut builder.nodes);
}

/// Averages every value with its neighbours, because few samples make a noisy weight.
fn smoothed(values: &[f64]) -> Vec<f64> {
    let of = |at: usize| {
        let (first, last) = (at.saturating_sub(1), (at + 1).min(values.len() - 1));
        (values[first] + 2.0 * values[at] + values[last]) / 4.0
    };
    (0..values.len()).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_interpolated_between_timesteps() {
        let logarithms = HashMap::from([("v".to_owned(), vec![0.0, 2.0f64.ln()])]);
        let weights = Sensitivity { times: vec![10.0, 20.0], logarithms };
        assert_eq!(weights.weight("v", 0.0), 1.0);
        assert_eq!(weights.weight("v", 99.0), 2.0);
        assert!((weights.weight("v", 15.0) - 2.0f64.sqrt()).abs() < 1e-12);
        assert_eq!(weights.weight("other", 15.0), 1.0);
        assert!((weights.mean("v") - 1.5).abs() < 1e-12);
    }

    #[test]
    fn smoothing_keeps_a_constant() {
        assert_eq!(smoothed(&[3.0, 3.0, 3.0]), [3.0, 3.0, 3.0]);
        assert_eq!(smoothed(&[0.0, 4.0, 0.0]), [1.0, 2.0, 1.0]);
    }
}
