//! The inputs of a network for clean samples with added noise, where each sample may have its own noise level.

use ndarray::{ArrayD, Axis, Slice};

use super::process::Process;
use super::roles::{Port, Roles};
use super::schedule::Level;
use crate::array::{Array, ArrayData, ElementType};
use crate::error::Error;
use crate::gradient::TARGET;
use crate::graph::facts::Facts;
use crate::graph::sizes::Sizes;

/// Converts clean samples to the inputs of a gradient graph.
#[derive(Clone, Copy, Debug)]
pub struct Noising<'a> {
    /// How the network was trained.
    pub process: &'a Process,
    /// The roles of its inputs and outputs.
    pub roles: &'a Roles,
    /// The known facts about its values, such as shapes.
    pub facts: &'a Facts,
    /// The sizes that were given.
    pub sizes: &'a Sizes,
}

impl Noising<'_> {
    /// Returns whether every sample of a batch may have its own noise level. Otherwise the time input takes one number
    /// for all.
    ///
    /// # Errors
    /// The shape of the time input is unknown.
    pub fn has_level_per_sample(&self, batch: usize) -> Result<bool, Error> {
        let dims = self.roles.time.dims(&self.roles.sizes(self.facts, self.sizes, batch))?;
        Ok(dims.iter().product::<usize>() == batch)
    }

    /// Returns all inputs of the network and the target, for clean samples `x_0` and noise of the same shape, batch
    /// first. `levels` has one level per sample, or a single one for all. `rows` returns the values of a conditioning
    /// input. Half and double precision inputs are float32, as gradient graphs expect them.
    ///
    /// # Errors
    /// A conditioning input has no values, or the levels differ where the time input takes one number.
    pub fn inputs(
        &self,
        x0: &ArrayD<f32>,
        noise: &ArrayD<f32>,
        levels: &[Level],
        rows: &dyn Fn(&Port) -> Result<Array, Error>,
    ) -> Result<Vec<(String, Array)>, Error> {
        let (process, roles) = (self.process, self.roles);
        let batch = x0.shape().first().copied().unwrap_or(1);
        let mut x_t = ArrayD::zeros(x0.shape());
        let mut target = ArrayD::zeros(x0.shape());
        if let [level] = levels {
            process.add_noise(x0, noise, level, &mut x_t);
            process.target(x0, noise, level, &mut target);
            scale(&mut x_t, process.input_scale(level) as f32);
        } else {
            for (at, level) in levels.iter().enumerate() {
                let row = |values: &ArrayD<f32>| values.slice_axis(Axis(0), Slice::from(at..at + 1)).to_owned();
                let (x0, noise) = (row(x0), row(noise));
                let (mut noisy, mut wanted) = (ArrayD::zeros(x0.shape()), ArrayD::zeros(x0.shape()));
                process.add_noise(&x0, &noise, level, &mut noisy);
                process.target(&x0, &noise, level, &mut wanted);
                scale(&mut noisy, process.input_scale(level) as f32);
                x_t.slice_axis_mut(Axis(0), Slice::from(at..at + 1)).assign(&noisy);
                target.slice_axis_mut(Axis(0), Slice::from(at..at + 1)).assign(&wanted);
            }
        }
        let time = self.time(levels, batch)?;
        let rows = |port: &Port| {
            let rows = rows(port)?;
            Ok::<_, Error>(if port.element_type.is_float() { rows.cast(ElementType::F32) } else { rows })
        };
        if let Some(joined) = &roles.joined {
            let whole = rows(&joined.port)?;
            let values = whole.to_f64().into_iter().map(|value| value as f32).collect();
            let mut whole = ArrayD::from_shape_vec(whole.dims, values)
                .map_err(|error| Error::usage(format!("input {:?}: {error}", joined.port.name)))?;
            let end = joined.offset + x_t.shape()[joined.axis];
            whole.slice_axis_mut(Axis(joined.axis), Slice::from(joined.offset..end)).assign(&x_t);
            x_t = whole;
        }
        let mut inputs = vec![(roles.sample.name.clone(), array(x_t)), (roles.time.name.clone(), time)];
        for port in &roles.conditioning {
            inputs.push((port.name.clone(), rows(port)?));
        }
        inputs.push((TARGET.to_owned(), array(target)));
        Ok(inputs)
    }

    fn time(&self, levels: &[Level], batch: usize) -> Result<Array, Error> {
        let port = &self.roles.time;
        let dims = port.dims(&self.roles.sizes(self.facts, self.sizes, batch))?;
        // The gradient graph reads half and double precision inputs as float32.
        let of_type = if port.element_type.is_float() { ElementType::F32 } else { port.element_type };
        let count: usize = dims.iter().product();
        let value = |level: &Level| self.process.time_value(level);
        let values: Vec<f64> = match levels {
            [first, rest @ ..] if rest.iter().all(|level| level == first) => vec![value(first); count],
            levels if levels.len() == count => levels.iter().map(value).collect(),
            levels => {
                return Err(Error::usage(format!(
                    "time input {:?} of shape {dims:?}: expected {count} noise levels or equal ones, found {} levels",
                    port.name,
                    levels.len()
                )));
            }
        };
        Ok(Array { dims, data: ArrayData::from_f64(of_type, &values) })
    }
}

fn scale(values: &mut ArrayD<f32>, factor: f32) {
    if factor != 1.0 {
        values.mapv_inplace(|value| value * factor);
    }
}

fn array(values: ArrayD<f32>) -> Array {
    Array { dims: values.shape().to_vec(), data: ArrayData::F32(values.into_iter().collect()) }
}
