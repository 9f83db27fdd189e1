//! Recognition of roles by shape, type and name.

use super::names::{sample_score, time_score};
use super::{Joined, Port, RoleNames, Roles};
use crate::array::ElementType;
use crate::error::Error;
use crate::graph::dim::Dim;

/// How the shape of an output fits a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Same,
    /// The size on this axis is twice that of the sample.
    Double(usize),
}

/// Returns how an output of this shape fits a sample of that shape. `None`: it does not. Unknown sizes fit any size.
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

/// Compares the shape of a sample input with an output that is equal except for a smaller size on one axis other than
/// the first. Returns this axis and the output's size: the input holds more than the sample.
fn shorter(input: &[Dim], output: &[Dim]) -> Option<(usize, i64)> {
    if input.len() != output.len() {
        return None;
    }
    let mut found = None;
    for (axis, (a, b)) in input.iter().zip(output).enumerate() {
        match (a.as_const(), b.as_const()) {
            (Some(a), Some(b)) if a > b && axis > 0 && found.is_none() => found = Some((axis, b)),
            (Some(a), Some(b)) if a != b => return None,
            _ => {}
        }
    }
    found
}

/// Returns a shape with another size on one axis.
fn with_size(shape: &[Dim], axis: usize, size: i64) -> Vec<Dim> {
    let mut shape = shape.to_vec();
    shape[axis] = Dim::from(size);
    shape
}

/// Returns whether a shape holds a single number, or one number per sample.
fn is_scalar_per_sample(shape: &[Dim]) -> bool {
    shape.len() <= 1 || shape.len() == 2 && shape[1].is(1)
}

fn list<'a>(ports: impl IntoIterator<Item = &'a Port>) -> String {
    let texts: Vec<&str> = ports.into_iter().map(|port| port.text.as_str()).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

/// Returns the port of this name.
fn named<'p>(ports: &'p [Port], name: &str, option: &str, kind: &str) -> Result<&'p Port, Error> {
    ports.iter().find(|port| port.name == name).ok_or_else(|| {
        Error::usage(format!("{option}: the network has no {kind} {name:?}"))
            .hint(format!("its {kind}s are {}", list(ports)))
    })
}

/// Returns the ports with the highest score.
fn best<'p>(scored: impl IntoIterator<Item = (&'p Port, u8)>) -> Vec<&'p Port> {
    let scored: Vec<_> = scored.into_iter().collect();
    let highest = scored.iter().map(|(_, score)| *score).max();
    scored.into_iter().filter(|(_, score)| Some(*score) == highest).map(|(port, _)| port).collect()
}

pub(super) fn roles(inputs: &[Port], outputs: &[Port], names: &RoleNames) -> Result<Roles, Error> {
    let input = sample_port(inputs, outputs, names)?;
    let joined = joined_at(input, outputs, names)?;
    let mut sample = input.clone();
    if let Some((axis, size)) = joined {
        sample.shape = with_size(&input.shape, axis, size);
    }
    let offset = offset(input, joined, names)?;
    let time = time_port(inputs, &sample, names)?;
    let (prediction, fit) = prediction_port(outputs, &sample, names)?;
    let conditioning =
        inputs.iter().filter(|port| port.name != sample.name && port.name != time.name).cloned().collect();
    let variance_axis = match fit {
        Fit::Same => None,
        Fit::Double(axis) => Some(axis),
    };
    Ok(Roles {
        joined: joined.map(|(axis, _)| Joined { axis, offset, port: input.clone() }),
        sample,
        time: time.clone(),
        conditioning,
        prediction: prediction.clone(),
        variance_axis,
    })
}

/// Returns where the sample's input holds more than the sample: the axis, and the sample's size on it.
fn joined_at(input: &Port, outputs: &[Port], names: &RoleNames) -> Result<Option<(usize, i64)>, Error> {
    let chosen = outputs.iter().filter(|output| names.prediction.as_ref().is_none_or(|name| *name == output.name));
    let outputs: Vec<&Port> = chosen.filter(|output| output.element_type.is_float()).collect();
    let fits = |shape: &[Dim]| outputs.iter().any(|output| fit(shape, &output.shape).is_some());
    if let Some(channels) = names.sample_channels {
        let is_longer = |axis: &usize| input.shape[*axis].as_const().is_some_and(|size| size > channels);
        let mut axes = (1..input.shape.len()).filter(is_longer);
        let axis = axes.find(|axis| channels > 0 && fits(&with_size(&input.shape, *axis, channels)));
        return axis.map(|axis| Some((axis, channels))).ok_or_else(|| {
            Error::usage(format!(
                "--sample-channels {channels}: expected fewer channels than {} has, and an output with as many or \
                 twice as many channels",
                input.text
            ))
            .hint(format!("the outputs are {}", list(outputs.iter().copied())))
        });
    }
    if fits(&input.shape) {
        return Ok(None);
    }
    Ok(outputs.iter().find_map(|output| shorter(&input.shape, &output.shape)))
}

