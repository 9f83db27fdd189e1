//! From arguments and a configuration file to the options of a cut.

use std::path::Path;

use regex::Regex;

use super::args::PruneArgs;
use crate::error::Error;
use crate::macs::Sizes;
use crate::pipeline::{PruneOptions, Target};

impl PruneArgs {
    /// These arguments, completed by those of the configuration file they name.
    pub(super) fn with_config(&self) -> Result<PruneArgs, Error> {
        let Some(path) = &self.config else {
            return Ok(self.clone());
        };
        let text =
            std::fs::read_to_string(path).map_err(|error| Error::input(path, format!("can't be read: {error}")))?;
        let file: PruneArgs = toml::from_str(&text).map_err(|error| {
            Error::input(path, format!("not a configuration file: {}", error.message()))
                .hint("--print-config shows the form")
        })?;
        let has_target = self.ratio.is_some() || self.target_macs.is_some() || self.target_params.is_some();
        let own_or = |own: &Vec<String>, other: Vec<String>| {
            if own.is_empty() { other } else { own.clone() }
        };
        Ok(PruneArgs {
            input: self.input.clone().or(file.input),
            output: self.output.clone().or(file.output),
            ratio: if has_target { self.ratio } else { file.ratio },
            target_macs: if has_target { self.target_macs } else { file.target_macs },
            target_params: if has_target { self.target_params } else { file.target_params },
            max_ratio: self.max_ratio.or(file.max_ratio),
            round_to: self.round_to.or(file.round_to),
            scope: self.scope.or(file.scope),
            criterion: self.criterion.or(file.criterion),
            norm: self.norm.or(file.norm),
            group_reduction: self.group_reduction.or(file.group_reduction),
            seed: self.seed.or(file.seed),
            keep: own_or(&self.keep, file.keep),
            ratio_for: own_or(&self.ratio_for, file.ratio_for),
            norm_groups: self.norm_groups.or(file.norm_groups),
            attention: self.attention.or(file.attention),
            size: own_or(&self.size, file.size),
            plan: self.plan.clone().or(file.plan),
            dry_run: self.dry_run,
            no_verify: self.no_verify || file.no_verify,
            no_latency: self.no_latency || file.no_latency,
            rtol: self.rtol.or(file.rtol),
            atol: self.atol.or(file.atol),
            inputs: self.inputs.clone().or(file.inputs),
            config: None,
            print_config: self.print_config,
        })
    }

    /// The arguments as a configuration file, defaults spelled out.
    pub(super) fn to_config(&self) -> Result<String, Error> {
        let options = self.options()?;
        let spelled = PruneArgs {
            max_ratio: Some(options.max_ratio),
            round_to: Some(options.round_to),
            scope: Some(options.scope),
            criterion: Some(options.criterion),
            norm: Some(options.norm),
            group_reduction: Some(options.reduction),
            seed: Some(options.seed),
            norm_groups: Some(options.norm_groups),
            attention: Some(options.attention),
            ..self.clone()
        };
        toml::to_string(&spelled).map_err(|error| Error::usage(format!("the options can't be printed: {error}")))
    }

    /// The options of the cut.
    pub(super) fn options(&self) -> Result<PruneOptions, Error> {
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
                return Err(Error::usage("how much is to be removed is not said").hint(
                    "give --ratio (share of channels to remove), --target-macs or --target-params (share to keep)",
                ));
            }
            _ => {
                return Err(Error::usage("expected one of ratio, target-macs and target-params, found several"));
            }
        };
        let mut options = PruneOptions::new(target);
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
        options.scope = self.scope.unwrap_or_default();
        options.criterion = self.criterion.unwrap_or_default();
        options.norm = self.norm.unwrap_or_default();
        options.reduction = self.group_reduction.unwrap_or_default();
        options.seed = self.seed.unwrap_or_default();
        options.norm_groups = self.norm_groups.unwrap_or_default();
        options.attention = self.attention.unwrap_or_default();
        options.keep = self.keep.iter().map(|text| pattern("--keep", text)).collect::<Result<_, _>>()?;
        for text in &self.ratio_for {
            let form = || Error::usage(format!("--ratio-for: expected REGEX=R, found {text:?}"));
            let (regex, ratio) = text.rsplit_once('=').ok_or_else(form)?;
            let ratio = ratio.trim().parse().map_err(|_| form())?;
            options.ratio_for.push((pattern("--ratio-for", regex)?, check_ratio("--ratio-for", ratio)?));
        }
        options.sizes = parse_sizes(&self.size)?;
        Ok(options)
    }
}

fn check_ratio(name: &str, ratio: f64) -> Result<f64, Error> {
    if (0.0..1.0).contains(&ratio) {
        return Ok(ratio);
    }
    Err(Error::usage(format!("{name}: expected a share of channels in [0, 1), found {ratio}"))
        .hint("0.5 removes half of the channels of every group"))
}

pub(super) fn pattern(name: &str, text: &str) -> Result<Regex, Error> {
    Regex::new(text).map_err(|error| Error::usage(format!("{name}: {text:?} is not a regular expression: {error}")))
}

/// Sizes of symbolic dimensions, given as NAME=N.
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

/// Refuses sizes for dimensions that the model does not have: most likely a typing error.
pub(super) fn check_sizes(given: &Sizes, known: &Sizes, path: &Path) -> Result<(), Error> {
    for name in given.keys() {
        if !known.contains_key(name) {
            let names: Vec<&str> = known.keys().map(String::as_str).filter(|name| !name.starts_with('?')).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(Error::usage(format!("--size: {} has no symbolic dimension {name:?}", path.display()))
                .hint(format!("its symbolic dimensions: {names}")));
        }
    }
    Ok(())
}
