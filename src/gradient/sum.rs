//! Sums of gradients, kept where the gradients are computed: in CPU memory without copies, or in the memory of a
//! device.
//!
//! On a device, small graphs of standard operators compute the sums on tensors that remain in device memory (see
//! [`crate::runtime::BoundSession`]). Weights, gradients and sums are never copied to the CPU; only the loss is. The
//! order of all additions is the same in both cases.

mod graphs;

use crate::array::{Array, ArrayData};
use crate::error::Error;
use crate::graph::model::Model;
use crate::runtime::{BoundSession, DeviceTensor, Runtime, RuntimeError};

use super::LOSS;
use super::pass::{GradientPass, run_scaled, unmet};
use super::precision::{LossScale, OVERFLOW};
use graphs::{Graphs, SCALE, SumForm, addend_name, fixed, scalar, sum_name, value_name};

/// The gradients of the runs of one timestep, and their accumulation into the totals.
#[derive(Debug)]
pub struct GradientSum(Place);

#[derive(Debug)]
enum Place {
    /// The sum over the runs of the timestep.
    Host(Vec<Vec<f32>>),
    Device(Box<DeviceSum>),
}

impl GradientSum {
    /// Creates sums for the gradients of a pass, in the memory where the pass leaves them. `totals` are the sums to
    /// continue from; empty ones count as zero.
    ///
    /// # Errors
    /// The device does not have enough memory.
    pub fn new(pass: &mut GradientPass, model: &Model, totals: &[Vec<f32>]) -> Result<Self, Error> {
        let names: Vec<String> = pass.uses().iter().map(|gradient| gradient.output.clone()).collect();
        let runtime = pass.runtime().clone();
        let Some((bound, scale)) = pass.bound_mut() else {
            return Ok(Self(Place::Host(vec![Vec::new(); names.len()])));
        };
        let device = DeviceSum::new(runtime, bound, scale.is_some(), &names, totals)
            .map_err(|error| unmet(model, "sum the outputs of", error))?;
        Ok(Self(Place::Device(Box::new(device))))
    }

    /// Discards the runs of the last timestep.
    pub fn begin_step(&mut self) {
        match &mut self.0 {
            Place::Host(step) => step.iter_mut().for_each(|values| values.fill(0.0)),
            Place::Device(device) => (device.pending, device.step_runs) = (None, 0),
        }
    }

    /// Runs the pass and adds `share` times its gradients to those of the timestep. Returns the loss of the run.
    ///
    /// # Errors
    /// The run fails. The error names the model.
    pub fn add_run(
        &mut self,
        pass: &mut GradientPass,
        model: &Model,
        inputs: &[(String, Array)],
        share: f32,
    ) -> Result<f64, Error> {
        match &mut self.0 {
            Place::Host(step) => pass.run_each(model, inputs, |_, at, values| add(&mut step[at], values, share)),
            Place::Device(device) => match pass.bound_mut() {
                Some((bound, scale)) => {
                    device.add_run(bound, scale, inputs, share).map_err(|error| unmet(model, "run", error))
                }
                None => Err(Error::unmet(
                    "sums in device memory need a pass that runs on the device; found one that runs on the CPU",
                )
                .in_file(model.path())),
            },
        }
    }

    /// Runs the pass on all samples of the timestep at once. If `keeps` returns true for the loss, adds `share` times the
    /// gradients (or the squares of that) to the totals. What one run computes is not copied. Returns `share` times the
    /// loss.
    ///
    /// # Errors
    /// The run fails. The error names the model.
    #[expect(clippy::too_many_arguments, reason = "the inputs of a run, and how its gradients are accumulated")]
    pub fn keep_run(
        &mut self,
        pass: &mut GradientPass,
        model: &Model,
        inputs: &[(String, Array)],
        share: f32,
        totals: &mut [Vec<f32>],
        squared: bool,
        keeps: impl Fn(f64) -> bool,
    ) -> Result<f64, Error> {
        let scaled = |loss: f64| f64::from(share) * loss;
        if matches!(self.0, Place::Host(_)) {
            let loss = pass.run_each(model, inputs, |loss, at, values| match (keeps(scaled(loss)), squared) {
                (false, _) => {}
                (true, false) => add(&mut totals[at], values, share),
                (true, true) => add_squares(&mut totals[at], values, share),
            })?;
            return Ok(scaled(loss));
        }
        let loss = scaled(self.add_run(pass, model, inputs, share)?);
        if keeps(loss) {
            self.keep_step(model, totals, squared)?;
        }
        Ok(loss)
    }

