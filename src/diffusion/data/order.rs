//! The order in which training visits samples, and the random decisions for each sample. Both depend only on a seed and
//! the number of samples visited before.

use std::ops::Range;

/// Number of rounds of the shuffle. A round swaps each number with probability one half, so many more rounds are needed
/// than a number has bits.
const ROUNDS: u64 = 128;

/// The infinite sequence of sample numbers, epoch after epoch. Each epoch has every sample once.
///
/// The order has no state. A shuffle that moves one number at a time computes the number at a position ("swap-or-not",
/// Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card Shuffle", 2012). A run that resumes at a position
/// therefore continues as if it had never stopped, on any number of machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleOrder {
    /// The seed of the order.
    pub seed: u64,
    /// The number of samples in the data.
    pub count: usize,
    /// The number of held-out samples: they are chosen at random by the seed and excluded from the sequence.
    pub held_out: usize,
}

/// The purpose of a random number. Equal seeds give unrelated numbers for different purposes.
#[derive(Clone, Copy)]
enum Purpose {
    Epoch = 1,
    HoldOut = 2,
    Flip = 3,
    Drop = 4,
}

impl SampleOrder {
    /// Returns an order of all `count` samples, determined by `seed`.
    pub fn new(seed: u64, count: usize) -> Self {
        Self { seed, count, held_out: 0 }
    }

    /// Returns the same order with `held_out` samples excluded, at most all but one.
    #[must_use]
    pub fn holding_out(self, held_out: usize) -> Self {
        Self { held_out: held_out.min(self.count.saturating_sub(1)), ..self }
    }

    /// Returns the number of samples in an epoch.
    pub fn epoch_len(&self) -> usize {
        self.count.saturating_sub(self.held_out)
    }

    /// Returns the epoch of a position, counted from 0.
    pub fn epoch(&self, position: u64) -> u64 {
        position.checked_div(self.epoch_len() as u64).unwrap_or(0)
    }

    /// Returns the sample numbers at these positions. Empty if there are no samples.
    pub fn numbers(&self, positions: Range<u64>) -> Vec<usize> {
        if self.epoch_len() == 0 {
            return Vec::new();
        }
        positions.map(|position| self.trained(self.place(position))).collect()
    }

    /// Returns the numbers of the held-out samples, ascending.
    pub fn held_out_numbers(&self) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..self.held_out.min(self.count)).map(|place| self.apart(place)).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Returns the sample at a position, followed by its replacements, should it be unreadable: all others of the
    /// epoch.
    pub(super) fn candidates(&self, position: u64) -> impl Iterator<Item = usize> {
        let (order, count) = (*self, self.epoch_len());
        let first = if count == 0 { 0 } else { self.place(position) };
        (first..count).chain(0..first).map(move |place| order.trained(place))
    }

    /// Returns whether the image at a position is flipped. The probability is one half.
    pub fn flips(&self, position: u64) -> bool {
        self.random(Purpose::Flip, position) & 1 == 1
    }

    /// Returns whether the conditioning of the sample at a position is dropped. This has the given probability.
    pub fn drops(&self, position: u64, probability: f64) -> bool {
        // A float64 has 53 bits of precision.
        let uniform = (self.random(Purpose::Drop, position) >> 11) as f64 / (1u64 << 53) as f64;
        uniform < probability
    }

    /// Returns the index of a position among the samples of an epoch, which must not be empty.
    fn place(&self, position: u64) -> usize {
        let count = self.epoch_len() as u64;
        shuffled(self.random(Purpose::Epoch, position / count), position % count, count) as usize
    }

    /// Returns the number of the sample at an index among those that are not held out.
    fn trained(&self, place: usize) -> usize {
        if self.held_out == 0 { place } else { self.apart(self.held_out + place) }
    }

    /// Returns the number of the sample at an index of the list that has the held-out samples first.
    fn apart(&self, place: usize) -> usize {
        shuffled(self.random(Purpose::HoldOut, 0), place as u64, self.count as u64) as usize
    }

    fn random(&self, purpose: Purpose, number: u64) -> u64 {
        mix(mix(mix(self.seed) ^ purpose as u64) ^ number)
    }
}

/// Returns the index to which the shuffle of a key moves a number below `count`.
fn shuffled(key: u64, number: u64, count: u64) -> u64 {
    (0..ROUNDS).fold(number, |number, round| {
        let of_round = mix(key ^ round);
        // Pairs of numbers with this sum, modulo the count, are swapped or not.
        let sum = of_round % count;
        let partner = if number <= sum { sum - number } else { sum + (count - number) };
        let is_swapped = mix(of_round ^ mix(number.max(partner))) & 1 == 1;
        if is_swapped { partner } else { number }
    })
}