/// Returns the index at which the sample begins on the axis that it shares with other values.
fn offset(input: &Port, joined: Option<(usize, i64)>, names: &RoleNames) -> Result<usize, Error> {
    let Some(offset) = names.sample_offset.filter(|offset| *offset != 0) else { return Ok(0) };
    let (text, size) = match joined {
        None => (format!("{} holds nothing besides the sample", input.text), 0),
        Some((axis, size)) => {
            let whole = input.shape[axis].as_const().unwrap_or(size);
            (
                format!(
                    "expected 0 to {}: the sample takes {size} indices of axis {axis} of {}",
                    whole - size,
                    input.text
                ),
                whole - size,
            )
        }
    };
    usize::try_from(offset)
        .ok()
        .filter(|_| offset <= size)
        .ok_or_else(|| Error::usage(format!("--sample-offset {offset}: {text}")))
}

fn sample_port<'p>(inputs: &'p [Port], outputs: &[Port], names: &RoleNames) -> Result<&'p Port, Error> {
    let can_be = |port: &&Port| port.element_type.is_float() && !is_scalar_per_sample(&port.shape);
    if let Some(name) = &names.sample {
        let port = named(inputs, name, "--sample-input", "input")?;
        return match can_be(&port) {
            true => Ok(port),
            false => Err(Error::usage(format!(
                "--sample-input: expected a float input with a batch and at least one more axis, found {}",
                port.text
            ))),
        };
    }
    let fits = |port: &&Port| outputs.iter().any(|output| fit(&port.shape, &output.shape).is_some());
    let is_longer = |port: &&Port| outputs.iter().any(|output| shorter(&port.shape, &output.shape).is_some());
    let mut candidates: Vec<&Port> = inputs.iter().filter(can_be).filter(fits).collect();
    if candidates.is_empty() {
        candidates = inputs.iter().filter(can_be).filter(is_longer).collect();
    }
    match best(candidates.into_iter().map(|port| (port, sample_score(&port.name)))).as_slice() {
        [one] => Ok(one),
        [] => Err(Error::usage(format!(
            "no input was recognised as the noisy sample: expected a float input with the shape of an output, with \
             half its channels, or with additional channels; found inputs {} and outputs {}",
            list(inputs),
            list(outputs)
        ))
        .hint("name it with --sample-input and --sample-channels. A network that takes tokens can't be sampled")),
        several => {
            Err(Error::usage(format!("several inputs could be the noisy sample: {}", list(several.iter().copied())))
                .hint("name it with --sample-input"))
        }
    }
}

fn time_port<'p>(inputs: &'p [Port], sample: &Port, names: &RoleNames) -> Result<&'p Port, Error> {
    let others = || inputs.iter().filter(|port| port.name != sample.name);
    let can_be = |port: &&Port| port.element_type != ElementType::Bool && is_scalar_per_sample(&port.shape);
    if let Some(name) = &names.time {
        let port = named(inputs, name, "--timestep-input", "input")?;
        // One number per frame works as well: all frames get the same.
        let is_small = port.element_type != ElementType::Bool && port.shape.len() <= 2;
        return match is_small && port.name != sample.name {
            true => Ok(port),
            false => Err(Error::usage(format!(
                "--timestep-input: expected an input of one number per sample or frame, found {}",
                port.text
            ))),
        };
    }
    let scored = others().filter(can_be).map(|port| (port, time_score(&port.name)));
    // If the only other input has one number per sample, it must be the timestep.
    let only = others().count() == 1;
    let mut found = best(scored.filter(|(_, score)| only || *score > 0));
    if found.is_empty() {
        // One number for every frame of a video.
        let per_frame = others().filter(|port| port.element_type != ElementType::Bool && port.shape.len() == 2);
        found = per_frame.filter(|port| time_score(&port.name) == 2).collect();
    }
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(Error::usage(format!(
            "no input was recognised as the timestep: expected one number per sample with a name such as timestep, t \
             or sigma, found {}",
            list(others())
        ))
        .hint("if the network has such an input, name it with --timestep-input")),
        several => {
            Err(Error::usage(format!("several inputs could be the timestep: {}", list(several.iter().copied())))
                .hint("name it with --timestep-input"))
        }
    }
}

