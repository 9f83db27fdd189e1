//! Calibration of the ranges of activations.

use std::collections::{BTreeMap, BTreeSet};

use super::layers::Layer;
use super::{Calibration, QuantizeOptions};
use crate::deploy::ranges::{Inputs, Range, failed, taken};
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::{Graph, ValueId};
use crate::lower::session_with_outputs;
use crate::runtime::{Runtime, SessionOptions};

/// Number of bins of a histogram, and of levels of a quantised distribution.
const BINS: usize = 2048;
const LEVELS: usize = 128;

/// The fraction of elements outside of a percentile range.
const BEYOND: f64 = 1e-4;

/// Number of values whose elements are counted in one run.
const AT_ONCE: usize = 32;

/// Computes the ranges, by value, of the inputs of the layers and, if outputs are quantised, of their outputs.
pub(super) fn ranges(
    runtime: &Runtime,
    (model, graph, _): (&Model, &Graph, &Facts),
    layers: &[Layer],
    batches: &[Inputs],
    options: &QuantizeOptions<'_>,
) -> Result<BTreeMap<ValueId, Range>, Error> {
    let mut values: BTreeSet<ValueId> = layers.iter().map(|layer| layer.data).collect();
    if options.style.quantizes_outputs {
        values.extend(layers.iter().map(|layer| layer.output));
    }
    let known = |value: &ValueId| {
        let range = options.ranges.get(&graph.values[*value].name)?;
        range.magnitude().is_finite().then_some((*value, *range))
    };
    let mut ranges: BTreeMap<ValueId, Range> = values.iter().filter_map(known).collect();
    if options.calibration == Calibration::MinMax {
        return Ok(ranges);
    }
    let computed: Vec<ValueId> =
        ranges.keys().copied().filter(|value| graph.values[*value].producer.is_some()).collect();
    for chunk in computed.chunks(AT_ONCE) {
        let names: Vec<&str> = chunk.iter().map(|value| graph.values[*value].name.as_str()).collect();
        let mut session = session_with_outputs(runtime, model, &names, &SessionOptions::default())?;
        let mut counted: Vec<Histogram> = chunk.iter().map(|value| Histogram::over(ranges[value])).collect();
        for inputs in batches {
            let given = taken(&session, inputs);
            session
                .run_each(&given, |name, elements| {
                    if let Some(at) = names.iter().position(|own| *own == name) {
                        counted[at].count(elements);
                    }
                })
                .map_err(|error| failed(model, &error))?;
        }
        for (value, histogram) in chunk.iter().zip(counted) {
            let range = match options.calibration {
                Calibration::Entropy => histogram.by_entropy(),
                _ => histogram.by_percentile(),
            };
            ranges.insert(*value, range);
        }
    }
    Ok(ranges)
}

/// Counts of elements in equal bins of a range.
struct Histogram {
    range: Range,
    counts: Vec<u64>,
}

impl Histogram {
    fn over(range: Range) -> Self {
        Self { range, counts: vec![0; BINS] }
    }

    fn width(&self) -> f64 {
        (self.range.high - self.range.low) / BINS as f64
    }

    fn count(&mut self, elements: &[f32]) {
        let (low, width) = (self.range.low, self.width());
        for element in elements {
            let at = if width > 0.0 { ((f64::from(*element) - low) / width) as usize } else { 0 };
            self.counts[at.min(BINS - 1)] += 1;
        }
    }

    /// Returns the range without the few elements beyond both ends. Zero is added to it later.
    fn by_percentile(&self) -> Range {
        let beyond = self.counts.iter().sum::<u64>() as f64 * BEYOND / 2.0;
        let skipped = |counts: &mut dyn Iterator<Item = &u64>| {
            let mut sum = 0.0;
            counts
                .take_while(|count| {
                    sum += **count as f64;
                    sum <= beyond
                })
                .count()
        };
        let (first, last) = (skipped(&mut self.counts.iter()), skipped(&mut self.counts.iter().rev()));
        let width = self.width();
        Range { low: self.range.low + first as f64 * width, high: self.range.high - last as f64 * width }
    }

