//! The optimizer's state in shards ("ZeRO", Rajbhandari et al. 2020, stages 1 and 2). Every rank keeps the moments and
//! the moving average of a part of the weights, updates that part, and receives the other new weights from the other
//! ranks.
//!
//! The concatenated weights are divided into buckets, and every bucket into one part per rank. Reduce-scatter sums the
//! gradients bucket by bucket, so that a rank holds only the sums of its own parts.

use std::ops::Range;

use super::optimizer::{OptimizerOptions, WeightState, norm};
use crate::collective::{Collective, parts};
use crate::error::Error;

/// Number of elements in a bucket.
const BUCKET: usize = 1 << 22;

/// Access to one of the vectors of a state: to read it, and to write it.
type Kind = (fn(&WeightState) -> &Vec<f32>, fn(&mut WeightState) -> &mut Vec<f32>);

/// The part of the optimizer's state that a rank keeps.
#[derive(Debug)]
pub struct Shards {
    /// The number of elements of every weight.
    lengths: Vec<usize>,
    has_average: bool,
    /// Ranges of the concatenated elements of all weights.
    buckets: Vec<Range<usize>>,
    /// By bucket: the state of this rank's part, and the summed gradients of that part.
    states: Vec<WeightState>,
    gradients: Vec<Vec<f32>>,
}

/// Returns the pieces of a range of the concatenated elements: the index of the weight, and the range within it.
fn pieces(lengths: &[usize], range: &Range<usize>) -> Vec<(usize, Range<usize>)> {
    let mut start = 0;
    let mut found = Vec::new();
    for (weight, length) in lengths.iter().enumerate() {
        let (from, to) = (range.start.max(start), range.end.min(start + length));
        if from < to {
            found.push((weight, from - start..to - start));
        }
        start += length;
    }
    found
}

impl Shards {
    /// Creates the state of these weights before the first step.
    pub fn new(ranks: &dyn Collective, weights: &[&[f32]], options: &OptimizerOptions) -> Self {
        Self::with_buckets(ranks, weights, options, BUCKET)
    }

    fn with_buckets(ranks: &dyn Collective, weights: &[&[f32]], options: &OptimizerOptions, bucket: usize) -> Self {
        let lengths: Vec<usize> = weights.iter().map(|weight| weight.len()).collect();
        let total: usize = lengths.iter().sum();
        let buckets: Vec<Range<usize>> =
            (0..total).step_by(bucket).map(|start| start..(start + bucket).min(total)).collect();
        let gradients = vec![Vec::new(); buckets.len()];
        let mut this = Self { lengths, has_average: options.ema.is_some(), buckets, states: Vec::new(), gradients };
        let state = |bucket: &Range<usize>| {
            let own = &parts(bucket.len(), ranks.size())[ranks.rank()];
            WeightState::new(&this.read(weights, bucket)[own.clone()], options)
        };
        this.states = this.buckets.iter().map(state).collect();
        this
    }

    /// Returns the elements of a range.
    fn read(&self, of: &[&[f32]], range: &Range<usize>) -> Vec<f32> {
        let mut found = Vec::with_capacity(range.len());
        pieces(&self.lengths, range).into_iter().for_each(|(at, own)| found.extend_from_slice(&of[at][own]));
        found
    }

    /// Writes the elements of a range to the weights.
    fn write(&self, into: &mut [&mut [f32]], range: &Range<usize>, values: &[f32]) {
        let mut rest = values;
        for (at, own) in pieces(&self.lengths, range) {
            let (values, after) = rest.split_at(own.len());
            into[at][own].copy_from_slice(values);
            rest = after;
        }
    }

    /// Sums the gradients of all ranks, times `share`, and keeps the sums of this rank's parts. Returns the global
    /// norm.
    ///
    /// # Errors
    /// A rank has ended.
    pub fn reduce(&mut self, ranks: &dyn Collective, gradients: &[&[f32]], share: f32) -> Result<f64, Error> {
        for at in 0..self.buckets.len() {
            let mut values = self.read(gradients, &self.buckets[at]);
            values.iter_mut().for_each(|value| *value *= share);
            let parts = parts(values.len(), ranks.size());
            ranks.reduce_scatter(&mut values, &parts)?;
            self.gradients[at] = values[parts[ranks.rank()].clone()].to_vec();
        }
        let mut squares = [norm(self.gradients.iter().map(Vec::as_slice)).powi(2)];
        ranks.sum_f64(&mut squares)?;
        Ok(squares[0].sqrt())
    }

