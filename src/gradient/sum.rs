//! Summing gradients where they are computed: in the CPU's memory without copies, or in the memory of a device.
//!
//! On a device the sums are made by small graphs of standard operators over tensors that stay there (see
//! [`crate::runtime::BoundSession`]); weights, gradients and sums never cross to the CPU, only the loss does. The
//! order of all additions is the same in both places.

mod graphs;

use crate::array::{Array, ArrayData};
use crate::error::Error;
use crate::graph::model::Model;
use crate::runtime::{BoundSession, DeviceTensor, Runtime, RuntimeError};

use super::LOSS;
use super::pass::{GradientPass, run_scaled, unmet};
use super::precision::{LossScale, OVERFLOW};
use graphs::{Graphs, SCALE, SumForm, addend_name, fixed, scalar, sum_name, value_name};

/// The gradients of the runs of one timestep, and how they enter the sums.
#[derive(Debug)]
pub struct GradientSum(Place);

#[derive(Debug)]
enum Place {
    /// The sum over the runs of the timestep.
    Host(Vec<Vec<f32>>),
    Device(Box<DeviceSum>),
}

impl GradientSum {
    /// Sums for the gradients of a pass, in the place where the pass leaves them. `totals` are sums to go on from; empty
    /// ones count as zero.
    ///
    /// # Errors
    /// There is not enough memory on the device.
    pub fn new(pass: &mut GradientPass, model: &Model, totals: &[Vec<f32>]) -> Result<Self, Error> {
        let names: Vec<String> = pass.uses().iter().map(|gradient| gradient.output.clone()).collect();
        let runtime = pass.runtime().clone();
        let Some((bound, scale)) = pass.bound_mut() else {
            return Ok(Self(Place::Host(vec![Vec::new(); names.len()])));
        };
        let device = DeviceSum::new(runtime, bound, scale.is_some(), &names, totals)
            .map_err(|error| unmet(model, "sum", error))?;
        Ok(Self(Place::Device(Box::new(device))))
    }

    /// Forgets the runs of the last timestep.
    pub fn begin_step(&mut self) {
        match &mut self.0 {
            Place::Host(step) => step.iter_mut().for_each(|values| values.fill(0.0)),
            Place::Device(device) => (device.pending, device.step_runs) = (None, 0),
        }
    }

    /// Runs the pass and adds `share` times its gradients to those of the timestep. Returns the loss of the run.
    ///
    /// # Errors
    /// The run fails; the model is named.
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
                None => {
                    Err(Error::unmet("sums on a device were given a pass that is not on one").in_file(model.path()))
                }
            },
        }
    }

    /// Runs the pass on all samples of the timestep at once, and adds `share` times its gradients (or the squares of that) to
    /// the sums if the loss `keeps` them; no copy is made of what one run computes. Returns `share` times the loss.
    ///
    /// # Errors
    /// The run fails; the model is named.
    #[expect(clippy::too_many_arguments, reason = "what a run needs, and what becomes of it")]
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

    /// Adds the gradients of the timestep, or their squares, to the sums. Sums on a device are written to `totals` by
    /// [`GradientSum::read`] only.
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
            Place::Device(device) => device.keep_step(squared).map_err(|error| unmet(model, "sum", error)),
        }
    }

    /// Brings the sums up to date.
    ///
    /// # Errors
    /// A copy from the device fails.
    pub fn read(&mut self, model: &Model, totals: &mut Vec<Vec<f32>>) -> Result<(), Error> {
        let Place::Device(device) = &mut self.0 else { return Ok(()) };
        if let Some(values) = device.read().map_err(|error| unmet(model, "read", error))? {
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

/// Sums on a device.
#[derive(Debug)]
struct DeviceSum {
    /// What the pass writes, and the sizes of it.
    gradients: Vec<DeviceTensor>,
    /// In the CPU's memory.
    loss: DeviceTensor,
    /// Whether the gradients of the last run are finite, in the CPU's memory; in half precision alone.
    overflow: Option<DeviceTensor>,
    /// The share of the last run, whose gradients are not added yet.
    pending: Option<f32>,
    /// Runs of the timestep that are in `step`.
    step_runs: usize,
    step: Running,
    totals: Running,
    /// Whether `totals` holds anything.
    has_totals: bool,
    graphs: Graphs,
}

/// A sum that is written to one set of tensors while it is read from the other: a graph's outputs must not be its inputs.
#[derive(Debug, Default)]
struct Running {
    current: Vec<DeviceTensor>,
    spare: Vec<DeviceTensor>,
}

impl DeviceSum {
    /// Binds the loss and the outputs of these names.
    fn new(
        runtime: Runtime,
        pass: &mut BoundSession,
        is_scaled: bool,
        names: &[String],
        totals: &[Vec<f32>],
    ) -> Result<Self, RuntimeError> {
        let dims_of = |pass: &BoundSession, name: &str| {
            let output = pass.session().outputs().iter().find(|output| output.name == name);
            output
                .map(|output| fixed(&output.dims))
                .ok_or_else(|| RuntimeError::RunFailed { message: format!("no output {name:?}") })
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
            // A single run needs no sum of its own.
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

    /// The sums; `None` if there are none yet.
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
    /// Adds `scale` times the values (or begins with them).
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

    /// Runs the graph into the spare tensors, which become the current ones.
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
    fn squares_are_summed_after_the_batch() {
        let mut total = Vec::new();
        add_squares(&mut total, &[2.0, -1.0], 1.0);
        add_squares(&mut total, &[2.0, 6.0], 0.5);
        assert_eq!(total, [5.0, 10.0]);
    }
}
