//! Evaluates a cut without a refit next to its original: losses on clean samples, and samples from the same noise.

use ndarray::ArrayD;

use super::super::gradients::recognise;
use super::super::network::Denoising;
use super::super::options::ScoreOptions;
use super::super::output::Task;
use super::super::progress::Watch;
use super::super::runtime::Runtime;
use super::super::staged::Staged;
use super::judge::Judge;
use super::samples::Clean;
use super::{RefitSettings, SEED_OF_JUDGE, macs_of_sample};
use crate::collective::Alone;
use crate::error::Error;
use crate::load::load;

/// Maximum number of runs of a network for its losses.
const RUNS: usize = 400;

/// The evaluation of original and cut.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CutJudgement {
    /// The samples of both from the same noise, `[count, ...]`.
    pub samples: [ArrayD<f32>; 2],
    /// The sample values that are shown as black and white.
    pub range: (f64, f64),
    /// The process, in words.
    pub process: String,
    /// The source of the clean samples, in words. `None`: there is no data.
    pub source: Option<String>,
    /// The timesteps and denoising losses of both on clean samples. Empty if there is no data.
    pub losses: [Vec<(f64, f64)>; 2],
}

impl CutJudgement {
    /// Returns the means over the timesteps; `None` if no losses were measured.
    pub fn means(&self) -> Option<[f64; 2]> {
        let mean = |losses: &Vec<(f64, f64)>| losses.iter().map(|(_, loss)| loss).sum::<f64>() / losses.len() as f64;
        (!self.losses[0].is_empty()).then(|| [mean(&self.losses[0]), mean(&self.losses[1])])
    }
}

impl Staged {
    /// Measures the denoising losses of original and cut if `options` have clean samples, and generates `count` samples
    /// with both from the same noise.
    ///
    /// # Errors
    /// Fails if data can't be read, the network does not denoise or does not run, or the caller stopped.
    pub fn judge(
        &self,
        runtime: &Runtime,
        options: &ScoreOptions,
        count: usize,
        watch: &mut Watch<'_>,
    ) -> Result<CutJudgement, Error> {
        if matches!(options.task, Task::Output(_)) {
            return Err(Error::usage("expected a denoising network").in_file(self.cut().model().path()));
        }
        let analysis = self.cut().analysis().0.clone();
        let found = recognise(&analysis, options)?;
        let network = Denoising { known: (&analysis.model, &analysis.graph, &analysis.facts), found: &found };
        let settings = RefitSettings::default();
        let conditioning = network.conditioning(count.max(settings.held_out), options.seed)?;
        let clean = match options.gradients.data {
            Some(_) => {
                let extent = (settings.held_out, network.roles().fixed_batch().unwrap_or(1));
                Some(Clean::new(network, runtime.0, &conditioning, (options, &settings), extent, watch)?)
            }
            None => None,
        };
        let judge = Judge {
            network,
            conditioning: &conditioning,
            runtime: runtime.0,
            seed: options.seed.wrapping_add(SEED_OF_JUDGE),
            macs: macs_of_sample(network, &analysis),
            fitted: RUNS,
            ranks: &Alone,
        };
        let held_out = clean.as_ref().and_then(|clean| clean.held_out.as_ref());
        let pruned = load(self.path())?;
        let original = judge.judge(&analysis.model, held_out, count, watch)?;
        let cut = judge.judge(&pruned, held_out, count, watch)?;
        let (Some(first), Some(second)) = (original.drawn, cut.drawn) else {
            return Err(Error::usage("expected at least 1 sample to generate, found 0"));
        };
        Ok(CutJudgement {
            samples: [first, second],
            range: options.gradients.network.process.sample_range,
            process: network.configured().process.describe(),
            source: clean.filter(|clean| clean.held_out.is_some()).map(|clean| clean.fit.source),
            losses: [original.losses, cut.losses],
        })
    }
}
