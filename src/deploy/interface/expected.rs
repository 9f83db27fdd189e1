//! The correspondence between the inputs of a network and those of a loader.

use super::{Loader, cut};
use crate::diffusion::{Port, Roles};
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::{Graph, ValueId};

/// The shape in which a loader feeds the timestep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeShape {
    /// A scalar.
    Scalar,
    /// One element.
    One,
    /// One element per sample.
    PerSample,
}

/// What an input of the loader is connected to.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// An input of the network, as it is.
    Input(String),
    /// The timestep.
    Time(String, TimeShape),
    /// A value that the network computes, from inputs that are then removed.
    InPlaceOf(ValueId),
}

/// The correspondence of inputs and outputs.
#[derive(Clone, Debug)]
pub(super) struct Matched {
    /// The loader's inputs, in its order, with what they are connected to.
    pub(super) inputs: Vec<(String, Source)>,
    /// The network's outputs, with their new names.
    pub(super) outputs: Vec<(String, String)>,
    /// The input that takes the sample. Its first size is the batch size.
    pub(super) sample: String,
}

/// The roles of the conditioning inputs of a network.
struct Conditioning<'r> {
    /// Text encoder states of the prompt, one for each token.
    text: Option<&'r Port>,
    /// The pooled embedding of the prompt.
    pooled: Option<&'r Port>,
    /// The sizes and the crop of the image (SDXL).
    ids: Option<&'r Port>,
    others: Vec<&'r Port>,
}

fn has(port: &Port, parts: &[&str]) -> bool {
    let name = port.name.to_lowercase();
    parts.iter().any(|part| name.contains(part))
}

impl<'r> Conditioning<'r> {
    fn of(roles: &'r Roles) -> Self {
        let mut others: Vec<&Port> = roles.conditioning.iter().collect();
        let mut take = |fits: &dyn Fn(&Port) -> bool, says: &[&str]| {
            let named = others.iter().position(|port| fits(port) && has(port, says));
            let only = || {
                let mut all = others.iter().enumerate().filter(|(_, port)| fits(port));
                all.next().filter(|_| all.next().is_none()).map(|(at, _)| at)
            };
            named.or_else(only).map(|at| others.remove(at))
        };
        let is_float = |port: &Port, rank: usize| port.element_type.is_float() && port.shape.len() == rank;
        let ids = take(&|port| is_float(port, 2) && has(port, &["time_ids", "add_time"]), &["ids", "time"]);
        let positions = ["ids", "mask", "cond"];
        let text = take(
            &|port| is_float(port, 3) && !has(port, &positions),
            &["encoder_hidden_states", "context", "prompt", "text"],
        );
        let pooled =
            take(&|port| is_float(port, 2) && !has(port, &positions), &["text_embeds", "pooled", "vector", "adm"]);
        Self { text, pooled, ids, others }
    }
}