    /// Adds the gradients of the timestep, or their squares, to the totals. Only [`GradientSum::read`] copies totals
    /// from a device to `totals`.
    ///
    /// # Errors
    /// A run on the device fails.
    pub fn keep_step(&mut self, model: &Model, totals: &mut [Vec<f32>], squared: bool) -> Result<(), Error> {
        match &mut self.0 {
            Place::Host(step) => {
                for (total, values) in totals.iter_mut().zip(step) {
                    if squared {
                        add_squares(total, values, 1.0);
                    } else {
                        add(total, values, 1.0);
                    }
                }
                Ok(())
            }
            Place::Device(device) => {
                device.keep_step(squared).map_err(|error| unmet(model, "sum the outputs of", error))
            }
        }
    }

    /// Copies the totals from the device to `totals`. Does nothing on the CPU, where they are up to date.
    ///
    /// # Errors
    /// A copy from the device fails.
    pub fn read(&mut self, model: &Model, totals: &mut Vec<Vec<f32>>) -> Result<(), Error> {
        let Place::Device(device) = &mut self.0 else { return Ok(()) };
        if let Some(values) = device.read().map_err(|error| unmet(model, "read the outputs of", error))? {
            *totals = values;
        }
        Ok(())
    }
}

fn add(total: &mut Vec<f32>, values: &[f32], share: f32) {
    total.resize(values.len(), 0.0);
    for (total, value) in total.iter_mut().zip(values) {
        *total += share * value;
    }
}

fn add_squares(total: &mut Vec<f32>, values: &[f32], share: f32) {
    total.resize(values.len(), 0.0);
    for (total, value) in total.iter_mut().zip(values) {
        *total += (share * value).powi(2);
    }
}

/// Sums in the memory of a device.
#[derive(Debug)]
struct DeviceSum {
    /// The output tensors of the pass.
    gradients: Vec<DeviceTensor>,
    /// The loss, in CPU memory.
    loss: DeviceTensor,
    /// The overflow flag: not zero if gradients of the last run are not finite. In CPU memory. `None`: not in half
    /// precision.
    overflow: Option<DeviceTensor>,
    /// The share of the last run, if its gradients are not added yet.
    pending: Option<f32>,
    /// Number of runs of the timestep that `step` contains.
    step_runs: usize,
    step: Running,
    totals: Running,
    /// Whether `totals` has any values.
    has_totals: bool,
    graphs: Graphs,
}

/// A sum with two sets of tensors: one is read while the other is written, because a graph's outputs must not be its
/// inputs.
#[derive(Debug, Default)]
struct Running {
    current: Vec<DeviceTensor>,
    spare: Vec<DeviceTensor>,
}

impl DeviceSum {
    /// Binds the loss and the outputs with these names.
    fn new(
        runtime: Runtime,
        pass: &mut BoundSession,
        is_scaled: bool,
        names: &[String],
        totals: &[Vec<f32>],
    ) -> Result<Self, RuntimeError> {
        let dims_of = |pass: &BoundSession, name: &str| {
            let output = pass.session().outputs().iter().find(|output| output.name == name);
            output.map(|output| fixed(&output.dims)).ok_or_else(|| RuntimeError::RunFailed {
                message: format!("the gradient graph has no output {name:?}"),
            })
        };
        let mut loss = pass.host_tensor(&dims_of(pass, LOSS)?)?;
        pass.bind_output(LOSS, &mut loss)?;
        let mut overflow = is_scaled.then(|| pass.host_tensor(&[])).transpose()?;
        if let Some(tensor) = &mut overflow {
            pass.bind_output(OVERFLOW, tensor)?;
        }
        let mut gradients = Vec::with_capacity(names.len());
        for name in names {
            let mut tensor = pass.device_tensor(&dims_of(pass, name)?)?;
            pass.bind_output(name, &mut tensor)?;
            gradients.push(tensor);
        }
        let shapes = gradients.iter().map(|tensor| tensor.dims().to_vec()).collect();
        let graphs = Graphs::new(runtime, pass.session().execution().used, shapes);
        let mut sum = Self {
            gradients,
            loss,
            overflow,
            pending: None,
            step_runs: 0,
            step: Running::default(),
            totals: Running::default(),
            has_totals: false,
            graphs,
        };
        if totals.iter().any(|values| !values.is_empty()) {
            sum.load(totals)?;
        }
        Ok(sum)
    }

