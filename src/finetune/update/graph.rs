//! The update in device memory.
//!
//! Every tensor is bound once, as an input and as the output that replaces it, so there is a single copy of the states.
//! Only the norm is copied to the CPU in a step. Weights and states are copied only for evaluations and checkpoints.

use super::super::optimizer::{OptimizerOptions, WeightState};
use super::super::pass::{PassTensors, TrainingPass};
use super::At;
use super::graphs::{
    AVERAGE, FIRST, GRADIENT, NORM, SECOND, SHARE, SUM, WEIGHT, input, norm, output, scalars, step, summing,
};
use crate::array::{Array, ArrayData};
use crate::gradient::pass::first as only;
use crate::runtime::{BoundSession, DeviceTensor, RuntimeError};

/// The state of the optimizer in device memory.
#[derive(Debug)]
pub(super) struct GraphUpdate {
    sums: Option<Sums>,
    norm: BoundSession,
    /// In CPU memory.
    norm_value: DeviceTensor,
    step: BoundSession,
    first: Vec<DeviceTensor>,
    second: Vec<DeviceTensor>,
    /// Empty if there is no moving average.
    average: Vec<DeviceTensor>,
}

/// The sums of the gradients over several runs.
#[derive(Debug)]
struct Sums {
    begin: BoundSession,
    add: BoundSession,
    values: Vec<DeviceTensor>,
}

fn scalar(value: f32) -> Array {
    Array { dims: Vec::new(), data: ArrayData::F32(vec![value]) }
}

impl GraphUpdate {
    pub(super) fn new(pass: &mut TrainingPass, options: &OptimizerOptions, runs: usize) -> Result<Self, RuntimeError> {
        let (runtime, device) = (pass.runtime().clone(), pass.device());
        let place = (&runtime, device);
        let PassTensors { weights, gradients, transfer } = pass.tensors();
        let shapes: Vec<Vec<usize>> = weights.iter().map(|weight| weight.dims().to_vec()).collect();
        let mut sums = match runs {
            0 | 1 => None,
            _ => Some(Sums::new(place, &shapes, gradients)?),
        };
        let mut norm = norm(place, &shapes)?;
        let mut norm_value = norm.host_tensor(&[])?;
        norm.bind_output(NORM, &mut norm_value)?;
        let mut step = step(place, &shapes, options)?;
        let (mut first, mut second, mut average) = (Vec::new(), Vec::new(), Vec::new());
        for (at, weight) in weights.iter_mut().enumerate() {
            let gradient = sums.as_mut().map_or(&gradients[at], |sums| &sums.values[at]);
            norm.bind_input(&input(GRADIENT, at), gradient)?;
            step.bind_input(&input(GRADIENT, at), gradient)?;
            let zeros = vec![0.0; weight.dims().iter().product()];
            for (kind, states) in [(FIRST, &mut first), (SECOND, &mut second)] {
                let mut state = step.device_tensor(weight.dims())?;
                transfer.write(&zeros, &mut state)?;
                replace(&mut step, kind, at, &mut state)?;
                states.push(state);
            }
            if options.ema.is_some() {
                let mut state = step.device_tensor(weight.dims())?;
                transfer.copy(weight, &mut state)?;
                replace(&mut step, AVERAGE, at, &mut state)?;
                average.push(state);
            }
            replace(&mut step, WEIGHT, at, weight)?;
        }
        Ok(Self { sums, norm, norm_value, step, first, second, average })
    }

    pub(super) fn collect(&mut self, run: usize, runs: usize) -> Result<(), RuntimeError> {
        let Some(sums) = &mut self.sums else {
            return Err(RuntimeError::RunFailed { message: "an update for a single run got several runs".to_owned() });
        };
        let graph = if run == 0 { &mut sums.begin } else { &mut sums.add };
        graph.set_input(SHARE, &scalar(1.0 / runs as f32))?;
        graph.run()
    }

    pub(super) fn step(
        &mut self,
        options: &OptimizerOptions,
        At { step, rate, advances }: At,
    ) -> Result<f64, RuntimeError> {
        self.norm.run()?;
        let norm = only(self.norm_value.values()?);
        if advances && norm.is_finite() {
            for (name, value) in scalars(&options.factors(step, rate, norm)) {
                self.step.set_input(name, &scalar(value))?;
            }
            self.step.run()?;
        }
        Ok(norm)
    }

    pub(super) fn averages(&self, pass: &mut TrainingPass) -> Result<Option<Vec<Vec<f32>>>, RuntimeError> {
        let transfer = pass.tensors().transfer;
        let copies: Vec<_> = self.average.iter().map(|state| transfer.read(state)).collect::<Result<_, _>>()?;
        Ok((copies.len() == self.first.len()).then_some(copies))
    }

    pub(super) fn states(&self, pass: &mut TrainingPass) -> Result<Vec<WeightState>, RuntimeError> {
        let transfer = pass.tensors().transfer;
        let mut states = Vec::with_capacity(self.first.len());
        for (at, (first, second)) in self.first.iter().zip(&self.second).enumerate() {
            let average = self.average.get(at).map(|state| transfer.read(state)).transpose()?.unwrap_or_default();
            states.push(WeightState { first: transfer.read(first)?, second: transfer.read(second)?, average });
        }
        Ok(states)
    }

    pub(super) fn restore(&mut self, pass: &mut TrainingPass, states: &[WeightState]) -> Result<(), RuntimeError> {
        let transfer = pass.tensors().transfer;
        for (at, state) in states.iter().enumerate() {
            transfer.write(&state.first, &mut self.first[at])?;
            transfer.write(&state.second, &mut self.second[at])?;
            if let Some(average) = self.average.get_mut(at) {
                transfer.write(&state.average, average)?;
            }
        }
        Ok(())
    }
}

impl Sums {
    fn new(
        place: (&crate::runtime::Runtime, crate::runtime::Device),
        shapes: &[Vec<usize>],
        gradients: &[DeviceTensor],
    ) -> Result<Self, RuntimeError> {
        let (mut begin, mut add) = (summing(place, shapes, false)?, summing(place, shapes, true)?);
        let mut values = Vec::with_capacity(shapes.len());
        for (at, gradient) in gradients.iter().enumerate() {
            let mut sum = begin.device_tensor(gradient.dims())?;
            for graph in [&mut begin, &mut add] {
                graph.bind_input(&input(GRADIENT, at), gradient)?;
                graph.bind_output(&output(SUM, at), &mut sum)?;
            }
            add.bind_input(&input(SUM, at), &sum)?;
            values.push(sum);
        }
        Ok(Self { begin, add, values })
    }
}

/// Binds a tensor as an input and as the output that replaces it.
fn replace(graph: &mut BoundSession, kind: &str, at: usize, tensor: &mut DeviceTensor) -> Result<(), RuntimeError> {
    graph.bind_input(&input(kind, at), tensor)?;
    graph.bind_output(&output(kind, at), tensor)
}