/// Returns a number whose bits all depend on all bits of `number`: SplitMix64 (Steele, Lea and Flood, "Fast Splittable
/// Pseudorandom Number Generators", 2014) as a function.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_sample_once() {
        for count in [1, 2, 3, 7, 64, 1000] {
            let order = SampleOrder::new(5, count);
            for epoch in 0..3 {
                let start = epoch * count as u64;
                let mut numbers = order.numbers(start..start + count as u64);
                numbers.sort_unstable();
                assert_eq!(numbers, (0..count).collect::<Vec<_>>());
            }
        }
        assert!(SampleOrder::new(0, 0).numbers(0..5).is_empty());
    }

    #[test]
    fn orders_differ_by_seed_and_epoch_and_not_by_history() {
        let order = SampleOrder::new(1, 100);
        let first = order.numbers(0..100);
        assert_ne!(first, order.numbers(100..200));
        assert_ne!(first, SampleOrder::new(2, 100).numbers(0..100));
        assert_ne!(first, (0..100).collect::<Vec<_>>());
        assert_eq!(first[37..40], order.numbers(37..40));
        // Far beyond any real run.
        assert_eq!(order.numbers(u64::MAX - 2..u64::MAX).len(), 2);
    }

    /// Returns the largest deviation from the expected count, in standard deviations.
    fn deviation(counts: &[u32], draws: u32, probability: f64) -> f64 {
        let expected = f64::from(draws) * probability;
        let standard = (expected * (1.0 - probability)).sqrt();
        counts.iter().map(|count| (f64::from(*count) - expected).abs() / standard).fold(0.0, f64::max)
    }

    #[test]
    fn all_orders_of_few_samples_are_equally_likely() {
        let mut counts = [0; 24];
        for seed in 0..24_000 {
            let numbers = SampleOrder::new(seed, 4).numbers(0..4);
            // The index of the permutation among all permutations.
            let place = |at: usize| numbers[at + 1..].iter().filter(|later| **later < numbers[at]).count();
            counts[place(0) * 6 + place(1) * 2 + place(2)] += 1;
        }
        assert!(deviation(&counts, 24_000, 1.0 / 24.0) < 4.5, "{counts:?}");
    }

    #[test]
    fn every_sample_comes_first_equally_often() {
        let mut counts = [0; 50];
        (0..50_000).for_each(|epoch| counts[SampleOrder::new(9, 50).numbers(epoch * 50..epoch * 50 + 1)[0]] += 1);
        assert!(deviation(&counts, 50_000, 1.0 / 50.0) < 4.5, "{counts:?}");
    }

    #[test]
    fn decisions_have_their_probabilities() {
        let order = SampleOrder::new(3, 10);
        let flips = (0..20_000).filter(|position| order.flips(*position)).count() as u32;
        let drops = (0..20_000).filter(|position| order.drops(*position, 0.1)).count() as u32;
        let both = (0..20_000).filter(|position| order.flips(*position) && order.drops(*position, 0.1)).count() as u32;
        assert!(deviation(&[flips], 20_000, 0.5) < 4.5 && deviation(&[drops], 20_000, 0.1) < 4.5, "{flips} {drops}");
        assert!(deviation(&[both], 20_000, 0.05) < 4.5, "{both}");
        assert!((0..1000).all(|position| !order.drops(position, 0.0) && order.drops(position, 1.0)));
    }

    #[test]
    fn held_out_samples_are_never_visited() {
        let order = SampleOrder::new(4, 30).holding_out(6);
        let held_out = order.held_out_numbers();
        assert_eq!((held_out.len(), order.epoch_len(), order.epoch(24)), (6, 24, 1));
        let mut all = order.numbers(24..48);
        assert!(all.iter().all(|number| !held_out.contains(number)));
        assert!(order.candidates(3).all(|number| !held_out.contains(&number)));
        assert_eq!(order.candidates(3).next(), Some(order.numbers(3..4)[0]));
        all.extend(&held_out);
        all.sort_unstable();
        assert_eq!(all, (0..30).collect::<Vec<_>>());
        assert_eq!(SampleOrder::new(4, 3).holding_out(9).epoch_len(), 1);
    }
}
