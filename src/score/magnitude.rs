//! Magnitude: the norm of the weights of a channel.
//!
//! The score of a channel is `sum |w|` (L1) or `sum w^2` (L2; the root would not change the order) over the entries of
//! its producers' rows and its consumers' columns. Biases and norm parameters do not score, as in Torch-Pruning.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use pulp::Arch;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Criterion, GroupReduction, IndexScores, ScoreCx, quantized};
use crate::couple::group::{ChannelGroup, Member, Role};
use crate::error::Error;
use crate::graph::ValueId;
use crate::onnx::floats::{Floats, each_float};
use crate::operator::couple::WeightUse;

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
    /// Weights with elements that are not finite.
    broken: BTreeSet<ValueId>,
    warnings: RefCell<BTreeSet<String>>,
}

impl Magnitude {
    /// Scores the axes of every weight of the groups. Each weight is read once.
    ///
    /// # Errors
    /// Fails if a weight can't be read.
    pub fn new(
        cx: &ScoreCx<'_>,
        groups: &[ChannelGroup],
        norm: Norm,
        reduction: GroupReduction,
    ) -> Result<Self, Error> {
        let mut wanted: BTreeMap<ValueId, (&WeightUse, BTreeSet<usize>)> = BTreeMap::new();
        for member in groups.iter().filter(|group| group.fixed.is_none()).flat_map(|group| &group.members) {
            let of = &cx.coupling.uses[member.weight];
            wanted.entry(of.value).or_insert_with(|| (of, BTreeSet::new())).1.insert(member.axis);
        }
        let wanted: Vec<(&WeightUse, Vec<usize>)> =
            wanted.into_values().map(|(of, axes)| (of, axes.into_iter().collect())).collect();
        let sums: Vec<Vec<Vec<f64>>> = wanted
            .par_iter()
            .with_max_len(1)
            .map(|(of, axes)| axis_sums(cx, of, axes, norm, |number| number))
            .collect::<Result<_, Error>>()?;
        let mut scores = IndexScores::default();
        let (mut warnings, mut broken) = (BTreeSet::new(), BTreeSet::new());
        for ((of, axes), mut sums) in wanted.into_iter().zip(sums) {
            let name = &cx.graph.values[of.value].name;
            if sums.iter().flatten().any(|sum| !sum.is_finite()) {
                warnings.insert(format!(
                    "weight {name:?} has elements that are not finite; channels with such elements are removed first"
                ));
                broken.insert(of.value);
                // Their order among themselves follows their finite elements.
                let finite = |number: f32| if number.is_finite() { number } else { 0.0 };
                for (sums, finite) in sums.iter_mut().zip(axis_sums(cx, of, &axes, norm, finite)?) {
                    let pairs = sums.iter_mut().zip(finite).filter(|(sum, _)| !sum.is_finite());
                    pairs.for_each(|(sum, finite)| *sum = finite * BROKEN);
                }
            }
            for (axis, sum) in axes.into_iter().zip(sums) {
                scores.insert(of.value, axis, sum);
            }
        }
        Ok(Self { norm, reduction, scores, broken, warnings: RefCell::new(warnings) })
    }

    /// Returns the norm.
    pub fn norm(&self) -> Norm {
        self.norm
    }
}

impl Criterion for Magnitude {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn score(&self, cx: &ScoreCx<'_>, group: &ChannelGroup) -> Result<Vec<f64>, Error> {
        let scores = self.scores.reduce(cx.coupling, group, self.reduction, &|role| role != Role::Parameter);
        let value = |member: &Member| cx.coupling.uses[member.weight].value;
        let broken = group.members.iter().map(value).find(|value| self.broken.contains(value));
        if let Some(value) = broken.filter(|_| scores.iter().all(|score| *score == 0.0)) {
            let name = &cx.graph.values[value].name;
            let text =
                format!("no channel of weight {name:?} has a finite magnitude score: its elements are not finite");
            return Err(Error::unmet(text)
                .in_file(cx.model.path())
                .hint("check the weights of the model, or use --criterion random, which does not depend on them"));
        }
        Ok(scores)
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.borrow().iter().cloned().collect()
    }
}

/// The factor on the norms of channels with elements that are not finite, so that these are removed first.
const BROKEN: f64 = 1e-200;