/// Matches the inputs and outputs of a network with those of a loader.
///
/// # Errors
/// The loader needs an input that the network lacks, or the other way round.
pub(super) fn matched(network: (&Model, &Graph, &Facts), roles: &Roles, loader: Loader) -> Result<Matched, Error> {
    let found = Conditioning::of(roles);
    let own = |port: Option<&Port>| port.map(|port| Source::Input(port.name.clone()));
    let is_transformer = found.ids.is_none()
        && (found.pooled.is_some() || roles.sample.name == "hidden_states" || roles.sample.shape.len() == 3);
    let (sample, time) = (Source::Input(roles.sample.name.clone()), &roles.time);
    let timed = |shape: TimeShape| Source::Time(time.name.clone(), shape);
    let refused = |text: &str| {
        let all = std::iter::once(&roles.sample).chain([time]).chain(&roles.conditioning);
        let texts: Vec<&str> = all.map(Port::describe).collect();
        Error::usage(format!("--io {}: {text}; the network has {}", loader.name(), texts.join(", ")))
            .in_file(network.0.path())
            .hint(format!("expected {}; omit --io to keep the names of the network", expected(loader)))
    };
    let needed_text = || own(found.text).ok_or_else(|| refused("no input takes the text encoder's states"));
    let mut inputs: Vec<(&str, Source)> = Vec::new();
    // Other inputs that the loader feeds by the names that they already have.
    let known: &[&str];
    let output = match loader {
        Loader::Optimum if is_transformer => {
            inputs.extend([("hidden_states", sample), ("encoder_hidden_states", needed_text()?)]);
            inputs.extend(own(found.pooled).map(|source| ("pooled_projections", source)));
            inputs.push(("timestep", timed(TimeShape::PerSample)));
            known = &["guidance", "txt_ids", "img_ids"];
            "out_hidden_states"
        }
        Loader::Optimum | Loader::Demodiffusion | Loader::Webnn => {
            if loader == Loader::Demodiffusion && is_transformer {
                return Err(refused("this loader only takes U-Nets"));
            }
            let shape = match loader {
                Loader::Optimum => TimeShape::Scalar,
                Loader::Webnn if !time.element_type.is_float() && time.shape.len() == 1 => TimeShape::PerSample,
                _ => TimeShape::One,
            };
            inputs.extend([("sample", sample), ("timestep", timed(shape))]);
            match loader {
                // A page can also run a network without a text prompt.
                Loader::Webnn => inputs.extend(own(found.text).map(|source| ("encoder_hidden_states", source))),
                _ => inputs.push(("encoder_hidden_states", needed_text()?)),
            }
            let pooled = if is_transformer { "pooled_projections" } else { "text_embeds" };
            inputs.extend(own(found.pooled).map(|source| (pooled, source)));
            inputs.extend(own(found.ids).map(|source| ("time_ids", source)));
            known = if loader == Loader::Optimum { &["timestep_cond"] } else { &[] };
            if loader == Loader::Demodiffusion { "latent" } else { "out_sample" }
        }
        Loader::Comfyui => {
            if roles.sample.shape.len() < 4 {
                return Err(refused("this loader feeds images, and the network takes another form of them"));
            }
            inputs.extend([("x", sample), ("timesteps", timed(TimeShape::PerSample)), ("context", needed_text()?)]);
            match (found.pooled, found.ids) {
                (Some(pooled), Some(ids)) => {
                    let place = cut::joined(network, &pooled.name, &ids.name).ok_or_else(|| {
                        refused(
                            "no node concatenates the pooled text embedding with that of the sizes, as `y` requires",
                        )
                    })?;
                    inputs.push(("y", Source::InPlaceOf(place)));
                }
                (None, Some(_)) => return Err(refused("it takes sizes without a pooled text embedding")),
                (pooled, None) => inputs.extend(own(pooled).map(|source| ("y", source))),
            }
            known = &["guidance"];
            "h"
        }
    };
    let mut inputs: Vec<(String, Source)> =
        inputs.into_iter().map(|(name, source)| (name.to_owned(), source)).collect();
    for other in &found.others {
        if loader != Loader::Webnn && !known.contains(&other.name.as_str()) {
            return Err(refused(&format!("this loader feeds nothing to {}", other.describe())));
        }
        inputs.push((other.name.clone(), Source::Input(other.name.clone())));
    }
    let is_prediction = |name: &str| name == roles.prediction.name;
    let names = network.1.outputs.iter().map(|output| network.1.values[*output].name.clone());
    let outputs: Vec<(String, String)> =
        names.map(|name| if is_prediction(&name) { (name, output.to_owned()) } else { (name.clone(), name) }).collect();
    if outputs.len() > 1 && loader == Loader::Comfyui {
        let names: Vec<&str> = outputs.iter().map(|(name, _)| name.as_str()).collect();
        return Err(refused(&format!("this loader takes one output, found {}", names.join(", "))));
    }
    Ok(Matched { inputs, outputs, sample: roles.sample.name.clone() })
}

/// Returns a description of the inputs that a loader feeds.
fn expected(loader: Loader) -> &'static str {
    match loader {
        Loader::Optimum => {
            "a noisy sample, a timestep and the text encoder's states (sample, timestep, encoder_hidden_states), and \
             for SDXL text_embeds and time_ids; for a transformer hidden_states, encoder_hidden_states, \
             pooled_projections, timestep"
        }
        Loader::Demodiffusion => {
            "a noisy sample, a timestep and the text encoder's states (sample, timestep, encoder_hidden_states), and \
             for SDXL text_embeds and time_ids"
        }
        Loader::Comfyui => {
            "a noisy image, a timestep and the text encoder's states (x, timesteps, context), and a pooled text \
             embedding (y)"
        }
        Loader::Webnn => {
            "a noisy sample and a timestep (sample, timestep), and the text encoder's states (encoder_hidden_states)"
        }
    }
}