    /// Returns counts of magnitudes, in equal bins up to the largest.
    fn of_magnitudes(&self) -> Vec<f64> {
        let (largest, width) = (self.range.magnitude(), self.width());
        let mut magnitudes = vec![0.0; BINS];
        for (at, count) in self.counts.iter().enumerate() {
            let magnitude = (self.range.low + (at as f64 + 0.5) * width).abs();
            magnitudes[((magnitude / largest * BINS as f64) as usize).min(BINS - 1)] += *count as f64;
        }
        magnitudes
    }

    fn by_entropy(&self) -> Range {
        let largest = self.range.magnitude();
        if largest == 0.0 {
            return self.range;
        }
        let counts = self.of_magnitudes();
        let best = (LEVELS..=BINS)
            .step_by(16)
            .map(|bins| (divergence(&counts, bins), bins))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        let threshold = best.map_or(largest, |(_, bins)| largest * bins as f64 / BINS as f64);
        Range { low: self.range.low.max(-threshold), high: self.range.high.min(threshold) }
    }
}

/// Returns the Kullback-Leibler divergence between the distribution of magnitudes, clipped after a number of bins, and the
/// same in [`LEVELS`] levels.
fn divergence(counts: &[f64], bins: usize) -> f64 {
    let mut wanted = counts[..bins].to_vec();
    // Larger magnitudes are clipped to the last bin.
    if let Some(last) = wanted.last_mut() {
        *last += counts[bins..].iter().sum::<f64>();
    }
    let mut found = vec![0.0; bins];
    for level in 0..LEVELS {
        let part = level * bins / LEVELS..(level + 1) * bins / LEVELS;
        let inside = &counts[part.clone()];
        let filled = inside.iter().filter(|count| **count > 0.0).count();
        let each = inside.iter().sum::<f64>() / filled.max(1) as f64;
        part.filter(|at| counts[*at] > 0.0).for_each(|at| found[at] = each);
    }
    let (total, total_found) = (wanted.iter().sum::<f64>(), found.iter().sum::<f64>());
    if total == 0.0 || total_found == 0.0 {
        return f64::INFINITY;
    }
    let term = |(p, q): (&f64, &f64)| {
        // An empty level counts as one element.
        let (p, q) = (p / total, q.max(1.0) / total_found);
        if p > 0.0 { p * (p / q).ln() } else { 0.0 }
    };
    wanted.iter().zip(&found).map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundred thousand elements evenly in -1..1, and one outlier.
    fn histogram() -> Histogram {
        let mut elements: Vec<f32> = (0..100_000).map(|at| at as f32 / 50_000.0 - 1.0).collect();
        elements.push(100.0);
        let mut histogram = Histogram::over(Range { low: -1.0, high: 100.0 });
        histogram.count(&elements);
        histogram
    }

    #[test]
    fn outliers_are_clipped() {
        let range = histogram().by_percentile();
        assert!(range.low >= -1.0 && range.low < -0.9 && range.high < 1.2, "{range:?}");
        let range = histogram().by_entropy();
        assert!(range.high < 20.0 && range.low == -1.0, "{range:?}");
    }

    #[test]
    fn a_uniform_distribution_keeps_its_range() {
        let elements: Vec<f32> = (0..100_000).map(|at| at as f32 / 50_000.0 - 1.0).collect();
        let mut even = Histogram::over(Range { low: -1.0, high: 1.0 });
        even.count(&elements);
        let range = even.by_entropy();
        assert!(range.high > 0.9 && range.low < -0.9, "{range:?}");
        assert!(Histogram::over(Range { low: 0.0, high: 0.0 }).by_entropy() == Range { low: 0.0, high: 0.0 });
    }
}
