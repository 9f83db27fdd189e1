//! What a run needs of memory, and the samples of a run of the graph that fit.

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

/// Samples of an evaluation that run together, at most.
const EVALUATED: usize = 32;

/// Nodes of the graph of a step for each node of the network, about.
const OF_STEP: u64 = 5;

/// What decides how much a run takes.
pub(super) struct Taking<'a> {
    network: Denoising<'a>,
    analysis: &'a Analysis,
    teacher: Option<&'a Analysis>,
    settings: &'a FinetuneSettings,
    /// Of the bytes of all activations, how many are held at a time.
    kept: f64,
}

impl<'a> Taking<'a> {
    /// What a run of the settings takes.
    ///
    /// # Errors
    /// An operator without a gradient.
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

    /// The activations of a run of one sample, in bytes: all, or as many as are held if the others are computed again.
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

    /// The samples of a run of the graph, at most `wanted`, with what the run needs then. Where too little memory is free or
    /// allowed, runs have fewer samples, unless their number was asked for.
    ///
    /// # Errors
    /// Even so it is too little; the message says what is needed.
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
            true => "train a part of the weights (--train REGEX), or smaller sizes (--size)".to_owned(),
            false => format!("a smaller --micro-batch needs less: runs of one sample {}", gibibytes(of(1)?.total())),
        };
        let error = of(least)?.refusal(available, &runs_of("training with runs", least), &advice);
        Err(error.in_file(self.analysis.model.path()))
    }

    /// What a run needs with so many samples in a run of the graph, of a rank's `batch`.
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
        let teacher = match self.teacher.filter(|_| objective.asks_teacher(settings.features.is_some())) {
            Some(of) => footprint(of, parts * samples)?.run().saturating_sub(LIBRARY),
            None => 0,
        };
        // Whichever is larger: a session of the network with its weights, the file and two copies of them (the result and the
        // best so far), or a checkpoint in memory, which copies weights and states twice.
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
            // Those are made in the memory of the CPU.
            _ => of_device,
        })
    }

    fn trained_bytes(&self) -> Result<u64, Error> {
        Ok(self.sizes()?.into_iter().fold(0, u64::saturating_add))
    }

    /// What a step by graphs holds on the way: some values of the size of the largest weight, one in double precision.
    fn update_bytes(&self) -> Result<u64, Error> {
        Ok(4 * self.sizes()?.into_iter().max().unwrap_or(0))
    }

    /// The bytes of every trained weight in float32.
    fn sizes(&self) -> Result<Vec<u64>, Error> {
        let bytes = |value| float32_bytes_of(&self.analysis.facts, value);
        Ok(trained_weights(self.analysis, &self.settings.trained)?.into_iter().map(bytes).collect())
    }
}
