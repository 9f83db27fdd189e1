//! Which input of a network is which of a loader's.

use super::{Loader, cut};
use crate::diffusion::{Port, Roles};
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::{Graph, ValueId};

/// The shape in which a loader feeds the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeShape {
    /// A scalar.
    Scalar,
    /// One element.
    One,
    /// One element for each sample.
    PerSample,
}

/// What an input of the loader's is made to.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// An input of the network, as it is.
    Input(String),
    /// The time.
    Time(String, TimeShape),
    /// In place of a value that the network computes of inputs that fall away.
    InPlaceOf(ValueId),
}

/// What became of the network's inputs and outputs.
#[derive(Clone, Debug)]
pub(super) struct Matched {
    /// The loader's inputs, in its order, with what they are made to.
    pub(super) inputs: Vec<(String, Source)>,
    /// The network's outputs with their new names.
    pub(super) outputs: Vec<(String, String)>,
    /// The input that takes the sample: the batch is the first of its sizes.
    pub(super) sample: String,
}

/// What the conditioning inputs of a network are for.
struct Conditioning<'r> {
    /// States of a caption, one for each token.
    text: Option<&'r Port>,
    /// An embedding of the whole caption.
    pooled: Option<&'r Port>,
    /// Sizes of the image and how it was cut (SDXL).
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

/// Matches the inputs and outputs of a network with a loader's.
///
/// # Errors
/// An input that the loader needs and the network does not have, or the other way round.
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
            .hint(format!("expected are {}; leave --io out to keep the names that the network has", expected(loader)))
    };
    let needed_text = || own(found.text).ok_or_else(|| refused("no input takes the states of a caption"));
    let mut inputs: Vec<(&str, Source)> = Vec::new();
    // Inputs that are known to the loader under the names that they have.
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
                return Err(refused("it takes U-Nets"));
            }
            let shape = match loader {
                Loader::Optimum => TimeShape::Scalar,
                Loader::Webnn if !time.element_type.is_float() && time.shape.len() == 1 => TimeShape::PerSample,
                _ => TimeShape::One,
            };
            inputs.extend([("sample", sample), ("timestep", timed(shape))]);
            match loader {
                // A network without captions runs in a page as one with them does.
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
                return Err(refused("it feeds images, and the network takes them in another form"));
            }
            inputs.extend([("x", sample), ("timesteps", timed(TimeShape::PerSample)), ("context", needed_text()?)]);
            match (found.pooled, found.ids) {
                (Some(pooled), Some(ids)) => {
                    let place = cut::joined(network, &pooled.name, &ids.name).ok_or_else(|| {
                        refused(
                            "no node joins the embedding of the caption with that of the sizes, which `y` stands for",
                        )
                    })?;
                    inputs.push(("y", Source::InPlaceOf(place)));
                }
                (None, Some(_)) => return Err(refused("sizes come without an embedding of the caption")),
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
            return Err(refused(&format!("it feeds nothing to {}", other.describe())));
        }
        inputs.push((other.name.clone(), Source::Input(other.name.clone())));
    }
    let is_prediction = |name: &str| name == roles.prediction.name;
    let names = network.1.outputs.iter().map(|output| network.1.values[*output].name.clone());
    let outputs: Vec<(String, String)> =
        names.map(|name| if is_prediction(&name) { (name, output.to_owned()) } else { (name.clone(), name) }).collect();
    if outputs.len() > 1 && loader == Loader::Comfyui {
        let names: Vec<&str> = outputs.iter().map(|(name, _)| name.as_str()).collect();
        return Err(refused(&format!("it takes one output, found {}", names.join(", "))));
    }
    Ok(Matched { inputs, outputs, sample: roles.sample.name.clone() })
}

/// What a loader feeds, in words.
fn expected(loader: Loader) -> &'static str {
    match loader {
        Loader::Optimum => {
            "a noisy sample, a time and the states of a caption (sample, timestep, encoder_hidden_states), with text_embeds and \
             time_ids for SDXL; of a transformer hidden_states, encoder_hidden_states, pooled_projections, timestep"
        }
        Loader::Demodiffusion => {
            "a noisy sample, a time and the states of a caption (sample, timestep, encoder_hidden_states), with text_embeds and \
             time_ids for SDXL"
        }
        Loader::Comfyui => {
            "a noisy image, a time and the states of a caption (x, timesteps, context), and an embedding of the whole caption (y)"
        }
        Loader::Webnn => {
            "a noisy sample and a time (sample, timestep), and the states of a caption (encoder_hidden_states)"
        }
    }
}
