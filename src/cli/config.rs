//! Converts arguments and a configuration file into the options of a cut.

use onnx_diffprune::data::read_text;
use onnx_diffprune::options::Scope;
use onnx_diffprune::{CutOptions, Error, GradientSettings, ScoreOptions, Sizes, Target};
use regex::Regex;

use super::args::PruneArgs;
use super::gradient_args::GradientArgs;

impl PruneArgs {
    /// Returns these arguments, completed from the configuration file that they name.
    pub(super) fn with_config(&self) -> Result<PruneArgs, Error> {
        let Some(path) = &self.config else {
            return Ok(self.clone());
        };
        let text = read_text(path)?;
        let fail = |error: toml::de::Error| {
            let line = error.span().and_then(|span| Some(text.get(..span.start)?.matches('\n').count() + 1));
            let at = line.map_or_else(String::new, |line| format!("line {line}: "));
            Error::unreadable(path, format!("{at}not a valid configuration: {}", error.message()))
                .hint("--print-config prints a file in the expected form")
        };
        let mut merged: toml::Table = toml::from_str(&text).map_err(fail)?;
        // The file is checked by itself first, so that an error in it is not reported as one on the command line.
        let _: PruneArgs = toml::from_str(&text).map_err(fail)?;
        let own =
            toml::Table::try_from(self).map_err(|error| Error::usage(format!("the options can't be read: {error}")))?;
        const TARGETS: [&str; 3] = ["ratio", "target-macs", "target-params"];
        if TARGETS.iter().any(|target| own.contains_key(*target)) {
            TARGETS.iter().for_each(|target| {
                merged.remove(*target);
            });
        }
        overlay(&mut merged, own);
        let merged: PruneArgs = merged.try_into().map_err(fail)?;
        let mut merged = PruneArgs { dry_run: self.dry_run, config: None, print_config: self.print_config, ..merged };
        merged.gradients.resume = self.gradients.resume;
        Ok(merged)
    }

    /// Returns the arguments as a configuration file with all defaults. A target that is not given is left out.
    pub(super) fn to_config(&self) -> Result<String, Error> {
        let has_target = self.ratio.is_some() || self.target_macs.is_some() || self.target_params.is_some();
        let ratio = if has_target { self.ratio } else { Some(0.0) };
        let cut = PruneArgs { ratio, ..self.clone() }.cut_options()?;
        let score = self.score_options()?;
        let spelled = PruneArgs {
            max_ratio: Some(cut.max_ratio),
            round_to: self.align.is_none().then_some(cut.round_to),
            scope: Some(cut.scope),
            criterion: Some(score.criterion),
            norm: Some(score.norm),
            group_reduction: Some(score.reduction),
            seed: Some(score.seed),
            norm_groups: Some(score.norm_groups),
            attention: Some(score.attention),
            gradients: GradientArgs {
                members: Some(score.members),
                threshold: Some(score.gradients.threshold),
                threshold_mode: Some(score.gradients.mode),
                ..self.gradients.clone()
            },
            ..self.clone()
        };
        toml::to_string(&spelled).map_err(|error| Error::usage(format!("the options can't be printed: {error}")))
    }

    /// Returns how channels are scored, without the network and the data of the gradients.
    pub(super) fn score_options(&self) -> Result<ScoreOptions, Error> {
        let of = &self.gradients;
        let defaults = GradientSettings::default();
        Ok(ScoreOptions {
            criterion: self.criterion.unwrap_or_default(),
            attention: self.attention.unwrap_or_default(),
            norm_groups: self.norm_groups.unwrap_or_default(),
            norm: self.norm.unwrap_or_default(),
            reduction: self.group_reduction.unwrap_or_default(),
            members: of.members.unwrap_or_default(),
            reference: of.reference,
            seed: self.seed.unwrap_or_default(),
            sizes: parse_sizes(&self.size)?,
            gradients: GradientSettings {
                threshold: of.threshold.unwrap_or(defaults.threshold),
                mode: of.threshold_mode.unwrap_or_default(),
                ..defaults
            },
            task: self.task.clone().unwrap_or_default(),
            compares_groups: self.scope == Some(Scope::Global),
        })
    }