    /// Updates this rank's parts of the weights along the gradients, whose global norm is `norm`, and receives the
    /// other parts. `step` and `rate` are those of [`OptimizerOptions::step`].
    ///
    /// # Errors
    /// A rank has ended.
    pub fn advance(
        &mut self,
        ranks: &dyn Collective,
        options: &OptimizerOptions,
        (step, rate, norm): (u64, f64, f64),
        weights: &mut [&mut [f32]],
    ) -> Result<(), Error> {
        for at in 0..self.buckets.len() {
            let bucket = self.buckets[at].clone();
            let mut values = {
                let weights: Vec<&[f32]> = weights.iter().map(|weight| &**weight).collect();
                self.read(&weights, &bucket)
            };
            let parts = parts(values.len(), ranks.size());
            let own = &mut values[parts[ranks.rank()].clone()];
            options.step(step, rate, norm, &mut [(own, &self.gradients[at], &mut self.states[at])]);
            ranks.all_gather(&mut values, &parts)?;
            self.write(weights, &bucket, &values);
        }
        Ok(())
    }

    /// Gathers a vector of the states, chosen by `of`, from the parts of all ranks. Returns it by weight, on all ranks.
    fn gathered(&self, ranks: &dyn Collective, of: impl Fn(&WeightState) -> &Vec<f32>) -> Result<Vec<Vec<f32>>, Error> {
        let mut all: Vec<Vec<f32>> = self.lengths.iter().map(|length| vec![0.0; *length]).collect();
        for (bucket, state) in self.buckets.iter().zip(&self.states) {
            let parts = parts(bucket.len(), ranks.size());
            let mut values = vec![0.0; bucket.len()];
            values[parts[ranks.rank()].clone()].copy_from_slice(of(state));
            ranks.all_gather(&mut values, &parts)?;
            let mut into: Vec<&mut [f32]> = all.iter_mut().map(Vec::as_mut_slice).collect();
            self.write(&mut into, bucket, &values);
        }
        Ok(all)
    }

    /// Returns the moving averages of all weights, on all ranks.
    ///
    /// # Errors
    /// A rank has ended.
    pub fn averages(&self, ranks: &dyn Collective) -> Result<Vec<Vec<f32>>, Error> {
        self.gathered(ranks, |state| &state.average)
    }

    /// Returns the complete state by weight, as a single process keeps it, on the first rank, and `None` on the others.
    ///
    /// # Errors
    /// A rank has ended.
    pub fn whole(&self, ranks: &dyn Collective) -> Result<Option<Vec<WeightState>>, Error> {
        let is_first = ranks.rank() == 0;
        // One vector at a time: ranks other than the first never hold more than one complete vector.
        let take = |of: fn(&WeightState) -> &Vec<f32>| -> Result<Vec<Vec<f32>>, Error> {
            let all = self.gathered(ranks, of)?;
            Ok(if is_first { all } else { Vec::new() })
        };
        let (first, second) = (take(|state| &state.first)?, take(|state| &state.second)?);
        let averages = match self.has_average {
            true => take(|state| &state.average)?,
            false => vec![Vec::new(); self.lengths.len()],
        };
        let states = first.into_iter().zip(second).zip(averages);
        let states = states.map(|((first, second), average)| WeightState { first, second, average });
        Ok(is_first.then(|| states.collect()))
    }

    /// Restores the state of this rank's parts from the complete state, which only the first rank passes.
    ///
    /// # Errors
    /// A rank has ended, or the state belongs to other weights.
    pub fn restore(&mut self, ranks: &dyn Collective, whole: Option<&[WeightState]>) -> Result<(), Error> {
        let kinds: [Kind; 3] = [
            (|state| &state.first, |state| &mut state.first),
            (|state| &state.second, |state| &mut state.second),
            (|state| &state.average, |state| &mut state.average),
        ];
        // Whether there are averages can't be derived from a part, which may have no elements.
        for (of, own) in kinds.into_iter().take(2 + usize::from(self.has_average)) {
            for at in 0..self.buckets.len() {
                let bucket = self.buckets[at].clone();
                let mut bytes = match whole {
                    Some(whole) => {
                        let values: Vec<&[f32]> = whole.iter().map(|state| of(state).as_slice()).collect();
                        let has_all = values.iter().map(|values| values.len()).eq(self.lengths.iter().copied());
                        if !has_all {
                            return Err(Error::usage(
                                "the checkpoint belongs to another run: its optimizer state does not fit the weights",
                            ));
                        }
                        bytemuck::cast_slice(&self.read(&values, &bucket)).to_vec()
                    }
                    None => Vec::new(),
                };
                ranks.broadcast(&mut bytes, 0)?;
                let values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
                let part = parts(bucket.len(), ranks.size())[ranks.rank()].clone();
                *own(&mut self.states[at]) = values[part].to_vec();
            }
        }
        Ok(())
    }

