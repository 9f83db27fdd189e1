//! The gradient criteria estimate how much the loss would change if the weights of a channel were zero.
//!
//! Let `G_w` be the gradient of the loss with respect to weight w, summed over timesteps (see
//! [`crate::gradient::accumulate`]). The importance of a channel with weights w, over all members of its coupled group,
//! is
//!
//! - `diff-pruning`: `sum |w G_w|` (the paper's equation 8);
//! - `taylor`: `|sum w G_w|`, the first-order change of the loss itself;
//! - `hessian`: `sum w^2 F_w` with F the sum of squared gradients, the diagonal of the Fisher matrix.
//!
//! Members are the rows of weights that produce the channels, the columns of weights that consume them, norm scales,
//! offsets and biases. Two published implementations differ; [`Published`] follows each.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Criterion, GroupReduction, ScoreCx};
use crate::couple::group::{ChannelGroup, Member, Role};
use crate::error::Error;
use crate::gradient::UseGradient;
use crate::gradient::accumulate::Accumulated;
use crate::graph::Reader;
use crate::onnx::TensorProto;
use crate::onnx::floats::Floats;

/// Which members of a channel group score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum ScoringMembers {
    /// All members: weights on both sides, norms and biases.
    #[default]
    All,
    /// The weights on both sides: rows of producers, columns of consumers.
    Weights,
    /// The rows of producers alone.
    Producers,
}

/// A published implementation of Diff-Pruning to follow exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Published {
    /// `ddpm_prune.py` with Torch-Pruning: the mean of |w G| over weights on both sides. The sum includes the step at
    /// which the loss falls below the threshold.
    DdpmPrune,
    /// `ddpm_exp/prune.py`: sums of (w G)^2 over weights on both sides plus |w G| of norm scales, with the loss summed
    /// over an image. The sum excludes the step at which the loss falls below the threshold.
    DdpmExp,
}

/// The product of weights and gradients that is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// `|w G|`.
    Absolute,
    /// `w G`; the absolute value is taken after the sum over all members.
    Signed,
    /// `(w G)^2` of weights, `|w G|` of norm scales.
    Squared,
    /// `w^2 F`.
    Curvature,
}

/// The settings of a gradient criterion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradientForm {
    /// The name of the criterion.
    pub name: &'static str,
    /// What is summed.
    pub term: Term,
    /// Which members score.
    pub members: ScoringMembers,
    /// How the scores of members are combined.
    pub reduction: GroupReduction,
    /// Whether to follow `ddpm_exp`: norm scales score although `members` excludes parameters, and a member with
    /// another number of indices per channel than the first does not score.
    pub is_ddpm_exp: bool,
    /// The factor on gradients: the number of elements of an image if the loss is a sum over the image.
    pub loss_scale: f64,
}

impl GradientForm {
    /// Returns whether a score depends on the summed gradients only through `sum w G` over the indices of each member:
    /// absolute values are taken after that sum, if at all.
    pub fn is_linear(&self) -> bool {
        self.term == Term::Signed
    }

    /// Replaces summed gradients with the sums of the criterion's terms: one sum per index of each axis of a weight
    /// that channels of the groups lie along, over all other axes. Gradients with respect to other weights are dropped.
    ///
    /// # Errors
    /// Fails if a weight can't be read.
    pub fn reduce(&self, cx: &ScoreCx<'_>, groups: &[ChannelGroup], gradients: &mut Accumulated) -> Result<(), Error> {
        let wanted: BTreeMap<Reader, _> = scoring_axes(groups)
            .into_iter()
            .map(|(weight, axes)| (cx.coupling.uses[weight].reader(), (weight, axes)))
            .collect();
        for (gradient, sums) in gradients.uses.iter_mut().zip(&mut gradients.sums) {
            if !gradient.axes.is_empty() {
                continue;
            }
            let reduced = match wanted.get(&reader_of(gradient)) {
                Some((weight, axes)) => self.index_sums(cx, groups, (*weight, axes), sums)?,
                None => Vec::new(),
            };
            gradient.axes = reduced.iter().map(|(axis, _)| *axis).collect();
            *sums = reduced.into_iter().flat_map(|(_, values)| values).map(|value| value as f32).collect();
        }
        Ok(())
    }

