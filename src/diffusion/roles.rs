//! The roles of a network's inputs and outputs: noisy sample, timestep, conditioning, prediction.
//!
//! They are recognised by name, type and shape. The sample is a float input with the shape of an output. The timestep
//! is an input with one number per sample, named like a time or a noise level. All other inputs are conditioning.

mod names;

mod recognise;

use std::collections::BTreeSet;

use serde::Serialize;

use super::process::{Process, TimeScale};
use crate::array::ElementType;
use crate::error::Error;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::sizes::{Sizes, follow, sizes_for};
use crate::graph::{Graph, ValueId};
use crate::onnx::names::printable;
use names::words;
use recognise::roles;

/// Names that the user gives for roles. `None`: the role is recognised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleNames {
    /// The input that takes the noisy sample.
    pub sample: Option<String>,
    /// The input that takes the time.
    pub time: Option<String>,
    /// The output that is the prediction.
    pub prediction: Option<String>,
    /// The number of channels of the sample's input that are the noisy sample: the first ones, or those from
    /// `sample_offset` on.
    pub sample_channels: Option<i64>,
    /// The channel of the sample's input at which the noisy sample begins. The channels before it are conditioning.
    pub sample_offset: Option<i64>,
}

/// An input or output of the graph, with the shape for its role.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// The name.
    pub name: String,
    /// The element type.
    pub element_type: ElementType,
    /// The shape, batch first. Empty for a scalar.
    pub shape: Vec<Dim>,
    text: String,
}

/// The roles of a network's inputs and outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Roles {
    /// The input for the noisy sample, `x_t`, with the shape of the sample.
    pub sample: Port,
    /// Set if that input holds conditioning besides the sample.
    pub joined: Option<Joined>,
    /// The input for the timestep.
    pub time: Port,
    /// All other inputs.
    pub conditioning: Vec<Port>,
    /// The output that is the prediction.
    pub prediction: Port,
    /// The axis on which the output has twice the size of the sample, because the network predicts a variance as well.
    /// The first half is the prediction. `None`: no variance is predicted.
    pub variance_axis: Option<usize>,
}

/// An input that holds the noisy sample and conditioning, concatenated: a mask and a masked image for inpainting, the
/// image to edit, or the first frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    /// The axis of the concatenation.
    pub axis: usize,
    /// The index on that axis at which the sample begins.
    pub offset: usize,
    /// The input with its full shape.
    pub port: Port,
}

impl Roles {
    /// Recognises the roles.
    ///
    /// # Errors
    /// No input or output, or several, fit a role, or a given name is not in the graph.
    pub fn recognise(model: &Model, graph: &Graph, facts: &Facts, names: &RoleNames) -> Result<Self, Error> {
        let ports = |ids: &[ValueId]| -> Vec<Port> { ids.iter().filter_map(|id| port(graph, facts, *id)).collect() };
        let (inputs, outputs) = (ports(&graph.inputs), ports(&graph.outputs));
        roles(&inputs, &outputs, names).map_err(|error| error.in_file(model.path()))
    }

    /// Describes the roles, one line each. `given` returns whether the user gave the values of a conditioning input.
    pub fn lines(&self, process: &Process, given: impl Fn(&str) -> bool) -> Vec<String> {
        let whole = |scale: TimeScale| match self.time.element_type.is_float() {
            true => scale.describe().to_owned(),
            false => format!("{}, as an integer", scale.describe()),
        };
        let first = match &self.joined {
            None => String::new(),
            Some(Joined { axis, offset: 0, .. }) => {
                format!(", the first {} indices of axis {axis}", self.sample.shape[*axis])
            }
            Some(Joined { axis, offset, .. }) => {
                format!(", {} indices of axis {axis} from {offset} on", self.sample.shape[*axis])
            }
        };
        let mut lines = vec![
            format!("sample:       {}{first}", self.sample.text),
            format!("time:         {}, takes {}", self.time.text, whole(process.time)),
        ];
        for input in self.conditioning_ports() {
            let is_joined = self.joined.as_ref().is_some_and(|joined| joined.port.name == input.name);
            let rest = if is_joined { ", the remaining indices" } else { "" };
            let from = if given(&input.name) { "given" } else { "random values" };
            lines.push(format!("conditioning: {}{rest}, {from}", input.text));
        }
        let half = match self.variance_axis {
            Some(axis) => format!(", first half of axis {axis} (the second half is a variance)"),
            None => String::new(),
        };
        let what = match process.preconditioning {
            Some(_) => "preconditioned",
            None => process.prediction.name(),
        };
        lines.push(format!("prediction:   {}, {what}{half}", self.prediction.text));
        lines
    }

