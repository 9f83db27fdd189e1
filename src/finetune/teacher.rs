//! The network that the student learns from: the original, in its own session with its weights as constants.

use std::collections::HashSet;

use prost::Message;

use super::features::Feature;
use crate::analysis::Analysis;
use crate::array::{Array, ArrayData};
use crate::diffusion::Roles;
use crate::error::Error;
use crate::gradient::loss::LossTerm;
use crate::gradient::{GradientGraph, GradientOptions, TARGET};
use crate::graph::ValueId;
use crate::graph::dim::Dim;
use crate::graph::sizes::Sizes;
use crate::lower;
use crate::onnx::ValueInfoProto;
use crate::onnx::builder::inputs_of;
use crate::runtime::{Device, Runtime, RuntimeError, Session, SessionOptions};
use crate::training::trained_weights;

/// Maximum number of elements of the largest value of a run on the CPU. The samples of a step are divided into runs
/// below this limit, because the session keeps the memory of its runs while the student runs.
const LARGEST: i64 = 1 << 22;

/// A network that provides the outputs to learn from.
#[derive(Debug)]
pub struct Teacher {
    session: Session,
    /// The number of rows of a run, and the inputs that have a row for every sample. `None`: a run takes all samples.
    run: Option<(usize, HashSet<String>)>,
    /// The indices of the prediction and of the intermediate values among the session's outputs.
    places: Vec<usize>,
    /// Set if the output also holds a variance: the axis, and the number of parts of which the first is the prediction.
    kept: Option<(usize, usize)>,
}

/// The teacher's outputs for some noisy samples.
#[derive(Clone, Debug, Default)]
pub struct TeacherOutputs {
    /// The prediction, without the variance.
    pub output: Vec<f32>,
    /// The intermediate values, in the order of the request.
    pub features: Vec<Array>,
}

/// Checks that a teacher can run on the inputs of a student: it has no other inputs, no inputs of other sizes, and an
/// output of the prediction's name.
///
/// # Errors
/// See above.
/// See above.
pub fn check_interface(teacher: &Analysis, student: &Analysis, prediction: &str) -> Result<(), Error> {
    let fail = |text: String| {
        let path = student.model.path().display();
        let hint = format!("the teacher must accept the inputs of {path}: use the network that it was cut from");
        Err(Error::usage(text).in_file(teacher.model.path()).hint(hint))
    };
    let names = |values: &[ValueId], of: &Analysis| -> Vec<String> {
        values.iter().map(|value| of.graph.values[*value].name.clone()).collect()
    };
    let outputs = names(&teacher.graph.outputs, teacher);
    if !outputs.iter().any(|output| output == prediction) {
        return fail(format!("the teacher has no output {prediction:?}; its outputs are {}", outputs.join(", ")));
    }
    let known = names(&student.graph.inputs, student);
    for name in names(&teacher.graph.inputs, teacher) {
        if !known.contains(&name) {
            return fail(format!(
                "the teacher has an input {name:?} that the network lacks; the network's inputs are {}",
                known.join(", ")
            ));
        }
        let shape = |of: &Analysis| {
            let fact = of.graph.value(&name).and_then(|value| of.facts.values[value].as_ref())?;
            let sizes = fact.shape.as_ref()?.iter().map(Dim::as_const).collect::<Vec<_>>();
            Some(sizes)
        };
        let (Some(own), Some(wanted)) = (shape(teacher), shape(student)) else { continue };
        let differs =
            own.iter().zip(&wanted).any(|(own, wanted)| own.zip(*wanted).is_some_and(|(own, wanted)| own != wanted));
        if own.len() != wanted.len() || differs {
            let text = |sizes: &[Option<i64>]| {
                let sizes: Vec<String> =
                    sizes.iter().map(|size| size.map_or("?".to_owned(), |size| size.to_string())).collect();
                format!("[{}]", sizes.join(", "))
            };
            return fail(format!(
                "input {name:?}: the teacher expects shape {}, the network {}",
                text(&own),
                text(&wanted)
            ));
        }
    }
    Ok(())
}