/// Returns, for each of `axes` of a constant, the sums of |w| or w^2 over all other axes, where w is the result of
/// `of_number` for an element. Types that do not hold numbers have sums of zero.
///
/// # Errors
/// Fails if a weight can't be read.
fn axis_sums(
    cx: &ScoreCx<'_>,
    of: &WeightUse,
    axes: &[usize],
    norm: Norm,
    of_number: impl Fn(f32) -> f32 + Sync,
) -> Result<Vec<Vec<f64>>, Error> {
    let tensor = cx.constant(of.value)?;
    let bytes = cx.model.tensor_view(tensor)?;
    let dims: Vec<usize> = tensor.dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    if let Some(floats) = Floats::of(tensor.element_type(), &bytes) {
        return Ok(each_float!(floats, elements, decode => {
            sums_of(&dims, axes, norm, elements, |element| of_number(decode(element)))
        }));
    }
    Ok(match quantized::numbers(cx, of, tensor, &bytes)? {
        Some(numbers) => sums_of(&dims, axes, norm, &numbers, of_number),
        None => axes.iter().map(|axis| vec![0.0; dims.get(*axis).copied().unwrap_or(0)]).collect(),
    })
}

fn sums_of<E: Copy + Sync>(
    dims: &[usize],
    axes: &[usize],
    norm: Norm,
    elements: &[E],
    decode: impl Fn(E) -> f32 + Sync,
) -> Vec<Vec<f64>> {
    match norm {
        Norm::L1 => sums_over(dims, axes, elements, &|element| f64::from(decode(element)).abs()),
        Norm::L2 => sums_over(dims, axes, elements, &|element| {
            let value = f64::from(decode(element));
            value * value
        }),
    }
}

/// Maximum number of elements that are summed at once. Larger weights are summed in parts on several cores. The parts,
/// and so the sum, don't depend on the number of cores.
const PART: usize = 1 << 22;

/// Blocks with fewer elements are not summed one by one, but over all rows first.
const SHORT: usize = 32;

/// Sums row by row. A row covers the innermost requested axis and all axes inside it.
fn sums_over<E: Copy + Sync>(
    dims: &[usize],
    axes: &[usize],
    elements: &[E],
    weigh: &(impl Fn(E) -> f64 + Sync),
) -> Vec<Vec<f64>> {
    let Some((innermost, &axis)) = axes.iter().enumerate().max_by_key(|(_, axis)| **axis) else { return Vec::new() };
    let block: usize = dims[axis + 1..].iter().product();
    let row = block * dims[axis];
    let empty = || -> Vec<Vec<f64>> { axes.iter().map(|axis| vec![0.0; dims[*axis]]).collect() };
    if row == 0 {
        return empty();
    }
    let strides: Vec<usize> = axes.iter().map(|at| dims[(at + 1).min(axis)..axis].iter().product()).collect();
    let rows = (PART / row).max(1);
    let parts = elements.par_chunks(rows * row).enumerate().map(|(part, elements)| {
        let mut sums = empty();
        let mut along = std::mem::take(&mut sums[innermost]);
        let totals = Arch::new().dispatch(
            #[inline(always)]
            || row_sums(elements, (row, block), &mut along, axes.len() > 1, weigh),
        );
        for (other, &outer) in axes.iter().enumerate().filter(|(other, _)| *other != innermost) {
            for (at, total) in totals.iter().enumerate() {
                sums[other][((part * rows + at) / strides[other]) % dims[outer]] += total;
            }
        }
        sums[innermost] = along;
        sums
    });
    let parts: Vec<Vec<Vec<f64>>> = parts.collect();
    parts.into_iter().fold(empty(), |mut all, part| {
        for (all, part) in all.iter_mut().zip(part) {
            all.iter_mut().zip(part).for_each(|(all, part)| *all += part);
        }
        all
    })
}