fn prediction_port<'p>(outputs: &'p [Port], sample: &Port, names: &RoleNames) -> Result<(&'p Port, Fit), Error> {
    if let Some(name) = &names.prediction {
        let port = named(outputs, name, "--prediction-output", "output")?;
        let fit = fit(&sample.shape, &port.shape).filter(|_| port.element_type.is_float());
        return fit.map(|fit| (port, fit)).ok_or_else(|| {
            Error::usage(format!(
                "--prediction-output: expected a float output with the shape of sample {} or twice its channels, found {}",
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
            "no output was recognised as the prediction: expected a float output with the shape of the sample {} or \
             twice its channels, found {}",
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

    /// Parses `name:type[dims]`. A dimension that is not a number is symbolic.
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
        // If the only other input has one number per sample, its name does not matter.
        assert_eq!(recognised(&["a:f[b,3,8,8]", "b:f[b]"], &["c:f[?,3,?,?]"]).unwrap().time.name, "b");
    }

    #[test]
    fn an_input_may_hold_more_than_the_sample() {
        let inpainting = recognised(&["sample:f[b,9,h,w]", "t:i[b]"], &["out:f[b,4,?,?]"]).unwrap();
        assert_eq!(inpainting.sample.shape[1], Dim::from(4));
        let joined = inpainting.joined.unwrap();
        assert_eq!((joined.axis, &joined.port.shape[1]), (1, &Dim::from(9)));
        let video = recognised(&["x:f[1,5,8,4,4]", "t:i[1,5]"], &["out:f[1,5,4,4,4]"]).unwrap();
        assert_eq!((video.joined.unwrap().axis, video.time.name.as_str()), (2, "t"));
        // Six channels of seven, or three with a variance.
        let (inputs, outputs) = (ports(&["x:f[b,7,8,8]", "t:i[b]"]), ports(&["out:f[b,6,8,8]"]));
        let of = |channels| roles(&inputs, &outputs, &RoleNames { sample_channels: channels, ..RoleNames::default() });
        assert_eq!(of(None).unwrap().variance_axis, None);
        let learned = of(Some(3)).unwrap();
        assert_eq!((learned.sample.shape[1].as_const(), learned.variance_axis), (Some(3), Some(1)));
        assert!(of(Some(4)).unwrap_err().to_string().contains("--sample-channels"));
        // Another input with the shape of the output is the sample.
        let roles = recognised(&["x:f[b,9,8,8]", "z:f[b,3,8,8]", "t:i[b]"], &["out:f[b,3,8,8]"]).unwrap();
        assert_eq!((roles.sample.name.as_str(), roles.joined), ("z", None));
    }

    #[test]
    fn ambiguous_roles_are_errors_that_name_the_role() {
        let message = |inputs: &[&str], outputs: &[&str]| recognised(inputs, outputs).unwrap_err().to_string();
        assert!(
            message(&["a:f[2,3]", "b:f[2,3]", "t:i[2]"], &["c:f[2,3]"]).contains("several inputs could be the noisy")
        );
        assert!(message(&["x:f[2,3]", "t:i[2]", "sigma:f[2]"], &["c:f[2,3]"]).contains("could be the timestep"));
        assert!(message(&["x:f[2,3]", "t:i[2]"], &["c:f[2,3]", "d:f[2,3]"]).contains("could be the prediction"));
        assert!(message(&["tokens:i[2,12]", "t:i[2]"], &["logits:f[2,12,40]"]).contains("no input was recognised"));
        assert!(message(&["sample:f[1,3,16,16]"], &["output:f[1,3,16,16]"]).contains("timestep"));
        let names = RoleNames { time: Some("x".to_owned()), ..RoleNames::default() };
        assert!(roles(&ports(&["x:f[2,3]", "t:i[2]"]), &ports(&["c:f[2,3]"]), &names).is_err());
    }
}