impl Teacher {
    /// Loads the network for `batch` samples, with the intermediate values `features` as further outputs. See
    /// [`check_interface`].
    ///
    /// # Errors
    /// ONNX Runtime rejects it.
    pub fn new(
        runtime: &Runtime,
        analysis: &Analysis,
        (roles, given, batch): (&Roles, &Sizes, usize),
        features: &[Feature],
        options: &SessionOptions,
    ) -> Result<Self, Error> {
        let model = &analysis.model;
        let mut names = vec![roles.prediction.name.as_str()];
        names.extend(features.iter().map(|feature| feature.name.as_str()));
        let rows = if options.device == Device::Cpu { rows_of_run(analysis, roles, given, batch) } else { batch };
        let is_on_cpu = options.device == Device::Cpu;
        let options = &SessionOptions { no_memory_pattern: is_on_cpu, no_arena: is_on_cpu, ..options.clone() };
        let sizes = roles.sizes(&analysis.facts, given, rows);
        let with_kernels = match options.device {
            Device::Cpu => Self::with_kernels(runtime, analysis, &names, sizes, options).ok(),
            _ => None,
        };
        let session = match with_kernels {
            Some(session) => session,
            None if features.is_empty() => lower::session(runtime, model, options)?,
            None => lower::session_with_outputs(runtime, model, &names, options)?,
        };
        let place = |name: &&str| session.outputs().iter().position(|output| output.name == **name).unwrap_or(0);
        let places = names.iter().map(place).collect();
        crate::runtime::release_free_memory();
        model.set_aside();
        let ports = [&roles.sample, &roles.time].into_iter().chain(&roles.conditioning);
        let batched = ports.filter(|port| roles.is_batched(port)).map(|port| port.name.clone()).collect();
        let run = (rows < batch).then_some((rows, batched));
        Ok(Self { session, run, places, kept: roles.variance_axis.map(|axis| (axis, 2)) })
    }

    /// Creates a session of the forward pass of a gradient graph: its convolutions run in the kernels of this tool
    /// where these are faster.
    ///
    /// # Errors
    /// The network has no gradient graph.
    fn with_kernels(
        runtime: &Runtime,
        analysis: &Analysis,
        wanted: &[&str],
        sizes: Sizes,
        options: &SessionOptions,
    ) -> Result<Session, Error> {
        // Values that the loss compares keep their names, whatever kernels are chosen.
        let term =
            |(at, name): (usize, &&str)| LossTerm { target: format!("{TARGET}/{at}"), ..LossTerm::squared(*name) };
        let differentiated = GradientOptions {
            sizes,
            loss: wanted.iter().enumerate().map(term).collect(),
            wanted: trained_weights(analysis, &[])?,
            ..GradientOptions::default()
        };
        let of = GradientGraph::build_for(analysis, &differentiated, options.device)?;
        let mut proto = of.model;
        let graph = proto.graph.get_or_insert_default();
        let output = |name: &&str| ValueInfoProto { name: (*name).to_owned(), ..ValueInfoProto::default() };
        graph.output = wanted.iter().map(output).collect();
        graph.drop_dead();
        let read: HashSet<String> = graph.node.iter().flat_map(inputs_of).map(str::to_owned).collect();
        graph.initializer.retain(|tensor| read.contains(&tensor.name));
        graph.input.retain(|input| read.contains(&input.name));
        let model = &analysis.model;
        let options = SessionOptions {
            external_data_folder: Some(model.data_folder()),
            no_qdq_fusion: true,
            has_kernels: of.has_kernels,
            ..options.clone()
        };
        runtime
            .session_from_bytes(&model.located(&proto).encode_to_vec(), &options)
            .map_err(|error| Error::unmet(error.to_string()))
    }