/// Adds the elements of every block to its element of `along`, row by row. Returns the sum of every row if
/// `wants_totals`. The loops over elements have no index arithmetic and no chain of dependent additions, so that the
/// compiler can vectorise them for the CPU. The order of additions is the same on all CPUs.
#[inline(always)]
fn row_sums<E: Copy>(
    elements: &[E],
    (row, block): (usize, usize),
    along: &mut [f64],
    wants_totals: bool,
    weigh: &impl Fn(E) -> f64,
) -> Vec<f64> {
    let mut totals = Vec::with_capacity(if wants_totals { elements.len() / row } else { 0 });
    if block < SHORT {
        let mut wide = vec![0.0; row];
        for row in elements.chunks_exact(row) {
            wide.iter_mut().zip(row).for_each(|(sum, element)| *sum += weigh(*element));
            if wants_totals {
                totals.push(sum(row, weigh));
            }
        }
        along.iter_mut().zip(wide.chunks_exact(block)).for_each(|(along, block)| *along += block.iter().sum::<f64>());
        return totals;
    }
    for row in elements.chunks_exact(row) {
        let mut total = 0.0;
        for (along, block) in along.iter_mut().zip(row.chunks_exact(block)) {
            let part = sum(block, weigh);
            *along += part;
            total += part;
        }
        if wants_totals {
            totals.push(total);
        }
    }
    totals
}

/// Sums elements in 32 independent chains.
#[inline(always)]
fn sum<E: Copy>(elements: &[E], weigh: &impl Fn(E) -> f64) -> f64 {
    let (wide, rest) = elements.as_chunks::<32>();
    let mut lanes = [0.0; 32];
    for wide in wide {
        for (lane, element) in lanes.iter_mut().zip(wide) {
            *lane += weigh(*element);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|element| weigh(*element)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_run_over_all_other_axes() {
        let values: Vec<f32> = (0..12).map(|v| -(v as f32)).collect();
        let sums = sums_of(&[2, 3, 2], &[0, 1], Norm::L1, &values, |v| v);
        assert_eq!(sums[0], vec![15.0, 51.0]);
        assert_eq!(sums[1], vec![1.0 + 13.0, 5.0 + 17.0, 9.0 + 21.0]);
        let sums = sums_of(&[2, 2], &[1], Norm::L2, &[1.0, 2.0, 3.0, 4.0], |v| v);
        assert_eq!(sums[0], vec![10.0, 20.0]);
    }

    #[test]
    fn any_axes_match_a_naive_sum() {
        let dims = [3, 4, 5, 11];
        let values: Vec<f32> = (0..dims.iter().product::<usize>()).map(|v| ((v * 37) % 101) as f32 - 50.0).collect();
        for chosen in 0..16_usize {
            let axes: Vec<usize> = (0..4).filter(|axis| chosen >> axis & 1 == 1).collect();
            let mut naive: Vec<Vec<f64>> = axes.iter().map(|axis| vec![0.0; dims[*axis]]).collect();
            for (at, value) in values.iter().enumerate() {
                for (sums, axis) in naive.iter_mut().zip(&axes) {
                    let stride: usize = dims[axis + 1..].iter().product();
                    sums[at / stride % dims[*axis]] += f64::from(value * value);
                }
            }
            // Sums of small integers are exact in any order.
            assert_eq!(sums_of(&dims, &axes, Norm::L2, &values, |v| v), naive, "{axes:?}");
        }
    }

    #[test]
    fn large_weights_are_summed_in_parts() {
        for (dims, axes) in
            [(vec![3000, 2000], vec![0, 1]), (vec![700, 1000, 3, 3], vec![0, 1]), (vec![5_000_000], vec![0])]
        {
            let values: Vec<f32> = (0..dims.iter().product::<usize>()).map(|at| ((at * 31) % 7) as f32).collect();
            let inner: usize = dims[axes.len()..].iter().product();
            let mut naive: Vec<Vec<f64>> = axes.iter().map(|axis| vec![0.0; dims[*axis]]).collect();
            for (at, value) in values.iter().enumerate() {
                let last = axes.len() - 1;
                naive[last][at / inner % dims[last]] += f64::from(*value);
                if last == 1 {
                    naive[0][at / inner / dims[1]] += f64::from(*value);
                }
            }
            assert!(sums_of(&dims, &axes, Norm::L1, &values, |v| v) == naive, "{dims:?}");
        }
    }

    #[test]
    fn empty_weights_have_sums_of_zero() {
        assert_eq!(sums_of(&[2, 0], &[0, 1], Norm::L2, &[] as &[f32], |v| v), vec![vec![0.0; 2], vec![]]);
    }
}
