//! Estimates the memory of a run, and how many samples fit into one run of the graph.

use super::super::gradients::share_of_memory;
use super::super::network::Denoising;
use super::settings::FinetuneSettings;
use crate::analysis::Analysis;
use crate::error::Error;
use crate::finetune::graph::TrainingGraph;
use crate::finetune::update::UpdateKind;
use crate::gradient::GradientOptions;
use crate::macs::demand::{Demand, runs_of};
use crate::macs::memory::{Footprint, HELD, LIBRARY, OF_NODE, fitting_batch, float32_bytes_of, gibibytes};
use crate::runtime::{Device, available_memory};
use crate::training::trained_weights;

/// Maximum number of samples that an evaluation runs together.
const EVALUATED: usize = 32;

/// Approximate number of nodes in the graph of a step for each node of the network.
const OF_STEP: u64 = 5;

/// Everything that decides how much memory a run needs.
pub(super) struct MemoryNeed<'a> {
    network: Denoising<'a>,
    analysis: &'a Analysis,
    teacher: Option<&'a Analysis>,
    settings: &'a FinetuneSettings,
    /// The share of all activation bytes that is held at a time.
    kept: f64,
}

impl<'a> MemoryNeed<'a> {
    /// Prepares the estimate for a run with these settings.
    ///
    /// # Errors
    /// Fails for an operator without a gradient.
    pub(super) fn new(
        (network, analysis): (Denoising<'a>, &'a Analysis),
        teacher: Option<&'a Analysis>,
        settings: &'a FinetuneSettings,
    ) -> Result<Self, Error> {
        let mut this = Self { network, analysis, teacher, settings, kept: 1.0 };
        if settings.checkpoint_activations {
            let (kept, all) = (this.activation_bytes(true)?, this.activation_bytes(false)?);
            this.kept = kept as f64 / all.max(1) as f64;
        }
        Ok(this)
    }

    /// Returns the activation bytes of a run with one sample: all, or those that are held if the others are recomputed.
    fn activation_bytes(&self, recomputes: bool) -> Result<u64, Error> {
        let Self { network, analysis, settings, .. } = self;
        let roles = network.roles();
        let options = GradientOptions {
            sizes: roles.sizes(
                &analysis.facts,
                network.sizes(),
                settings.objective.parts() * roles.fixed_batch().unwrap_or(1),
            ),
            loss: settings.objective.terms(&network.configured().process, (&roles.prediction.name, None), &[], 1.0),
            wanted: trained_weights(analysis, &settings.trained)?,
            recomputes,
            ..GradientOptions::default()
        };
        Ok(TrainingGraph::build(analysis, &options, settings.device)?.graph.activation_bytes)
    }

    /// Returns the number of samples in a run of the graph, at most `wanted`, and the memory that the run then needs.
    /// If too little memory is free or allowed, runs have fewer samples, unless their number was requested.
    ///
    /// # Errors
    /// Fails if memory is too small even then. The message states how much is needed.
    pub(super) fn fitted(&self, wanted: usize) -> Result<(usize, Demand), Error> {
        let settings = self.settings;
        let free = if settings.device == Device::Cpu { available_memory() } else { None };
        let available = share_of_memory(&*settings.ranks, settings.memory.into_iter().chain(free).min())?;
        let may_shrink = settings.micro_batch.is_none() && self.network.roles().fixed_batch().is_none();
        let of = |samples: usize| self.demand(samples, wanted);
        let sizes: Vec<(usize, u64)> = match may_shrink {
            true => (1..=wanted)
                .filter(|size| wanted.is_multiple_of(*size))
                .map(|size| Ok((size, of(size)?.total())))
                .collect::<Result<_, Error>>()?,
            false => vec![(wanted, of(wanted)?.total())],
        };
        let needed =
            |samples: usize| sizes.iter().find(|(size, _)| *size == samples).map_or(u64::MAX, |(_, bytes)| *bytes);
        if let Some(samples) = fitting_batch(available, wanted, needed) {
            return Ok((samples, of(samples)?));
        }
        let least = sizes.first().map_or(wanted, |(size, _)| *size);
        let advice = match may_shrink || least == 1 {
            true => "train only some weights (--train REGEX), or use smaller sizes (--size)".to_owned(),
            false => format!("reduce --micro-batch: runs of one sample need {}", gibibytes(of(1)?.total())),
        };
        let error = of(least)?.refusal(available, &runs_of("training with runs", least), &advice);
        Err(error.in_file(self.analysis.model.path()))
    }

    /// Estimates the memory for `samples` samples in a run of the graph, out of the `batch` samples of a rank.
    fn demand(&self, samples: usize, batch: usize) -> Result<Demand, Error> {
        let Self { network, analysis, settings, .. } = self;
        let roles = network.roles();
        let objective = &settings.objective;
        let parts = objective.parts();
        let footprint = |of: &Analysis, samples: usize| {
            let sizes = roles.sizes(&of.facts, network.sizes(), samples);
            Footprint::of(&of.model, &of.graph, &of.facts, &sizes)
        };
        let own = footprint(analysis, parts * samples)?;
        let trained = self.trained_bytes()?;
        let average = if settings.optimizer.ema.is_some() { trained } else { 0 };
        let sums = if samples < batch { trained } else { 0 };
        let kind = settings.update.unwrap_or(UpdateKind::of_device(settings.device));
        let teacher = match self.teacher.filter(|_| objective.needs_teacher(settings.features.is_some())) {
            Some(of) => footprint(of, parts * samples)?.run().saturating_sub(LIBRARY),
            None => 0,
        };
        // The larger of two needs: an evaluation, which holds a session with its weights, the file and two copies of
        // the weights (the result and the best so far); or a checkpoint in memory, which copies weights and optimizer
        // states twice.
        let judged =
            footprint(analysis, samples.min(EVALUATED))?.run().saturating_sub(LIBRARY).saturating_add(3 * trained);
        let saved = 2 * (3 * trained + average);
        let beside = if settings.held_out_count > 0 || settings.pictures > 0 { judged.max(saved) } else { saved };
        let of_device = Demand::default()
            .with("weights", own.weights.saturating_add(trained))
            .with("gradients", trained.saturating_add(sums))
            .with("moments", 2 * trained)
            .with("average", average)
            .with("update", if kind == UpdateKind::Graph { self.update_bytes()? } else { 0 })
            .with("teacher", teacher)
            .with("activations", (own.values as f64 * HELD * self.kept) as u64);
        Ok(match settings.device {
            Device::Cpu => of_device
                .with("evaluations and checkpoints", beside)
                .with("library", LIBRARY + OF_STEP * OF_NODE * own.nodes),
            // Evaluations and checkpoints use CPU memory.
            _ => of_device,
        })
    }

    fn trained_bytes(&self) -> Result<u64, Error> {
        Ok(self.sizes()?.into_iter().fold(0, u64::saturating_add))
    }

    /// Estimates the temporary memory of an optimizer step by graphs: a few values of the size of the largest weight,
    /// one of them in double precision.
    fn update_bytes(&self) -> Result<u64, Error> {
        Ok(4 * self.sizes()?.into_iter().max().unwrap_or(0))
    }

    /// Returns the bytes of every trained weight in float32.
    fn sizes(&self) -> Result<Vec<u64>, Error> {
        let bytes = |value| float32_bytes_of(&self.analysis.facts, value);
        Ok(trained_weights(self.analysis, &self.settings.trained)?.into_iter().map(bytes).collect())
    }
}
