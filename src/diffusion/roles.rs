//! Which graph input is the noisy sample, which the time, and which output is the prediction.
//!
//! Recognised by name, type and shape: the sample is a float input of the shape of an output; the time is an input of
//! one number per sample with a name for a time or a noise level. What remains is conditioning.

mod names;

use std::collections::BTreeSet;

use serde::Serialize;

use super::process::{Process, TimeScale};
use crate::array::ElementType;
use crate::dim::Dim;
use crate::error::Error;
use crate::fact::Fact;
use crate::graph::{Graph, ValueId};
use crate::infer::Facts;
use crate::load::Model;
use crate::macs::{Sizes, sizes_for};
use names::{sample_score, time_score, words};

/// Names that the user gives instead of having them recognised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleNames {
    /// The input that takes the noisy sample.
    pub sample: Option<String>,
    /// The input that takes the time.
    pub time: Option<String>,
    /// The output that is the prediction.
    pub prediction: Option<String>,
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
    /// The input that takes the noisy sample, `x_t`.
    pub sample: Port,
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

/// How an output fits a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Same,
    /// Twice as long on this axis.
    Double(usize),
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
        let mut lines = vec![
            format!("sample:       {}", self.sample.text),
            format!("time:         {}, gets {}", self.time.text, whole(process.time)),
        ];
        for input in &self.conditioning {
            let from = if given(&input.name) { "given" } else { "drawn at random" };
            lines.push(format!("conditioning: {}, {from}", input.text));
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
    let text = format!("{name} {}", fact.describe());
    Some(Port { element_type, shape: fact.shape.clone()?, text, name })
}

/// How an output of this shape fits a sample of that shape. Sizes that are not known fit all.
fn fit(sample: &[Dim], output: &[Dim]) -> Option<Fit> {
    if sample.len() != output.len() {
        return None;
    }
    let mut double = None;
    for (axis, (a, b)) in sample.iter().zip(output).enumerate() {
        match (a.as_const(), b.as_const()) {
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) if axis > 0 && b == 2 * a && double.is_none() => double = Some(axis),
            (Some(_), Some(_)) => return None,
            _ => {}
        }
    }
    Some(double.map_or(Fit::Same, Fit::Double))
}

/// Whether a shape is one number, or one number per sample.
fn is_scalar_per_sample(shape: &[Dim]) -> bool {
    shape.len() <= 1 || shape.len() == 2 && shape[1].is(1)
}

fn list<'a>(ports: impl IntoIterator<Item = &'a Port>) -> String {
    let texts: Vec<&str> = ports.into_iter().map(|port| port.text.as_str()).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

/// The port of this name.
fn named<'p>(ports: &'p [Port], name: &str, option: &str, kind: &str) -> Result<&'p Port, Error> {
    ports.iter().find(|port| port.name == name).ok_or_else(|| {
        Error::usage(format!("{option}: the network has no {kind} {name:?}")).hint(format!("it has {}", list(ports)))
    })
}

/// Those with the highest score.
fn best<'p>(scored: impl IntoIterator<Item = (&'p Port, u8)>) -> Vec<&'p Port> {
    let scored: Vec<_> = scored.into_iter().collect();
    let highest = scored.iter().map(|(_, score)| *score).max();
    scored.into_iter().filter(|(_, score)| Some(*score) == highest).map(|(port, _)| port).collect()
}

fn roles(inputs: &[Port], outputs: &[Port], names: &RoleNames) -> Result<Roles, Error> {
    let sample = sample_port(inputs, outputs, names)?;
    let time = time_port(inputs, sample, names)?;
    let (prediction, fit) = prediction_port(outputs, sample, names)?;
    let conditioning =
        inputs.iter().filter(|port| port.name != sample.name && port.name != time.name).cloned().collect();
    let variance_axis = match fit {
        Fit::Same => None,
        Fit::Double(axis) => Some(axis),
    };
    Ok(Roles {
        sample: sample.clone(),
        time: time.clone(),
        conditioning,
        prediction: prediction.clone(),
        variance_axis,
    })
}

fn sample_port<'p>(inputs: &'p [Port], outputs: &[Port], names: &RoleNames) -> Result<&'p Port, Error> {
    let can_be = |port: &&Port| port.element_type.is_float() && !is_scalar_per_sample(&port.shape);
    if let Some(name) = &names.sample {
        let port = named(inputs, name, "--sample-input", "input")?;
        return match can_be(&port) {
            true => Ok(port),
            false => Err(Error::usage(format!(
                "--sample-input: expected a float input with a batch and more axes, found {}",
                port.text
            ))),
        };
    }
    let fits = |port: &&Port| outputs.iter().any(|output| fit(&port.shape, &output.shape).is_some());
    let candidates = inputs.iter().filter(can_be).filter(fits);
    match best(candidates.map(|port| (port, sample_score(&port.name)))).as_slice() {
        [one] => Ok(one),
        [] => Err(Error::usage(format!(
            "no input was recognised as the noisy sample: expected a float input of the shape of an output (or half its \
             channels), found inputs {} and outputs {}",
            list(inputs),
            list(outputs)
        ))
        .hint("a network that takes other channels concatenated to the sample, or tokens, can't be sampled")),
        several => Err(Error::usage(format!("several inputs could be the noisy sample: {}", list(several.iter().copied())))
            .hint("name it with --sample-input")),
    }
}

