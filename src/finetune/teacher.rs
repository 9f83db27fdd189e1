//! The network whose output is learnt: the original, in a session of its own with its weights as constants.

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
use crate::onnx::builder::reads;
use crate::runtime::{Device, Runtime, RuntimeError, Session, SessionOptions};
use crate::training::trained_weights;

/// A network that is asked for its output.
#[derive(Debug)]
pub struct Teacher {
    session: Session,
    /// The place of the output, and those of the inner values that are asked for.
    places: Vec<usize>,
    /// Axis and size to which the output is cut where it holds a variance as well.
    kept: Option<(usize, usize)>,
}

/// What a teacher says of some noisy samples.
#[derive(Clone, Debug, Default)]
pub struct Taught {
    /// Its output, without a variance.
    pub output: Vec<f32>,
    /// The inner values, in the order in which they were asked for.
    pub features: Vec<Array>,
}

/// Refuses a teacher that can't be asked what the network that learns is asked: it takes other inputs, of other sizes, or has
/// no output of the name.
///
/// # Errors
/// See above.
pub fn check_interface(teacher: &Analysis, student: &Analysis, prediction: &str) -> Result<(), Error> {
    let fail = |text: String| {
        let path = student.model.path().display();
        let hint = format!("the teacher takes the inputs of {path}: give the network that it was cut from");
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
            return fail(format!("the teacher has an input {name:?}; those of the network are {}", known.join(", ")));
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
                "input {name:?} of the teacher is {}, that of the network {}",
                text(&own),
                text(&wanted)
            ));
        }
    }
    Ok(())
}

impl Teacher {
    /// Loads the network for runs at these sizes, which also give the inner values `features`; see [`check_interface`].
    ///
    /// # Errors
    /// ONNX Runtime refuses it.
    pub fn new(
        runtime: &Runtime,
        analysis: &Analysis,
        (roles, sizes): (&Roles, Sizes),
        features: &[Feature],
        options: &SessionOptions,
    ) -> Result<Self, Error> {
        let model = &analysis.model;
        let mut names = vec![roles.prediction.name.as_str()];
        names.extend(features.iter().map(|feature| feature.name.as_str()));
        let with_kernels = match options.device {
            Device::Cpu => Self::with_kernels(runtime, analysis, &names, sizes, options).ok(),
            _ => None,
        };
        let session = match with_kernels {
            Some(session) => session,
            None if features.is_empty() => lower::session(runtime, model, options)?,
            None => lower::session_giving(runtime, model, &names, options)?,
        };
        let place = |name: &&str| session.outputs().iter().position(|output| output.name == **name).unwrap_or(0);
        let places = names.iter().map(place).collect();
        Ok(Self { session, places, kept: roles.variance_axis.map(|axis| (axis, 2)) })
    }

    /// The forward pass of a gradient graph, whose convolutions run in kernels of ours where that takes less time.
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
        // What the loss compares is computed under its own name, whatever kernels are chosen.
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
        let read: HashSet<String> = graph.node.iter().flat_map(reads).map(str::to_owned).collect();
        graph.initializer.retain(|tensor| read.contains(&tensor.name));
        graph.input.retain(|input| read.contains(&input.name));
        let model = &analysis.model;
        let options = SessionOptions {
            external_data_folder: Some(model.data_folder()),
            keeps_arithmetic: true,
            has_kernels: of.has_kernels,
            ..options.clone()
        };
        runtime
            .session_from_bytes(&model.located(&proto).encode_to_vec(), &options)
            .map_err(|error| Error::unmet(error.to_string()))
    }

    /// Its output and the inner values for inputs in float32, of which those that it does not have are left out.
    ///
    /// # Errors
    /// The network fails.
    pub fn predict(&mut self, inputs: &[(String, Array)]) -> Result<Taught, Error> {
        let declared = self.session.inputs();
        let given: Vec<(String, Array)> = inputs
            .iter()
            .filter_map(|(name, array)| {
                let input = declared.iter().find(|input| input.name == *name)?;
                let is_same = array.element_type() == input.element_type;
                Some((name.clone(), if is_same { array.clone() } else { array.cast(input.element_type) }))
            })
            .collect();
        let fail = |error: RuntimeError| Error::unmet(format!("the teacher does not run: {error}")).caused_by(error);
        let mut outputs: Vec<Option<Array>> =
            self.session.run(&given).map_err(fail)?.into_iter().map(|(_, array)| Some(array)).collect();
        let mut wanted = self.places.iter().map(|place| outputs.get_mut(*place).and_then(Option::take));
        let Some(output) = wanted.next().flatten() else { return Ok(Taught::default()) };
        let features = wanted.flatten().collect();
        let Some((axis, parts)) = self.kept else { return Ok(Taught { output: floats(output), features }) };
        let run: usize = output.dims[axis..].iter().product();
        let values = floats(output);
        let output = values.chunks(run.max(1)).flat_map(|run| run[..run.len() / parts].iter().copied()).collect();
        Ok(Taught { output, features })
    }
}

fn floats(array: Array) -> Vec<f32> {
    match array.data {
        ArrayData::F32(values) => values,
        data => Array { dims: array.dims, data }.to_f64().into_iter().map(|value| value as f32).collect(),
    }
}