    /// Returns the inputs that hold conditioning: all except sample and timestep, but including a sample input with
    /// joined conditioning.
    pub fn conditioning_ports(&self) -> impl Iterator<Item = &Port> {
        self.conditioning.iter().chain(self.joined.as_ref().map(|joined| &joined.port))
    }

    /// Returns the roles by name, for JSON output.
    pub fn summary(&self) -> RoleSummary {
        RoleSummary {
            sample: self.sample.name.clone(),
            time: self.time.name.clone(),
            conditioning: self.conditioning.iter().map(|port| port.name.clone()).collect(),
            prediction: self.prediction.name.clone(),
            learned_variance: self.variance_axis.is_some(),
        }
    }

    /// Returns whether the time input is named like a noise level.
    pub fn takes_sigma(&self) -> bool {
        words(&self.time.name).iter().any(|word| matches!(word.as_str(), "sigma" | "sigmas"))
    }

    /// Returns whether the time input is named like EDM's `c_noise`, which means that the preconditioning is outside
    /// the graph.
    pub fn takes_c_noise(&self) -> bool {
        self.time.element_type.is_float()
            && matches!(
                self.time.name.to_ascii_lowercase().as_str(),
                "noise" | "noise_label" | "noise_labels" | "c_noise"
            )
    }

    /// Returns the batch size that the graph fixes. `None`: it is symbolic.
    pub fn fixed_batch(&self) -> Option<usize> {
        let fixed = |port: &Port| usize::try_from(port.shape.first()?.as_const()?).ok();
        // Some exports declare a symbolic batch but run only at batch size one: shape inference finds it in the output.
        fixed(&self.sample).or_else(|| fixed(&self.prediction))
    }

    /// Returns the symbol of an input's first axis if that axis is the batch. Exporters use a new symbol for the batch
    /// of every input, or none. A batch symbol therefore is one that occurs on first axes only.
    fn batch_symbol(&self, port: &Port) -> Option<String> {
        let mut inner = BTreeSet::new();
        let inputs = [&self.sample, &self.time].into_iter().chain(&self.conditioning);
        inputs.flat_map(|port| port.shape.iter().skip(1)).for_each(|dim| dim.symbols(&mut inner));
        port.shape.first()?.as_symbol().filter(|name| !inner.contains(name))
    }

    /// Returns whether an input has one row per sample of a batch.
    pub fn is_batched(&self, port: &Port) -> bool {
        match port.shape.first().and_then(Dim::as_const) {
            Some(size) => self.fixed_batch().is_some_and(|batch| usize::try_from(size) == Ok(batch)),
            None => self.batch_symbol(port).is_some(),
        }
    }

    /// Returns sizes for all symbolic dimensions, including the batch.
    pub fn sizes(&self, facts: &Facts, given: &Sizes, batch: usize) -> Sizes {
        let mut sizes = sizes_for(facts, given);
        for symbol in
            [&self.sample, &self.time].into_iter().chain(&self.conditioning).filter_map(|p| self.batch_symbol(p))
        {
            sizes.insert(symbol, i64::try_from(batch).unwrap_or(i64::MAX));
        }
        follow(facts, given, &mut sizes);
        sizes
    }
}

/// The roles by name, for JSON output.
#[derive(Clone, Debug, Serialize)]
pub struct RoleSummary {
    sample: String,
    time: String,
    conditioning: Vec<String>,
    prediction: String,
    learned_variance: bool,
}

impl Port {
    /// Returns the shape as numbers.
    ///
    /// # Errors
    /// A size is unknown or not positive.
    pub fn dims(&self, sizes: &Sizes) -> Result<Vec<usize>, Error> {
        let size = |dim: &Dim| {
            let size = dim.eval(sizes).and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
            size.ok_or_else(|| {
                Error::usage(format!("the size {dim} of {} is unknown", self.text)).hint("set it with --size NAME=N")
            })
        };
        self.shape.iter().map(size).collect()
    }

    /// Returns name, element type and shape for messages.
    pub fn describe(&self) -> &str {
        &self.text
    }
}

fn port(graph: &Graph, facts: &Facts, id: ValueId) -> Option<Port> {
    let fact: &Fact = facts.values[id].as_ref()?;
    let name = graph.values[id].name.clone();
    let element_type = ElementType::from_onnx(fact.dtype as i32)?;
    let text = format!("{} {}", printable(&name), fact.describe());
    Some(Port { element_type, shape: fact.shape.clone()?, text, name })
}