    /// Returns which channels are removed.
    pub(super) fn cut_options(&self) -> Result<CutOptions, Error> {
        let share = |name: &str, value: f64| match value > 0.0 && value <= 1.0 {
            true => Ok(value),
            false => Err(Error::usage(format!("--{name}: expected a share in (0, 1], found {value}"))),
        };
        let target = match (self.ratio, self.target_macs, self.target_params) {
            (Some(ratio), None, None) => Target::Ratio(check_ratio("--ratio", ratio)?),
            (None, Some(macs), None) => Target::Macs(share("target-macs", macs)?),
            (None, None, Some(params)) => Target::Params(share("target-params", params)?),
            (None, None, None) if !self.ratio_for.is_empty() => Target::Ratio(0.0),
            (None, None, None) => {
                return Err(Error::usage("no pruning target given").hint(
                    "give --ratio (share of channels to remove), --target-macs or --target-params (share to keep)",
                ));
            }
            _ => {
                return Err(Error::usage(
                    "expected only one of --ratio, --target-macs and --target-params, found several",
                ));
            }
        };
        let mut options = CutOptions::new(target);
        options.max_ratio = match self.max_ratio.unwrap_or(1.0) {
            ratio if (0.0..=1.0).contains(&ratio) => ratio,
            other => return Err(Error::usage(format!("--max-ratio: expected a share in [0, 1], found {other}"))),
        };
        options.round_to = match self.round_to {
            Some(0) => {
                return Err(Error::usage("--round-to: expected a number of at least 1, found 0"));
            }
            other => other.unwrap_or(1),
        };
        if let Some(align) = &self.align {
            if self.round_to.is_some_and(|multiple| multiple > 1) {
                return Err(Error::usage("--align and --round-to both set the widths of axes: give only one of them"));
            }
            (options.round_to, options.evens_norm_groups) = (aligned_width(align)?, true);
            options.round_heads_to = ALIGNED_HEADS;
        }
        options.scope = self.scope.unwrap_or_default();
        options.keep = self.keep.iter().map(|text| pattern("--keep", text)).collect::<Result<_, _>>()?;
        for text in &self.ratio_for {
            let form = || Error::usage(format!("--ratio-for: expected REGEX=R, found {text:?}"));
            let (regex, ratio) = text.rsplit_once('=').ok_or_else(form)?;
            let ratio = ratio.trim().parse().map_err(|_| form())?;
            options.ratio_for.push((pattern("--ratio-for", regex)?, check_ratio("--ratio-for", ratio)?));
        }
        Ok(options)
    }
}

/// Merges the entries of `over` into `base`, which they replace; tables are merged recursively.
fn overlay(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => overlay(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Checks that `ratio` is a share of channels in [0, 1); `name` is the option that an error names.
pub(super) fn check_ratio(name: &str, ratio: f64) -> Result<f64, Error> {
    if (0.0..1.0).contains(&ratio) {
        return Ok(ratio);
    }
    Err(Error::usage(format!("{name}: expected a share of channels in [0, 1), found {ratio}"))
        .hint("0.5 removes half of the channels of every group"))
}

/// The multiple of head sizes in every alignment. The matrix products of attention run in half precision even if the
/// layers are in int8, and half precision only needs multiples of eight.
const ALIGNED_HEADS: usize = 8;

/// Returns the multiple of widths that suits a runtime.
///
/// Multiples of 8 fill the tensor cores of GPUs in half precision, multiples of 32 those in int8. ONNX Runtime and
/// OpenVINO block channels by the register width of the CPU: 16 numbers in AVX-512.
fn aligned_width(text: &str) -> Result<usize, Error> {
    let (target, precision) =
        text.split_once(':').map_or((text, None), |(target, precision)| (target, Some(precision)));
    let width = match target {
        "tensorrt" | "ort-cuda" => 8,
        "openvino" | "cpu" => 16,
        _ => 0,
    };
    match precision {
        None if width > 0 => Ok(width),
        Some("int8") if width > 0 => Ok(32),
        _ => Err(Error::usage(format!(
            "--align: expected tensorrt, ort-cuda, openvino or cpu, optionally with :int8 appended, found {text:?}"
        ))),
    }
}

/// Parses the regular expression of the option `name`.
pub(super) fn pattern(name: &str, text: &str) -> Result<Regex, Error> {
    Regex::new(text).map_err(|error| Error::usage(format!("{name}: {text:?} is not a regular expression: {error}")))
}

/// Parses sizes of symbolic dimensions, given as NAME=N.
pub(super) fn parse_sizes(texts: &[String]) -> Result<Sizes, Error> {
    texts
        .iter()
        .map(|text| {
            let form = || Error::usage(format!("--size: expected NAME=N with N of at least 1, found {text:?}"));
            let (name, size) = text.rsplit_once('=').ok_or_else(form)?;
            let size: i64 = size.trim().parse().map_err(|_| form())?;
            if size < 1 { Err(form()) } else { Ok((name.to_owned(), size)) }
        })
        .collect()
}
