//! The gradient criteria: how much the loss would change if a channel's weights were zero.
//!
//! With `G_w` the gradient of the loss by weight w, summed over timesteps (see [`crate::gradient::accumulate`]), the
//! importance of a channel with weights w, over all members of its coupled group, is
//!
//! - `diff-pruning`: `sum |w G_w|` (the paper's equation 8);
//! - `taylor`: `|sum w G_w|`, the first-order change of the loss itself;
//! - `hessian`: `sum w^2 F_w` with F the sum of squared gradients, the diagonal of the Fisher matrix.
//!
//! Members are the rows of weights that produce the channels, the columns of weights that read them, norm scales,
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
    /// Everything that a channel goes through: weights on both sides, norms and biases.
    #[default]
    All,
    /// The weights on both sides: rows of producers, columns of consumers.
    Weights,
    /// The rows of producers alone.
    Producers,
}

/// A published implementation of Diff-Pruning that is to be followed exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Published {
    /// `ddpm_prune.py` with Torch-Pruning: the mean of |w G| over weights on both sides; the step at which the loss
    /// falls below the threshold is still summed.
    DdpmPrune,
    /// `ddpm_exp/prune.py`: sums of (w G)^2 over weights on both sides plus |w G| of norm scales, with the loss summed
    /// over an image; the step at which the loss falls below the threshold is not summed.
    DdpmExp,
}

/// What is summed of the products of weights and gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// `|w G|`.
    Absolute,
    /// `w G`; the absolute value is taken of the sum over all members.
    Signed,
    /// `(w G)^2` of weights, `|w G|` of norm scales.
    Squared,
    /// `w^2 F`.
    Curvature,
}

/// Everything that decides the score of a gradient criterion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradientForm {
    /// The name of the criterion.
    pub name: &'static str,
    /// What is summed.
    pub term: Term,
    /// Which members score.
    pub members: ScoringMembers,
    /// How members make one score.
    pub reduction: GroupReduction,
    /// Whether norm scales score although `members` leaves parameters out, and members with another number of indices
    /// per channel than the first do not, as in `ddpm_exp`.
    pub is_ddpm_exp: bool,
    /// What gradients are multiplied with first: the number of elements of an image where the loss is a sum over it.
    pub loss_scale: f64,
}

/// A criterion over summed gradients.
#[derive(Debug)]
pub struct GradientCriterion {
    form: GradientForm,
    /// Sums over all other axes, by use of a weight and axis.
    scores: BTreeMap<(usize, usize), Vec<f64>>,
}

impl GradientCriterion {
    /// Multiplies every weight that a group goes through with its gradient.
    ///
    /// # Errors
    /// A weight that can't be read.
    pub fn new(
        cx: &ScoreCx<'_>,
        groups: &[ChannelGroup],
        gradients: &Accumulated,
        form: &GradientForm,
    ) -> Result<Self, Error> {
        let mut wanted: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for member in groups.iter().filter(|group| group.fixed.is_none()).flat_map(|group| &group.members) {
            wanted.entry(member.weight).or_default().insert(member.axis);
        }
        let reader = |gradient: &UseGradient| Reader { node: gradient.node, slot: gradient.slot };
        let by_reader: BTreeMap<Reader, usize> =
            gradients.uses.iter().enumerate().map(|(at, gradient)| (reader(gradient), at)).collect();
        let mut criterion = Self { form: *form, scores: BTreeMap::new() };
        for (weight, axes) in wanted {
            let weight_use = &cx.coupling.uses[weight];
            let Some(at) = by_reader.get(&weight_use.reader()) else { continue };
            let tensor = cx.constant(weight_use.value)?;
            let values = floats(tensor, &cx.model.tensor_view(tensor)?);
            let sums = &gradients.sums[*at];
            if values.len() != sums.len() {
                continue;
            }
            let is_parameter = criterion.is_parameter(groups, weight);
            let entry = |at: usize| criterion.entry(f64::from(values[at]), f64::from(sums[at]), is_parameter);
            let dims: Vec<usize> = tensor.dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
            let axes: Vec<usize> = axes.into_iter().collect();
            for (axis, of_index) in axes.iter().zip(axis_sums(&dims, &axes, entry)) {
                criterion.scores.insert((weight, *axis), of_index);
            }
        }
        Ok(criterion)
    }

    fn is_parameter(&self, groups: &[ChannelGroup], weight: usize) -> bool {
        let mut members = groups.iter().flat_map(|group| &group.members);
        members.any(|member| member.weight == weight && member.role == Role::Parameter)
    }

    fn entry(&self, w: f64, g: f64, is_parameter: bool) -> f64 {
        let product = w * g * self.form.loss_scale;
        match self.form.term {
            Term::Absolute => product.abs(),
            Term::Signed => product,
            Term::Squared if is_parameter => product.abs(),
            Term::Squared => product * product,
            Term::Curvature => w * w * g,
        }
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
        // A mean or a maximum is taken of the members' own scores, a sum of everything.
        let is_signed_sum = self.form.term == Term::Signed && self.form.reduction == GroupReduction::Sum;
        let mut scores = vec![0.0f64; group.channels.len()];
        for member in &members {
            let Some(of_index) = self.scores.get(&(member.weight, member.axis)) else { continue };
            for (score, indices) in scores.iter_mut().zip(&member.indices) {
                let sum: f64 = indices.iter().filter_map(|index| of_index.get(*index as usize)).sum();
                let sum = if is_signed_sum { sum } else { sum.abs() };
                *score = match self.form.reduction {
                    // The larger of a number and what is none would be the number.
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

/// The elements of a floating point tensor; none for other types, which have no gradient.
fn floats(tensor: &TensorProto, bytes: &[u8]) -> Vec<f32> {
    Floats::of(tensor.element_type(), bytes).map_or_else(Vec::new, Floats::to_f32)
}

/// For each of `axes`, the sums of entries over all other axes; `entry` is called once for every element.
fn axis_sums(dims: &[usize], axes: &[usize], entry: impl Fn(usize) -> f64) -> Vec<Vec<f64>> {
    let mut sums: Vec<Vec<f64>> = axes.iter().map(|axis| vec![0.0; dims[*axis]]).collect();
    // Innermost axes that nobody asked for are summed as one run.
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
    fn signs_cancel_only_where_the_loss_itself_is_meant() {
        let form = |term| GradientForm {
            name: "test",
            term,
            members: ScoringMembers::All,
            reduction: GroupReduction::Sum,
            is_ddpm_exp: false,
            loss_scale: 2.0,
        };
        let entry = |term, w, g, is_parameter| {
            let criterion = GradientCriterion { form: form(term), scores: BTreeMap::new() };
            criterion.entry(w, g, is_parameter)
        };
        assert_eq!(entry(Term::Absolute, -1.0, 3.0, false), 6.0);
        assert_eq!(entry(Term::Signed, -1.0, 3.0, false), -6.0);
        assert_eq!(entry(Term::Squared, -1.0, 3.0, false), 36.0);
        assert_eq!(entry(Term::Squared, -1.0, 3.0, true), 6.0);
        assert_eq!(entry(Term::Curvature, -2.0, 3.0, false), 12.0);
    }
}
