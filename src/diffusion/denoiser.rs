//! A network in ONNX Runtime with the inputs that its process expects.

use std::ops::Range;

use half::{bf16, f16};
use ndarray::ArrayD;

use super::conditioning::Conditioning;
use super::process::Process;
use super::roles::Roles;
use super::schedule::Level;
use crate::array::{Array, ArrayData};
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::sizes::Sizes;
use crate::runtime::{RuntimeError, Session};

/// A network whose inputs are allocated once and reused by every evaluation.
#[derive(Debug)]
pub struct Denoiser {
    session: Session,
    roles: Roles,
    /// All inputs: the sample first (with the values joined to it), the timestep second, then the conditioning.
    inputs: Vec<(String, Array)>,
    /// The shape of the sample, the batch first.
    dims: Vec<usize>,
    prediction: usize,
}

/// Maximum number of elements of an array. More can only come from a wrong size.
pub(super) const ELEMENT_LIMIT: usize = 1 << 31;

/// The indices in `inputs` of the sample and the timestep.
const SAMPLE: usize = 0;
const TIME: usize = 1;

impl Denoiser {
    /// Allocates the inputs for batches of `batch` samples.
    ///
    /// # Errors
    /// The graph has another fixed batch size, a size is unknown, or the session lacks an output.
    pub fn new(session: Session, roles: &Roles, facts: &Facts, given: &Sizes, batch: usize) -> Result<Self, Error> {
        if let Some(fixed) = roles.fixed_batch().filter(|fixed| *fixed != batch) {
            return Err(Error::usage(format!(
                "the network has a fixed batch size of {fixed}, but {batch} was requested"
            ))
            .hint(format!("use --batch {fixed}, or leave it out")));
        }
        let sizes = roles.sizes(facts, given, batch);
        let mut inputs = Vec::with_capacity(2 + roles.conditioning.len());
        let sample = roles.joined.as_ref().map_or(&roles.sample, |joined| &joined.port);
        for port in [sample, &roles.time].into_iter().chain(&roles.conditioning) {
            let dims = port.dims(&sizes)?;
            let count =
                crate::array::element_count(&dims).filter(|count| *count <= ELEMENT_LIMIT).ok_or_else(|| {
                    let text = format!("{} is too large: shape {dims:?} has more than 2^31 elements", port.describe());
                    Error::usage(text).hint("check the sizes given with --size and --batch")
                })?;
            let data = ArrayData::from_f64(port.element_type, &vec![0.0; count]);
            inputs.push((port.name.clone(), Array { dims, data }));
        }
        let prediction = session
            .outputs()
            .iter()
            .position(|output| output.name == roles.prediction.name)
            .ok_or_else(|| Error::usage(format!("the network has no output {:?}", roles.prediction.name)))?;
        let dims = roles.sample.dims(&sizes)?;
        Ok(Self { session, roles: roles.clone(), inputs, dims, prediction })
    }

    /// Returns the shape of a batch of samples.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Returns the number of samples in a batch.
    pub fn batch(&self) -> usize {
        self.dims.first().copied().unwrap_or(1)
    }

    /// Returns the session and drops the rest.
    pub fn into_session(self) -> Session {
        self.session
    }

    /// Returns the roles of the inputs and outputs.
    pub fn roles(&self) -> &Roles {
        &self.roles
    }

    /// Returns the shapes of the conditioning inputs at this batch size.
    pub fn conditioning_dims(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.inputs.iter().skip(TIME + 1).map(|(name, array)| (name.as_str(), array.dims.as_slice()))
    }

    /// Sets the conditioning for the next evaluations to that of these samples, one index per sample of the batch.
    ///
    /// # Errors
    /// The conditioning was made for other inputs.
    pub fn set_conditioning(&mut self, conditioning: &Conditioning, samples: &[usize]) -> Result<(), Error> {
        let joined = self.roles.joined.is_some();
        let skipped = |at: usize| at == TIME || at == SAMPLE && !joined;
        let inputs = self.inputs.iter_mut().enumerate().filter(|(at, _)| !skipped(*at)).map(|(_, input)| input);
        for (name, array) in inputs {
            let values = conditioning.rows(name, samples)?;
            if values.dims != array.dims || values.element_type() != array.element_type() {
                return Err(Error::usage(format!(
                    "conditioning input {name:?}: expected {}{:?}, found {}{:?}",
                    array.element_type(),
                    array.dims,
                    values.element_type(),
                    values.dims
                )));
            }
            *array = values;
        }
        Ok(())
    }