    /// Returns the number of elements of the states that this rank keeps.
    pub fn elements(&self) -> usize {
        self.states.iter().map(|state| state.first.len() + state.second.len() + state.average.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::collective::Threads;

    const LENGTHS: [usize; 4] = [5, 1, 30, 7];

    fn weights() -> Vec<Vec<f32>> {
        LENGTHS.iter().map(|length| (0..*length).map(|at| (at as f32 * 0.7).sin()).collect()).collect()
    }

    fn gradients(step: u64) -> Vec<Vec<f32>> {
        let of = |length: &usize| (0..*length).map(|at| ((at as f32 + step as f32) * 1.3).cos()).collect();
        LENGTHS.iter().map(of).collect()
    }

    fn slices(of: &[Vec<f32>]) -> Vec<&[f32]> {
        of.iter().map(Vec::as_slice).collect()
    }

    /// Returns weights and states after these steps in a single process.
    fn alone(options: &OptimizerOptions, steps: u64) -> (Vec<Vec<f32>>, Vec<WeightState>) {
        let mut weights = weights();
        let mut states: Vec<WeightState> = weights.iter().map(|weight| WeightState::new(weight, options)).collect();
        for step in 1..=steps {
            let gradients = gradients(step);
            let norm = norm(slices(&gradients).into_iter());
            let parts = weights.iter_mut().zip(&gradients).zip(&mut states);
            let mut parts: Vec<_> =
                parts.map(|((weight, gradient), state)| (weight.as_mut_slice(), gradient.as_slice(), state)).collect();
            options.step(step, 0.1, norm, &mut parts);
        }
        (weights, states)
    }

    /// The result of a rank: the weights, the complete state on the first rank, and the averages.
    type Found = (Vec<Vec<f32>>, Option<Vec<WeightState>>, Vec<Vec<f32>>);

    /// Runs the same steps on ranks, from a given state or from the start. Every rank contributes an equal share of the
    /// gradients.
    fn shared(
        ranks: &dyn Collective,
        options: &OptimizerOptions,
        from: Option<&(Vec<Vec<f32>>, Vec<WeightState>)>,
        steps: Range<u64>,
    ) -> Found {
        let mut values = from.map_or_else(weights, |(weights, _)| weights.clone());
        let mut shards = Shards::with_buckets(ranks, &slices(&values), options, 16);
        assert!(shards.elements() < 3 * 43 * 2 / ranks.size());
        if let Some((_, states)) = from {
            shards.restore(ranks, (ranks.rank() == 0).then_some(states)).unwrap();
        }
        for step in steps {
            let norm = shards.reduce(ranks, &slices(&gradients(step)), 1.0 / ranks.size() as f32).unwrap();
            let mut weights: Vec<&mut [f32]> = values.iter_mut().map(Vec::as_mut_slice).collect();
            shards.advance(ranks, options, (step, 0.1, norm), &mut weights).unwrap();
        }
        let averages = if options.ema.is_some() { shards.averages(ranks).unwrap() } else { Vec::new() };
        (values, shards.whole(ranks).unwrap(), averages)
    }

    fn assert_close(found: &[Vec<f32>], expected: &[Vec<f32>]) {
        let (found, expected) = (found.concat(), expected.concat());
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}, expected {expected:?}");
    }

    #[test]
    fn shards_make_the_steps_of_one_process_and_continue_from_its_state() {
        for ema in [Some(0.9), None] {
            let options = OptimizerOptions { ema, weight_decay: 0.01, ..OptimizerOptions::default() };
            let (middle, expected) = (alone(&options, 2), alone(&options, 5));
            for size in [2, 3, 5] {
                for from in [None, Some(&middle)] {
                    let start = if from.is_some() { 3 } else { 1 };
                    let all = Threads::run(size, |ranks| Ok(shared(&*ranks, &options, from, start..6)));
                    for (rank, found) in all.into_iter().enumerate() {
                        let (values, whole, averages) = found.unwrap();
                        assert_close(&values, &expected.0);
                        assert_eq!(whole.is_some(), rank == 0);
                        for (found, expected) in whole.iter().flatten().zip(&expected.1) {
                            let parts = |state: &WeightState| {
                                [state.first.clone(), state.second.clone(), state.average.clone()]
                            };
                            assert_close(&parts(found), &parts(expected));
                        }
                        let expected: Vec<_> = expected.1.iter().map(|state| state.average.clone()).collect();
                        assert_close(&averages, &expected);
                    }
                }
            }
        }
    }

    #[test]
    fn a_state_of_other_weights_is_refused() {
        let options = OptimizerOptions::default();
        let (_, mut states) = alone(&options, 1);
        states.pop();
        let mut shards = Shards::new(&crate::collective::Alone, &slices(&weights()), &options);
        assert!(
            shards.restore(&crate::collective::Alone, Some(&states)).unwrap_err().to_string().contains("another run")
        );
    }
}
