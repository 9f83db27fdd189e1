//! Which graph input is the noisy sample, which the time, and which output is the prediction.
//!
//! Recognised by name, type and shape: the sample is a float input of the shape of an output; the time is an input of
//! one number per sample with a name for a time or a noise level. What remains is conditioning.

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

/// Names that the user gives instead of having them recognised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleNames {
    /// The input that takes the noisy sample.
    pub sample: Option<String>,
    /// The input that takes the time.
    pub time: Option<String>,
    /// The output that is the prediction.
    pub prediction: Option<String>,
    /// How many channels of the sample's input are the noisy sample: the first, or those from `sample_offset` on.
    pub sample_channels: Option<i64>,
    /// The channel of the sample's input at which the noisy sample begins; what stands before is conditioning.
    pub sample_offset: Option<i64>,
}

/// An input or output of the graph with its role's sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// The name.
    pub name: String,
    /// The type of its elements.
    pub element_type: ElementType,
    /// Its sizes, the batch first; none for a scalar.
    pub shape: Vec<Dim>,
    text: String,
}

/// What the inputs and outputs of a network are for.
#[derive(Clone, Debug, PartialEq)]
pub struct Roles {
    /// The input that takes the noisy sample, `x_t`, with the sizes of the sample.
    pub sample: Port,
    /// Where that input takes more than the sample.
    pub joined: Option<Joined>,
    /// The input that takes the time.
    pub time: Port,
    /// All other inputs.
    pub conditioning: Vec<Port>,
    /// The output that is the prediction.
    pub prediction: Port,
    /// The axis on which the output is twice as long as the sample, because the network predicts a variance as well:
    /// the first half is the prediction.
    pub variance_axis: Option<usize>,
}

/// An input that takes the noisy sample and conditioning in one: a mask and a masked image for inpainting, the image to
/// edit, the first frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    /// The axis along which they are joined.
    pub axis: usize,
    /// Where on the axis the sample begins.
    pub offset: usize,
    /// The input with all its sizes.
    pub port: Port,
}

impl Roles {
    /// Recognises the roles.
    ///
    /// # Errors
    /// Nothing or several things fit, or a name is not in the graph.
    pub fn recognise(model: &Model, graph: &Graph, facts: &Facts, names: &RoleNames) -> Result<Self, Error> {
        let ports = |ids: &[ValueId]| -> Vec<Port> { ids.iter().filter_map(|id| port(graph, facts, *id)).collect() };
        let (inputs, outputs) = (ports(&graph.inputs), ports(&graph.outputs));
        roles(&inputs, &outputs, names).map_err(|error| error.in_file(model.path()))
    }

    /// What was taken for what, one line each. `given` tells of a conditioning input whether its values are the user's.
    pub fn lines(&self, process: &Process, given: impl Fn(&str) -> bool) -> Vec<String> {
        let whole = |scale: TimeScale| match self.time.element_type.is_float() {
            true => scale.describe().to_owned(),
            false => format!("{}, as an integer", scale.describe()),
        };
        let first = match &self.joined {
            None => String::new(),
            Some(Joined { axis, offset: 0, .. }) => {
                format!(", of which the first {} of axis {axis}", self.sample.shape[*axis])
            }
            Some(Joined { axis, offset, .. }) => {
                format!(", of which {} from {offset} on of axis {axis}", self.sample.shape[*axis])
            }
        };
        let mut lines = vec![
            format!("sample:       {}{first}", self.sample.text),
            format!("time:         {}, gets {}", self.time.text, whole(process.time)),
        ];
        for input in self.conditioning_ports() {
            let is_joined = self.joined.as_ref().is_some_and(|joined| joined.port.name == input.name);
            let rest = if is_joined { ", the rest of it" } else { "" };
            let from = if given(&input.name) { "given" } else { "drawn at random" };
            lines.push(format!("conditioning: {}{rest}, {from}", input.text));
        }
        let half = match self.variance_axis {
            Some(axis) => format!(", first half of axis {axis} (the rest is a variance)"),
            None => String::new(),
        };
        let what = match process.preconditioning {
            Some(_) => "preconditioned",
            None => process.prediction.name(),
        };
        lines.push(format!("prediction:   {}, {what}{half}", self.prediction.text));
        lines
    }

    /// The inputs that conditioning is made for: all but sample and time, and one that takes more than the sample.
    pub fn conditioning_ports(&self) -> impl Iterator<Item = &Port> {
        self.conditioning.iter().chain(self.joined.as_ref().map(|joined| &joined.port))
    }

    /// The roles by name, for output in JSON.
    pub fn summary(&self) -> RoleSummary {
        RoleSummary {
            sample: self.sample.name.clone(),
            time: self.time.name.clone(),
            conditioning: self.conditioning.iter().map(|port| port.name.clone()).collect(),
            prediction: self.prediction.name.clone(),
            learned_variance: self.variance_axis.is_some(),
        }
    }

    /// Whether the time input is a noise level by its name.
    pub fn takes_sigma(&self) -> bool {
        words(&self.time.name).iter().any(|word| matches!(word.as_str(), "sigma" | "sigmas"))
    }

    /// Whether the time input takes EDM's `c_noise` by its name, so that the scalings are outside the graph.
    pub fn takes_c_noise(&self) -> bool {
        self.time.element_type.is_float()
            && matches!(
                self.time.name.to_ascii_lowercase().as_str(),
                "noise" | "noise_label" | "noise_labels" | "c_noise"
            )
    }

    /// The batch that the graph fixes, if it does.
    pub fn fixed_batch(&self) -> Option<usize> {
        let fixed = |port: &Port| usize::try_from(port.shape.first()?.as_const()?).ok();
        // Some exports declare a symbolic batch, but only run at one: inference finds it in the output.
        fixed(&self.sample).or_else(|| fixed(&self.prediction))
    }

    /// The symbol of an input's first axis, if that is the batch. Exporters name the batch anew for every input, or not
    /// at all: it is a symbol that stands nowhere but first.
    fn batch_symbol(&self, port: &Port) -> Option<String> {
        let mut inner = BTreeSet::new();
        let inputs = [&self.sample, &self.time].into_iter().chain(&self.conditioning);
        inputs.flat_map(|port| port.shape.iter().skip(1)).for_each(|dim| dim.symbols(&mut inner));
        port.shape.first()?.as_symbol().filter(|name| !inner.contains(name))
    }

    /// Whether an input has one row per sample of a batch.
    pub fn is_batched(&self, port: &Port) -> bool {
        match port.shape.first().and_then(Dim::as_const) {
            Some(size) => self.fixed_batch().is_some_and(|batch| usize::try_from(size) == Ok(batch)),
            None => self.batch_symbol(port).is_some(),
        }
    }

    /// Sizes for every symbolic dimension, the batch among them.
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

/// The roles by name.
#[derive(Clone, Debug, Serialize)]
pub struct RoleSummary {
    sample: String,
    time: String,
    conditioning: Vec<String>,
    prediction: String,
    learned_variance: bool,
}

impl Port {
    /// The sizes as numbers.
    ///
    /// # Errors
    /// A size that is not known or not positive.
    pub fn dims(&self, sizes: &Sizes) -> Result<Vec<usize>, Error> {
        let size = |dim: &Dim| {
            let size = dim.eval(sizes).and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
            size.ok_or_else(|| {
                Error::usage(format!("the size {dim} of {} is not known", self.text)).hint("give it with --size NAME=N")
            })
        };
        self.shape.iter().map(size).collect()
    }

    /// Name, type and shape as messages show them.
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