    /// Returns, for each of these axes of a use of a weight, the sums of the criterion's terms over all other axes.
    /// Returns none if the number of gradient entries differs from the weight's.
    fn index_sums(
        &self,
        cx: &ScoreCx<'_>,
        groups: &[ChannelGroup],
        (weight, axes): (usize, &BTreeSet<usize>),
        sums: &[f32],
    ) -> Result<Vec<(usize, Vec<f64>)>, Error> {
        let tensor = cx.constant(cx.coupling.uses[weight].value)?;
        let values = floats(tensor, &cx.model.tensor_view(tensor)?);
        if values.len() != sums.len() {
            return Ok(Vec::new());
        }
        let mut members = groups.iter().flat_map(|group| &group.members);
        let is_parameter = members.any(|member| member.weight == weight && member.role == Role::Parameter);
        let entry = |at: usize| self.entry(f64::from(values[at]), f64::from(sums[at]), is_parameter);
        let dims: Vec<usize> = tensor.dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
        let axes: Vec<usize> = axes.iter().copied().collect();
        let of_axes = axis_sums(&dims, &axes, entry);
        Ok(axes.into_iter().zip(of_axes).collect())
    }

    fn entry(&self, w: f64, g: f64, is_parameter: bool) -> f64 {
        let product = w * g * self.loss_scale;
        match self.term {
            Term::Absolute => product.abs(),
            Term::Signed => product,
            Term::Squared if is_parameter => product.abs(),
            Term::Squared => product * product,
            Term::Curvature => w * w * g,
        }
    }
}

/// Returns the axes, by use of a weight, that the channels of groups that may shrink lie along.
pub fn scoring_axes(groups: &[ChannelGroup]) -> BTreeMap<usize, BTreeSet<usize>> {
    let mut wanted: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for member in groups.iter().filter(|group| group.fixed.is_none()).flat_map(|group| &group.members) {
        wanted.entry(member.weight).or_default().insert(member.axis);
    }
    wanted
}

fn reader_of(gradient: &UseGradient) -> Reader {
    Reader { node: gradient.node, slot: gradient.slot }
}

/// Splits `sums`, which holds the sums by index of every axis one after the other.
fn parts(cx: &ScoreCx<'_>, weight: usize, axes: &[usize], sums: &[f32]) -> Result<Vec<(usize, Vec<f64>)>, Error> {
    let dims = &cx.constant(cx.coupling.uses[weight].value)?.dims;
    let size = |axis: usize| dims.get(axis).and_then(|size| usize::try_from(*size).ok()).unwrap_or(0);
    let mut rest = sums;
    let mut parts = Vec::with_capacity(axes.len());
    for axis in axes {
        let (own, after) = rest.split_at(size(*axis).min(rest.len()));
        parts.push((*axis, own.iter().map(|value| f64::from(*value)).collect()));
        rest = after;
    }
    Ok(parts)
}

/// A criterion based on summed gradients.
#[derive(Debug)]
pub struct GradientCriterion {
    form: GradientForm,
    /// Sums over all other axes, by use of a weight and axis.
    scores: BTreeMap<(usize, usize), Vec<f64>>,
}

impl GradientCriterion {
    /// Multiplies every weight of the groups by its gradient.
    ///
    /// # Errors
    /// Fails if a weight can't be read.
    pub fn new(
        cx: &ScoreCx<'_>,
        groups: &[ChannelGroup],
        gradients: &Accumulated,
        form: &GradientForm,
    ) -> Result<Self, Error> {
        let by_reader: BTreeMap<Reader, usize> =
            gradients.uses.iter().enumerate().map(|(at, gradient)| (reader_of(gradient), at)).collect();
        let mut scores = BTreeMap::new();
        for (weight, axes) in scoring_axes(groups) {
            let Some(&at) = by_reader.get(&cx.coupling.uses[weight].reader()) else { continue };
            let sums = match gradients.uses[at].axes.as_slice() {
                [] => form.index_sums(cx, groups, (weight, &axes), &gradients.sums[at])?,
                of => parts(cx, weight, of, &gradients.sums[at])?,
            };
            for (axis, of_index) in sums.into_iter().filter(|(axis, _)| axes.contains(axis)) {
                scores.insert((weight, axis), of_index);
            }
        }
        Ok(Self { form: *form, scores })
    }

    fn counts(&self, cx: &ScoreCx<'_>, member: &Member, first: &Member) -> bool {
        let is_scale = || {
            let weight = &cx.coupling.uses[member.weight];
            let node = &cx.graph.nodes[weight.node];
            cx.operators.get(node.id).is_some_and(|op| op.scales(weight.slot))
        };
        let is_aligned = || member.indices.first().map(Vec::len) == first.indices.first().map(Vec::len);
        match (self.form.members, member.role) {
            (ScoringMembers::All, _) => true,
            (_, Role::Parameter) => self.form.is_ddpm_exp && is_scale() && is_aligned(),
            (ScoringMembers::Weights, _) => !self.form.is_ddpm_exp || is_aligned(),
            (ScoringMembers::Producers, role) => role == Role::Producer,
        }
    }
}

