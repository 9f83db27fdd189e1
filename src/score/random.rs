//! Random scores: a baseline for the other criteria.

use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::{Criterion, ScoreCx};
use crate::couple::group::ChannelGroup;
use crate::error::Error;

/// Uniform random scores, the same for the same seed and group.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    /// The seed.
    pub seed: u64,
}

impl Criterion for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn score(&self, cx: &ScoreCx<'_>, group: &ChannelGroup) -> Result<Vec<f64>, Error> {
        // The seed depends on the members of the group, not on the groups before it.
        let mut seed = self.seed;
        for member in &group.members {
            let weight = &cx.coupling.uses[member.weight];
            for byte in cx.graph.values[weight.value].name.bytes().chain([member.axis as u8]) {
                seed = (seed ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        if let Some(first) = group.members.first().and_then(|member| member.indices.first()?.first()) {
            seed ^= u64::from(*first) << 32;
        }
        let mut rng = Pcg64::seed_from_u64(seed);
        Ok(draw(&mut rng, group.channels.len()))
    }
}

fn draw(rng: &mut impl Rng, count: usize) -> Vec<f64> {
    (0..count).map(|_| rng.random::<f64>()).collect()
}