fn time_port<'p>(inputs: &'p [Port], sample: &Port, names: &RoleNames) -> Result<&'p Port, Error> {
    let others = || inputs.iter().filter(|port| port.name != sample.name);
    let can_be = |port: &&Port| port.element_type != ElementType::Bool && is_scalar_per_sample(&port.shape);
    if let Some(name) = &names.time {
        let port = named(inputs, name, "--timestep-input", "input")?;
        return match can_be(&port) && port.name != sample.name {
            true => Ok(port),
            false => Err(Error::usage(format!(
                "--timestep-input: expected an input of one number per sample, found {}",
                port.text
            ))),
        };
    }
    let scored = others().filter(can_be).map(|port| (port, time_score(&port.name)));
    // A second input that is one number per sample can hardly be anything else.
    let only = others().count() == 1;
    match best(scored.filter(|(_, score)| only || *score > 0)).as_slice() {
        [one] => Ok(one),
        [] => Err(Error::usage(format!(
            "no input was recognised as the time step: expected one number per sample with a name such as timestep, t or \
             sigma, found {}",
            list(others())
        ))
        .hint("name it with --timestep-input")),
        several => Err(Error::usage(format!("several inputs could be the time step: {}", list(several.iter().copied())))
            .hint("name it with --timestep-input")),
    }
}

fn prediction_port<'p>(outputs: &'p [Port], sample: &Port, names: &RoleNames) -> Result<(&'p Port, Fit), Error> {
    if let Some(name) = &names.prediction {
        let port = named(outputs, name, "--prediction-output", "output")?;
        let fit = fit(&sample.shape, &port.shape).filter(|_| port.element_type.is_float());
        return fit.map(|fit| (port, fit)).ok_or_else(|| {
            Error::usage(format!(
                "--prediction-output: expected a float output of the shape of the sample {} or twice its channels, found {}",
                sample.text, port.text
            ))
        });
    }
    let fits = |port: &'p Port| fit(&sample.shape, &port.shape).map(|fit| (port, fit));
    let mut found: Vec<_> = outputs.iter().filter(|port| port.element_type.is_float()).filter_map(fits).collect();
    if found.iter().any(|(_, fit)| *fit == Fit::Same) {
        found.retain(|(_, fit)| *fit == Fit::Same);
    }
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(Error::usage(format!(
            "no output was recognised as the prediction: expected one of the shape of the sample {} or twice its \
             channels, found {}",
            sample.text,
            list(outputs)
        ))),
        several => Err(Error::usage(format!(
            "several outputs could be the prediction: {}",
            list(several.iter().map(|(port, _)| *port))
        ))
        .hint("name it with --prediction-output")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name:type[dims]`; a dimension that is no number is symbolic.
    fn ports(texts: &[&str]) -> Vec<Port> {
        let port = |text: &&str| {
            let (name, rest) = text.split_once(':').unwrap();
            let (kind, dims) = rest.trim_end_matches(']').split_once('[').unwrap();
            let dim = |text: &str| text.parse::<i64>().map_or_else(|_| Dim::symbol(text), Dim::from);
            let shape = dims.split(',').filter(|text| !text.is_empty()).map(dim).collect();
            let element_type = if kind == "i" { ElementType::I64 } else { ElementType::F32 };
            Port { name: name.to_owned(), element_type, shape, text: (*text).to_owned() }
        };
        texts.iter().map(port).collect()
    }

    fn recognised(inputs: &[&str], outputs: &[&str]) -> Result<Roles, Error> {
        roles(&ports(inputs), &ports(outputs), &RoleNames::default())
    }

    #[test]
    fn shape_type_and_name_decide() {
        let roles = recognised(
            &["x_self_cond:f[2,3,16,16]", "time:f[2]", "x:f[2,3,16,16]", "guidance:f[2]"],
            &["features:f[2,8,4,4]", "output:f[2,6,16,16]"],
        )
        .unwrap();
        assert_eq!((roles.sample.name.as_str(), roles.time.name.as_str()), ("x", "time"));
        assert_eq!((roles.prediction.name.as_str(), roles.variance_axis), ("output", Some(1)));
        assert_eq!(roles.conditioning.len(), 2);
        // One input that is one number per sample needs no name.
        assert_eq!(recognised(&["a:f[b,3,8,8]", "b:f[b]"], &["c:f[?,3,?,?]"]).unwrap().time.name, "b");
    }

    #[test]
    fn what_is_not_clear_is_asked() {
        let message = |inputs: &[&str], outputs: &[&str]| recognised(inputs, outputs).unwrap_err().to_string();
        assert!(
            message(&["a:f[2,3]", "b:f[2,3]", "t:i[2]"], &["c:f[2,3]"]).contains("several inputs could be the noisy")
        );
        assert!(message(&["x:f[2,3]", "t:i[2]", "sigma:f[2]"], &["c:f[2,3]"]).contains("could be the time step"));
        assert!(message(&["x:f[2,3]", "t:i[2]"], &["c:f[2,3]", "d:f[2,3]"]).contains("could be the prediction"));
        assert!(message(&["tokens:i[2,12]", "t:i[2]"], &["logits:f[2,12,40]"]).contains("no input was recognised"));
        assert!(message(&["sample:f[1,3,16,16]"], &["output:f[1,3,16,16]"]).contains("time step"));
        let names = RoleNames { time: Some("x".to_owned()), ..RoleNames::default() };
        assert!(roles(&ports(&["x:f[2,3]", "t:i[2]"]), &ports(&["c:f[2,3]"]), &names).is_err());
    }
}