impl Criterion for GradientCriterion {
    fn name(&self) -> &'static str {
        self.form.name
    }

    fn score(&self, cx: &ScoreCx<'_>, group: &ChannelGroup) -> Result<Vec<f64>, Error> {
        let Some(first) = group.members.first() else { return Ok(Vec::new()) };
        let mut members: Vec<&Member> = group.members.iter().filter(|member| self.counts(cx, member, first)).collect();
        if members.is_empty() {
            members = group.members.iter().collect();
        }
        if self.form.reduction == GroupReduction::First {
            members.truncate(1);
        }
        // Except for a signed sum over all members, each member contributes its absolute score.
        let is_signed_sum = self.form.term == Term::Signed && self.form.reduction == GroupReduction::Sum;
        let mut scores = vec![0.0f64; group.channels.len()];
        for member in &members {
            let Some(of_index) = self.scores.get(&(member.weight, member.axis)) else { continue };
            for (score, indices) in scores.iter_mut().zip(&member.indices) {
                let sum: f64 = indices.iter().filter_map(|index| of_index.get(*index as usize)).sum();
                let sum = if is_signed_sum { sum } else { sum.abs() };
                *score = match self.form.reduction {
                    // f64::max would ignore a NaN; the addition keeps it.
                    GroupReduction::Max if !score.is_nan() && !sum.is_nan() => sum.max(*score),
                    _ => *score + sum,
                };
            }
        }
        if self.form.reduction == GroupReduction::Mean && !members.is_empty() {
            scores.iter_mut().for_each(|score| *score /= members.len() as f64);
        }
        scores.iter_mut().for_each(|score| *score = score.abs());
        Ok(scores)
    }

    fn not_finite(&self, cx: &ScoreCx<'_>, group: &ChannelGroup) -> Option<String> {
        let is_broken = |member: &&Member| {
            let scores = self.scores.get(&(member.weight, member.axis));
            scores.is_some_and(|scores| scores.iter().any(|score| !score.is_finite()))
        };
        let member = group.members.iter().find(is_broken)?;
        Some(cx.graph.values[cx.coupling.uses[member.weight].value].name.clone())
    }
}

/// Returns the elements of a floating point tensor; none for other types, which have no gradient.
fn floats(tensor: &TensorProto, bytes: &[u8]) -> Vec<f32> {
    Floats::of(tensor.element_type(), bytes).map_or_else(Vec::new, Floats::to_f32)
}

/// Returns, for each of `axes`, the sums of entries over all other axes; `entry` is called once for every element.
fn axis_sums(dims: &[usize], axes: &[usize], entry: impl Fn(usize) -> f64) -> Vec<Vec<f64>> {
    let mut sums: Vec<Vec<f64>> = axes.iter().map(|axis| vec![0.0; dims[*axis]]).collect();
    // The innermost axes that were not requested are summed as one contiguous run.
    let outer_axes = axes.iter().map(|axis| axis + 1).max().unwrap_or(0);
    let run: usize = dims[outer_axes..].iter().product();
    let outer = &dims[..outer_axes];
    let strides: Vec<usize> = axes.iter().map(|axis| outer[axis + 1..].iter().product()).collect();
    for at in 0..outer.iter().product() {
        let sum: f64 = (at * run..(at + 1) * run).map(&entry).sum();
        for ((sums, stride), axis) in sums.iter_mut().zip(&strides).zip(axes) {
            sums[(at / stride) % dims[*axis]] += sum;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_summed_over_all_other_axes() {
        let sums = axis_sums(&[2, 3, 2], &[0, 1], |at| at as f64);
        assert_eq!(sums[0], vec![15.0, 51.0]);
        assert_eq!(sums[1], vec![1.0 + 13.0, 5.0 + 17.0, 9.0 + 21.0]);
    }

    #[test]
    fn signs_cancel_only_in_the_signed_term() {
        let form = |term| GradientForm {
            name: "test",
            term,
            members: ScoringMembers::All,
            reduction: GroupReduction::Sum,
            is_ddpm_exp: false,
            loss_scale: 2.0,
        };
        let entry = |term, w, g, is_parameter| form(term).entry(w, g, is_parameter);
        assert_eq!(entry(Term::Absolute, -1.0, 3.0, false), 6.0);
        assert_eq!(entry(Term::Signed, -1.0, 3.0, false), -6.0);
        assert_eq!(entry(Term::Squared, -1.0, 3.0, false), 36.0);
        assert_eq!(entry(Term::Squared, -1.0, 3.0, true), 6.0);
        assert_eq!(entry(Term::Curvature, -2.0, 3.0, false), 12.0);
    }
}