    /// Prepares and returns the inputs of an evaluation at `x_t`, in the graph's element types: the sample scaled as
    /// the process requires, the timestep, and the conditioning that was set.
    ///
    /// # Errors
    /// `x_t` has another shape than the batch.
    pub fn inputs(&mut self, process: &Process, x_t: &ArrayD<f32>, level: &Level) -> Result<&[(String, Array)], Error> {
        if x_t.shape() != self.dims {
            return Err(Error::usage(format!(
                "input {:?}: expected samples of shape {:?}, found {:?}",
                self.roles.sample.name,
                self.dims,
                x_t.shape()
            )));
        }
        // The whole input, or the part of every run that holds the sample if other values are joined to it along an
        // axis.
        let (axis, offset) = self.roles.joined.as_ref().map_or((0, 0), |joined| (joined.axis, joined.offset));
        let sample = &mut self.inputs[SAMPLE].1;
        let count = |dims: &[usize]| dims.iter().product::<usize>();
        let start = offset * count(sample.dims.get(axis + 1..).unwrap_or(&[]));
        let part = start..start + count(&self.dims[axis..]);
        fill(&mut sample.data, (part, count(&sample.dims[axis..])), x_t, process.input_scale(level) as f32);
        let time = &mut self.inputs[TIME].1;
        let value = process.time_value(level);
        time.data = ArrayData::from_f64(time.element_type(), &vec![value; time.data.len()]);
        Ok(&self.inputs)
    }

    /// Evaluates the network at `x_t`. Writes the prediction to `out` and, if the network predicts the variance, that
    /// to `variance`. All have the shape of the batch.
    ///
    /// # Errors
    /// `x_t` has another shape than the batch, the network fails, or its output has another shape than the sample.
    pub fn predict(
        &mut self,
        process: &Process,
        x_t: &ArrayD<f32>,
        level: &Level,
        out: &mut ArrayD<f32>,
        variance: Option<&mut ArrayD<f32>>,
    ) -> Result<(), Error> {
        self.inputs(process, x_t, level)?;
        let fail = |error: RuntimeError| Error::unmet(error.to_string()).caused_by(error);
        let outputs = self.session.run(&self.inputs).map_err(fail)?;
        let (name, output) = &outputs[self.prediction];
        let mut expected = self.dims.clone();
        if let Some(axis) = self.roles.variance_axis {
            expected[axis] *= 2;
        }
        if output.dims != expected {
            return Err(Error::unmet(format!(
                "output {name:?}: expected shape {expected:?} for samples of shape {:?}, found {:?}",
                self.dims, output.dims
            )));
        }
        let axis = self.roles.variance_axis.unwrap_or(0);
        take(&output.data, self.dims.get(axis..).unwrap_or(&[]), &expected[axis..], 0, out);
        if let (Some(variance), Some(_)) = (variance, self.roles.variance_axis) {
            let half = self.dims[axis..].iter().product();
            take(&output.data, &self.dims[axis..], &expected[axis..], half, variance);
        }
        Ok(())
    }
}

/// Copies samples into an array of any float type and scales them. `place` is the part to fill in every run, and the
/// length of a run.
fn fill(data: &mut ArrayData, place: (Range<usize>, usize), from: &ArrayD<f32>, scale: f32) {
    fn copy<T>(into: &mut [T], (part, run): (Range<usize>, usize), from: &ArrayD<f32>, convert: impl Fn(f32) -> T) {
        let places = into.chunks_exact_mut(run.max(1)).flat_map(|run| run[part.clone()].iter_mut());
        places.zip(from.iter()).for_each(|(into, from)| *into = convert(*from));
    }
    match data {
        ArrayData::F32(into) => copy(into, place, from, |v| v * scale),
        ArrayData::F64(into) => copy(into, place, from, |v| f64::from(v * scale)),
        ArrayData::F16(into) => copy(into, place, from, |v| f16::from_f32(v * scale)),
        ArrayData::BF16(into) => copy(into, place, from, |v| bf16::from_f32(v * scale)),
        // Only float inputs can have the role of the sample.
        _ => {}
    }
}

/// Copies the part of `block` elements at `offset` of every run of `stride` elements to `out`. `block` and `stride` are
/// given as shapes.
fn take(data: &ArrayData, block: &[usize], stride: &[usize], offset: usize, out: &mut ArrayD<f32>) {
    fn copy<T: Copy>(
        from: &[T],
        (block, stride, offset): (usize, usize, usize),
        out: &mut ArrayD<f32>,
        f: impl Fn(T) -> f32,
    ) {
        let values = from.chunks_exact(stride.max(1)).flat_map(|run| run[offset..offset + block].iter().copied());
        out.iter_mut().zip(values).for_each(|(out, value)| *out = f(value));
    }
    let place = (block.iter().product(), stride.iter().product(), offset);
    match data {
        ArrayData::F32(from) => copy(from, place, out, |v| v),
        ArrayData::F64(from) => copy(from, place, out, |v| v as f32),
        ArrayData::F16(from) => copy(from, place, out, f16::to_f32),
        ArrayData::BF16(from) => copy(from, place, out, bf16::to_f32),
        _ => {}
    }
}
