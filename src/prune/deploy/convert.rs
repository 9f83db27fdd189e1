//! Converts a network to another precision, and measures the distance of its outputs from those before.

use std::path::Path;

use super::super::progress::{Progress, Stage, Watch, notify};
use super::super::runtime::Runtime;
use super::subject::{Material, Subject, outputs};
use super::{DeployOptions, OutputDistance};
use crate::deploy::ranges::Inputs;
use crate::deploy::{
    DeployPrecision, Form, HalfOptions, HalfReport, QuantizeOptions, QuantizeReport, halve, is_half, quantize,
    watch_ranges,
};
use crate::error::Error;

/// A network in another precision.
pub(super) struct Converted {
    pub(super) form: Form,
    pub(super) half: Option<HalfReport>,
    pub(super) int8: Option<QuantizeReport>,
    /// A note for the user.
    pub(super) note: Option<String>,
}

/// Converts the network to the requested precision.
pub(super) fn convert(
    subject: &Subject<'_>,
    runtime: &Runtime,
    material: &Material,
    loss: Option<f64>,
    options: &DeployOptions,
    watch: &mut Watch<'_>,
) -> Result<Converted, Error> {
    let as_it_is = || Form::of(&subject.model, &subject.graph);
    let precision = options.precision();
    let known = (&subject.model, &subject.graph, &subject.facts);
    let network = (&subject.model, &subject.graph, &subject.operators, &subject.facts);
    if precision == DeployPrecision::Float32 {
        return Ok(Converted { form: as_it_is(), half: None, int8: None, note: None });
    }
    if is_half(&subject.facts) && (options.precision.is_none() || precision == DeployPrecision::Float16) {
        let note = Some("the network is in half precision already and is not converted".to_owned());
        return Ok(Converted { form: as_it_is(), half: None, int8: None, note });
    }
    let ranges = watch_ranges(runtime.0, known, &material.batches, &mut |done, total| {
        notify(watch, Progress::At { stage: Stage::Converting, done, total })
    })?;
    if let Some(dtype) = precision.half_type() {
        let half =
            HalfOptions { dtype, halves_interface: options.has_half_interface(), keep: &options.keep, ranges: &ranges };
        let (form, report) = halve(network, &half)?;
        return Ok(Converted { form, half: Some(report), int8: None, note: None });
    }
    let output = subject.prediction()?;
    let given = outputs(runtime.0, subject.model.path(), &material.batches, &mut |done, total| {
        notify(watch, Progress::At { stage: Stage::Converting, done, total })
    })?;
    let of_output = given.iter().flatten().filter(|(name, _)| *name == output);
    let values: Vec<f64> = of_output.flat_map(|(_, array)| array.to_f64()).collect();
    let square = values.iter().map(|value| value * value).sum::<f64>() / values.len().max(1) as f64;
    // If rounding is independent of the network's error, it adds its mean square to the loss. The loss of a network
    // that predicts badly can exceed the mean square of its prediction, so the smaller of both is the scale.
    let scale = loss.map_or(square, |loss| loss.min(square));
    let quantized = QuantizeOptions {
        style: options.target.quantized_style(),
        calibration: options.calibration,
        keep: &options.keep,
        ranges: &ranges,
        output: &output,
        most: Some(options.budget * scale),
    };
    let (form, report) = quantize(runtime.0, network, &material.batches, &quantized, &mut |done, total| {
        notify(watch, Progress::At { stage: Stage::Comparing, done, total })
    })?;
    Ok(Converted { form, half: None, int8: Some(report), note: None })
}

/// Measures the distances between the outputs of two files, over all runs.
pub(super) fn compare(
    runtime: &Runtime,
    before: &Path,
    after: &Path,
    batches: &[Inputs],
    watch: &mut Watch<'_>,
) -> Result<Vec<OutputDistance>, Error> {
    let mut at = |half: usize, done: usize, total: usize| {
        notify(watch, Progress::At { stage: Stage::Verifying, done: half * total + done, total: 2 * total })
    };
    let wanted = outputs(runtime.0, before, batches, &mut |done, total| at(0, done, total))?;
    let found = outputs(runtime.0, after, batches, &mut |done, total| at(1, done, total))?;
    let names: Vec<&String> = wanted.first().into_iter().flatten().map(|(name, _)| name).collect();
    let mut distances = Vec::new();
    for (at, name) in names.into_iter().enumerate() {
        let (mut difference, mut square, mut largest, mut magnitude) = (0.0, 0.0, 0.0f64, 0.0f64);
        for (wanted, found) in wanted.iter().zip(&found) {
            let of = |outputs: &Inputs| outputs.get(at).map(|(_, array)| array.to_f64()).unwrap_or_default();
            for (a, b) in of(wanted).into_iter().zip(of(found)) {
                if !a.is_finite() {
                    continue;
                }
                if !b.is_finite() {
                    return Err(Error::unmet(format!("output {name:?} contains {b} in this precision, expected {a}"))
                        .in_file(before)
                        .hint("keep nodes in float32 with --keep REGEX, or use --precision bfloat16"));
                }
                difference += (a - b).powi(2);
                square += a * a;
                largest = largest.max((a - b).abs());
                magnitude = magnitude.max(a.abs());
            }
        }
        let relative = if square > 0.0 { (difference / square).sqrt() } else { difference.sqrt() };
        let worst = if magnitude > 0.0 { largest / magnitude } else { largest };
        distances.push(OutputDistance { output: name.clone(), relative, worst });
    }
    Ok(distances)
}