    /// Returns the prediction and the intermediate values for float32 inputs. Inputs that the teacher does not have are
    /// ignored.
    ///
    /// # Errors
    /// The network fails.
    pub fn predict(&mut self, inputs: &[(String, Array)]) -> Result<TeacherOutputs, Error> {
        let Some((rows, batched)) = &self.run else { return self.predict_at_once(inputs) };
        let count = |(name, array): &(String, Array)| batched.contains(name).then(|| array.dims.first().copied());
        let all = inputs.iter().find_map(count).flatten().unwrap_or(1);
        // An input of one row is shared by all samples.
        let is_divided = |name: &str, array: &Array| batched.contains(name) && array.dims.first() == Some(&all);
        let of_run = |first: usize| -> Vec<(String, Array)> {
            let chosen: Vec<usize> = (first..all.min(first + rows)).collect();
            let part = |(name, array): &(String, Array)| {
                (name.clone(), if is_divided(name, array) { array.rows(&chosen) } else { array.clone() })
            };
            inputs.iter().map(part).collect()
        };
        let runs: Vec<Vec<(String, Array)>> = (0..all).step_by(*rows).map(of_run).collect();
        let mut taught = TeacherOutputs::default();
        for inputs in runs {
            let TeacherOutputs { output, features } = self.predict_at_once(&inputs)?;
            taught.output.extend(output);
            for (at, feature) in features.into_iter().enumerate() {
                match taught.features.get_mut(at) {
                    None => taught.features.push(feature),
                    Some(joined) => *joined = one_after_another(joined, feature),
                }
            }
        }
        Ok(taught)
    }

    fn predict_at_once(&mut self, inputs: &[(String, Array)]) -> Result<TeacherOutputs, Error> {
        let declared = self.session.inputs();
        let given: Vec<(String, Array)> = inputs
            .iter()
            .filter_map(|(name, array)| {
                let input = declared.iter().find(|input| input.name == *name)?;
                let is_same = array.element_type() == input.element_type;
                Some((name.clone(), if is_same { array.clone() } else { array.cast(input.element_type) }))
            })
            .collect();
        let fail = |error: RuntimeError| Error::unmet(format!("the teacher failed: {error}")).caused_by(error);
        let mut outputs: Vec<Option<Array>> =
            self.session.run(&given).map_err(fail)?.into_iter().map(|(_, array)| Some(array)).collect();
        let mut wanted = self.places.iter().map(|place| outputs.get_mut(*place).and_then(Option::take));
        let Some(output) = wanted.next().flatten() else { return Ok(TeacherOutputs::default()) };
        let features = wanted.flatten().collect();
        let Some((axis, parts)) = self.kept else { return Ok(TeacherOutputs { output: floats(output), features }) };
        let run: usize = output.dims[axis..].iter().product();
        let values = floats(output);
        let output = values.chunks(run.max(1)).flat_map(|run| run[..run.len() / parts].iter().copied()).collect();
        Ok(TeacherOutputs { output, features })
    }
}

/// Returns the number of samples of a run whose values do not exceed [`LARGEST`], if the batch can be divided.
fn rows_of_run(analysis: &Analysis, roles: &Roles, given: &Sizes, batch: usize) -> usize {
    if roles.fixed_batch().is_some() {
        return batch;
    }
    let sizes = roles.sizes(&analysis.facts, given, batch);
    let elements = |value: ValueId| {
        let shape = analysis.facts.values[value].as_ref()?.shape.as_ref()?;
        shape.iter().try_fold(1i64, |product, dim| product.checked_mul(dim.eval(&sizes)?))
    };
    let computed = analysis.graph.nodes.iter().flat_map(|node| node.outputs.iter().flatten().copied());
    let largest = computed.filter_map(elements).max().unwrap_or(0);
    let is_enough = |parts: &usize| largest / i64::try_from(*parts).unwrap_or(i64::MAX) <= LARGEST;
    let parts = (1..=batch).filter(|parts| batch.is_multiple_of(*parts)).find(is_enough);
    batch / parts.unwrap_or(batch).max(1)
}

/// Concatenates the rows of both arrays, in float32.
fn one_after_another(first: &mut Array, second: Array) -> Array {
    let mut dims = std::mem::take(&mut first.dims);
    if let (Some(rows), Some(more)) = (dims.first_mut(), second.dims.first()) {
        *rows += more;
    }
    let mut values = floats(std::mem::replace(first, Array { dims: vec![0], data: ArrayData::F32(Vec::new()) }));
    values.extend(floats(second));
    Array { dims, data: ArrayData::F32(values) }
}

fn floats(array: Array) -> Vec<f32> {
    match array.data {
        ArrayData::F32(values) => values,
        data => Array { dims: array.dims, data }.to_f64().into_iter().map(|value| value as f32).collect(),
    }
}
