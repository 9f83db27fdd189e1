//! Importance of channels: one score per channel of a group.
//!
//! A criterion scores the indices of every axis of every weight once ([`IndexScores`]). [`score_groups`] then reduces
//! the members of a group to one score per channel, and ranks groups by magnitude that the criterion can't rank.

mod fallback;

mod gradient;

mod magnitude;

mod quantized;

mod random;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::couple::group::{ChannelGroup, Role};
use crate::error::Error;
use crate::fold::Fold;
use crate::graph::model::Model;
use crate::graph::{Graph, ValueId};
use crate::onnx::TensorProto;
use crate::operator::Operators;
use crate::operator::couple::Coupling;

pub use fallback::{GroupScores, NEGLIGIBLE, score_groups};
pub use gradient::{GradientCriterion, GradientForm, Published, ScoringMembers, Term, scoring_axes};
pub use magnitude::{Magnitude, Norm};
pub use random::Random;

/// How the scores of a group's members are combined into one score per channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum GroupReduction {
    /// The sum over all members: every weight entry of the channel counts once.
    #[default]
    Sum,
    /// The mean over the members.
    Mean,
    /// The largest member.
    Max,
    /// The first member alone: the weight that produces the channels.
    First,
}

/// The data that a criterion can use.
#[derive(Clone, Copy)]
pub struct ScoreCx<'a> {
    /// The model with its weights.
    pub model: &'a Model,
    /// Its graph.
    pub graph: &'a Graph,
    /// Its operators.
    pub operators: &'a Operators,
    /// The weights that are computed ahead of time from constants.
    pub fold: &'a Fold,
    /// The uses of constants.
    pub coupling: &'a Coupling,
}

impl<'a> ScoreCx<'a> {
    /// Returns the tensor of a constant.
    ///
    /// # Errors
    /// Fails if the weight is computed by nodes and has not been computed yet ([`Fold::evaluate`]).
    fn constant(&self, value: ValueId) -> Result<&'a TensorProto, Error> {
        self.fold.constant(self.model, self.graph, value).ok_or_else(|| {
            let name = &self.graph.values[value].name;
            Error::unsupported(format!("weight {name:?} has no elements to score: it has not been computed"))
                .in_file(self.model.path())
        })
    }
}

/// A criterion that scores channel groups. Channels with lower scores are removed first.
pub trait Criterion {
    /// The name on the command line and in reports.
    fn name(&self) -> &'static str;

    /// Returns one score per channel of a group, in the group's order. A score that can't be determined is not finite.
    ///
    /// # Errors
    /// Fails if a weight can't be read.
    fn score(&self, cx: &ScoreCx<'_>, group: &ChannelGroup) -> Result<Vec<f64>, Error>;

    /// Returns the name of a weight whose scores are not finite for some channels of a group.
    fn not_finite(&self, _cx: &ScoreCx<'_>, _group: &ChannelGroup) -> Option<String> {
        None
    }

    /// Returns warnings about the weights, such as NaN elements.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Scores of the indices of axes of constants, by value and axis.
#[derive(Clone, Debug, Default)]
pub struct IndexScores {
    axes: BTreeMap<(ValueId, usize), Vec<f64>>,
}

impl IndexScores {
    /// Sets the scores of the indices of one axis of a constant.
    pub fn insert(&mut self, value: ValueId, axis: usize, scores: Vec<f64>) {
        self.axes.insert((value, axis), scores);
    }

    /// Reduces the scoring members of a group to one score per channel. Members score if `counts` holds for their role,
    /// or all of them if it holds for none.
    pub fn reduce(
        &self,
        coupling: &Coupling,
        group: &ChannelGroup,
        reduction: GroupReduction,
        counts: &dyn Fn(Role) -> bool,
    ) -> Vec<f64> {
        let mut members: Vec<_> = group.members.iter().filter(|member| counts(member.role)).collect();
        if members.is_empty() {
            members = group.members.iter().collect();
        }
        if reduction == GroupReduction::First {
            members.truncate(1);
        }
        let mut scores = vec![0.0; group.channels.len()];
        for member in &members {
            let value = coupling.uses[member.weight].value;
            let Some(of_index) = self.axes.get(&(value, member.axis)) else {
                continue;
            };
            for (score, indices) in scores.iter_mut().zip(&member.indices) {
                let sum: f64 = indices.iter().filter_map(|index| of_index.get(*index as usize)).sum();
                *score = if reduction == GroupReduction::Max { sum.max(*score) } else { *score + sum };
            }
        }
        if reduction == GroupReduction::Mean && !members.is_empty() {
            scores.iter_mut().for_each(|score| *score /= members.len() as f64);
        }
        scores
    }
}
