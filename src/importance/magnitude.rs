//! Magnitude: the norm of the weights of a channel.
//!
//! The score of a channel is `sum |w|` (L1) or `sum w^2` (L2, whose root would not change any order) over the entries
//! of its producers' rows and its consumers' columns. Biases and norm parameters do not score, as in Torch-Pruning.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Criterion, GroupReduction, IndexScores, ScoreCx};
use crate::couple::group::{ChannelGroup, Role};
use crate::error::Error;
use crate::onnx::{DataType, TensorProto};

/// The norm of a channel's weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Norm {
    /// The sum of absolute values.
    L1,
    /// The sum of squares.
    #[default]
    L2,
}

/// The magnitude criterion.
#[derive(Debug)]
pub struct Magnitude {
    norm: Norm,
    reduction: GroupReduction,
    scores: IndexScores,
    warnings: RefCell<BTreeSet<String>>,
}

impl Magnitude {
    /// Scores the axes of every weight that a group goes through, each weight read once.
    ///
    /// # Errors
    /// A weight that can't be read.
    pub fn new(
        cx: &ScoreCx<'_>,
        groups: &[ChannelGroup],
        norm: Norm,
        reduction: GroupReduction,
    ) -> Result<Self, Error> {
        let mut wanted: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for member in groups.iter().filter(|group| group.kept.is_none()).flat_map(|group| &group.members) {
            wanted.entry(cx.coupling.uses[member.weight].value).or_default().insert(member.axis);
        }
        let mut scores = IndexScores::default();
        let mut warnings = BTreeSet::new();
        for (value, axes) in wanted {
            let Some(tensor) = cx.graph.constant(cx.model, value) else {
                continue;
            };
            let name = &cx.graph.values[value].name;
            let bytes = cx.model.tensor_view(tensor)?;
            let axes: Vec<usize> = axes.into_iter().collect();
            let mut sums = axis_sums(tensor, &bytes, &axes, norm);
            if sums.iter().flatten().any(|sum| !sum.is_finite()) {
                warnings.insert(format!("weight {name:?} holds entries that are not finite; its channels go first"));
                sums.iter_mut().flatten().filter(|sum| !sum.is_finite()).for_each(|sum| *sum = 0.0);
            }
            for (axis, sum) in axes.into_iter().zip(sums) {
                scores.insert(value, axis, sum);
            }
        }
        Ok(Self { norm, reduction, scores, warnings: RefCell::new(warnings) })
    }

    /// The norm that is taken.
    pub fn norm(&self) -> Norm {
        self.norm
    }
}

impl Criterion for Magnitude {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn score(&self, cx: &ScoreCx<'_>, group: &ChannelGroup) -> Result<Vec<f64>, Error> {
        Ok(self.scores.reduce(cx.coupling, group, self.reduction, &|role| role != Role::Parameter))
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.borrow().iter().cloned().collect()
    }
}

/// For each of `axes`, the sums of |w| or w^2 over all other axes.
fn axis_sums(tensor: &TensorProto, bytes: &[u8], axes: &[usize], norm: Norm) -> Vec<Vec<f64>> {
    let dims: Vec<usize> = tensor.dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    match tensor.element_type() {
        DataType::Float => sums_of(&dims, axes, norm, bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        DataType::Double => {
            sums_of(&dims, axes, norm, bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32))
        }
        DataType::Float16 => {
            sums_of(&dims, axes, norm, bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()))
        }
        DataType::Bfloat16 => {
            sums_of(&dims, axes, norm, bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()))
        }
        DataType::Int8 => sums_of(&dims, axes, norm, bytes.iter().map(|b| f32::from(b.cast_signed()))),
        DataType::Uint8 => sums_of(&dims, axes, norm, bytes.iter().map(|b| f32::from(*b) - 128.0)),
        _ => axes.iter().map(|axis| vec![0.0; dims.get(*axis).copied().unwrap_or(0)]).collect(),
    }
}

fn sums_of(dims: &[usize], axes: &[usize], norm: Norm, mut elements: impl Iterator<Item = f32>) -> Vec<Vec<f64>> {
    let mut sums: Vec<Vec<f64>> = axes.iter().map(|axis| vec![0.0; dims[*axis]]).collect();
    // The sum over a run of the innermost axes that nobody asked for is shared by all axes.
    let run_axes = dims.len() - axes.iter().map(|axis| axis + 1).max().unwrap_or(0);
    let run: usize = dims[dims.len() - run_axes..].iter().product();
    let outer = &dims[..dims.len() - run_axes];
    let count: usize = outer.iter().product();
    let strides: Vec<usize> = axes.iter().map(|axis| outer[axis + 1..].iter().product()).collect();
    for at in 0..count {
        let mut sum = 0.0f64;
        for value in elements.by_ref().take(run) {
            let value = f64::from(value);
            sum += if norm == Norm::L1 { value.abs() } else { value * value };
        }
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
    fn sums_run_over_all_other_axes() {
        let sums = sums_of(&[2, 3, 2], &[0, 1], Norm::L1, (0..12).map(|v| -(v as f32)));
        assert_eq!(sums[0], vec![15.0, 51.0]);
        assert_eq!(sums[1], vec![1.0 + 13.0, 5.0 + 17.0, 9.0 + 21.0]);
        let sums = sums_of(&[2, 2], &[1], Norm::L2, [1.0, 2.0, 3.0, 4.0].into_iter());
        assert_eq!(sums[0], vec![10.0, 20.0]);
    }
}