    /// Copies sums to the device.
    fn load(&mut self, totals: &[Vec<f32>]) -> Result<(), RuntimeError> {
        let graph = self.graphs.get(SumForm { adds: false, squares: false })?;
        graph.set_input(SCALE, &scalar(1.0))?;
        for (at, (values, tensor)) in totals.iter().zip(&self.gradients).enumerate() {
            let dims = tensor.dims().to_vec();
            let mut data = values.clone();
            data.resize(dims.iter().product(), 0.0);
            graph.set_input(&value_name(at), &Array { dims, data: ArrayData::F32(data) })?;
        }
        self.totals.write(graph)?;
        self.has_totals = true;
        Ok(())
    }

    fn add_run(
        &mut self,
        pass: &mut BoundSession,
        scale: Option<&mut LossScale>,
        inputs: &[(String, Array)],
        share: f32,
    ) -> Result<f64, RuntimeError> {
        self.flush()?;
        let loss = run_scaled(pass, scale, inputs, (&self.loss, self.overflow.as_ref()))?;
        self.pending = Some(share);
        Ok(loss)
    }

    /// Adds the last run to the timestep, before another run overwrites its gradients.
    fn flush(&mut self) -> Result<(), RuntimeError> {
        let Some(share) = self.pending.take() else { return Ok(()) };
        let form = SumForm { adds: self.step_runs > 0, squares: false };
        self.step.take(self.graphs.get(form)?, form, &self.gradients, share)?;
        self.step_runs += 1;
        Ok(())
    }

    fn keep_step(&mut self, squares: bool) -> Result<(), RuntimeError> {
        let form = SumForm { adds: self.has_totals, squares };
        if let (0, Some(share)) = (self.step_runs, self.pending) {
            // A single run is added to the totals directly.
            self.totals.take(self.graphs.get(form)?, form, &self.gradients, share)?;
            self.pending = None;
        } else {
            self.flush()?;
            if self.step_runs == 0 {
                return Ok(());
            }
            self.totals.take(self.graphs.get(form)?, form, &self.step.current, 1.0)?;
        }
        self.has_totals = true;
        Ok(())
    }

    /// Returns the totals, or `None` if there are none yet.
    fn read(&mut self) -> Result<Option<Vec<Vec<f32>>>, RuntimeError> {
        if !self.has_totals {
            return Ok(None);
        }
        let graph = self.graphs.get(SumForm { adds: false, squares: false })?;
        graph.set_input(SCALE, &scalar(1.0))?;
        let mut copies = Vec::with_capacity(self.totals.current.len());
        for (at, tensor) in self.totals.current.iter().enumerate() {
            graph.bind_input(&value_name(at), tensor)?;
            let mut copy = graph.host_tensor(tensor.dims())?;
            graph.bind_output(&sum_name(at), &mut copy)?;
            copies.push(copy);
        }
        graph.run()?;
        copies.iter().map(|copy| Ok(copy.values()?.to_vec())).collect::<Result<_, _>>().map(Some)
    }
}

impl Running {
    /// Adds `scale` times the values to the sum, or starts the sum with them.
    fn take(
        &mut self,
        graph: &mut BoundSession,
        form: SumForm,
        values: &[DeviceTensor],
        scale: f32,
    ) -> Result<(), RuntimeError> {
        graph.set_input(SCALE, &scalar(scale))?;
        for (at, value) in values.iter().enumerate() {
            graph.bind_input(&value_name(at), value)?;
        }
        if form.adds {
            for (at, sum) in self.current.iter().enumerate() {
                graph.bind_input(&addend_name(at), sum)?;
            }
        }
        self.write(graph)
    }

    /// Runs the graph with the spare tensors as outputs. They then become the current ones.
    fn write(&mut self, graph: &mut BoundSession) -> Result<(), RuntimeError> {
        if self.spare.is_empty() {
            let shapes: Vec<Vec<usize>> = graph.session().outputs().iter().map(|output| fixed(&output.dims)).collect();
            self.spare = shapes.iter().map(|dims| graph.device_tensor(dims)).collect::<Result<_, _>>()?;
        }
        for (at, tensor) in self.spare.iter_mut().enumerate() {
            graph.bind_output(&sum_name(at), tensor)?;
        }
        graph.run()?;
        std::mem::swap(&mut self.current, &mut self.spare);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_applied_before_squaring() {
        let mut total = Vec::new();
        add_squares(&mut total, &[2.0, -1.0], 1.0);
        add_squares(&mut total, &[2.0, 6.0], 0.5);
        assert_eq!(total, [5.0, 10.0]);
    }
}
