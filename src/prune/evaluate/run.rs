//! Runs an evaluation step by step.

use std::time::Instant;

use ndarray::ArrayD;

use super::super::progress::{Progress, Stage, Watch, notify, unwatched};
use super::candidates::Candidates;
use super::drawn::{Featured, Reference, features_over, first, is_images, mended};
use super::{Drawing, EvaluateOptions, EvaluatedNetwork, Evaluation};
use crate::collective::least;
use crate::diffusion::{Conditioning, Ranges, SampleOptions, Samples, denoising_losses, generate, grid_png, noise};
use crate::error::Error;
use crate::evaluate::{FeatureNetwork, KernelOptions};
use crate::runtime::check_memory;

/// Default number of clean samples for the loss.
const LOSS_COUNT: usize = 256;

/// Maximum number of samples that are evaluated together.
const BATCH: usize = 32;

/// Default number of samples to generate: for distances between sets, and for similarity alone.
const SAMPLES: (usize, usize) = (2048, 256);

/// A running evaluation.
pub(super) struct Run<'a> {
    candidates: Candidates<'a>,
    options: &'a EvaluateOptions,
    started: Instant,
    notes: Vec<String>,
}

impl<'a> Run<'a> {
    pub(super) fn new(candidates: Candidates<'a>, options: &'a EvaluateOptions) -> Self {
        Self { candidates, options, started: Instant::now(), notes: Vec::new() }
    }

    fn ranges(&self) -> Ranges {
        Ranges { data: self.options.data_range, sample: self.options.network.process.sample_range }
    }

    /// Returns the number of clean samples for the loss, and the batch size.
    fn extent(&self, name: &str) -> Result<(usize, usize), Error> {
        let fixed = self.options.network.batch.or_else(|| self.candidates.original().view().roles().fixed_batch());
        let available = Samples::available(&self.options.data, name)?;
        let count = match self.options.count {
            Some(count) if count > available => {
                let text =
                    format!("--count: expected at most {available}, the number of samples in the data, found {count}");
                return Err(Error::usage(text).in_file(&self.options.data));
            }
            Some(count) => count,
            None => {
                let available = available.min(LOSS_COUNT);
                let whole = fixed.unwrap_or(BATCH).max(1);
                if available > whole || fixed.is_some() { available / whole * whole } else { available }
            }
        };
        let divides = |batch: &usize| count.is_multiple_of(*batch);
        let wanted = fixed.or_else(|| (1..=BATCH.min(count)).rev().find(divides)).unwrap_or(0);
        if count == 0 || wanted == 0 || !count.is_multiple_of(wanted) {
            let text = format!("--count: expected a multiple of the batch size {wanted}, found {count}");
            return Err(Error::usage(text).hint("--batch sets the batch size if the network does not fix it"));
        }
        let batch = self.candidates.original().view().fitting(wanted, fixed.is_none())?;
        Ok((count, least(&*self.options.ranks, batch)?))
    }

    /// Runs the evaluation.
    ///
    /// # Errors
    /// Same as [`super::Model::evaluate`].
    pub(super) fn evaluate(mut self, watch: &mut Watch<'_>) -> Result<Evaluation, Error> {
        let (original, options) = (self.candidates.original(), self.options);
        let (view, path) = (original.view(), self.candidates.path(0));
        let name = view.roles().sample.name.clone();
        let (count, batch) = self.extent(&name)?;
        let dims = view.sample_dims(batch)?;
        // These checks come first, so that they fail before the long work.
        let mut features = self.open_features(&dims[1..])?;
        let drawn = options.samples.unwrap_or(if features.is_some() { SAMPLES.0 } else { SAMPLES.1 });
        if features.is_some() && drawn < 2 {
            return Err(Error::usage(format!("--samples: expected at least 2 for distances, found {drawn}")));
        }
        let steps = view.configured().process.schedule.step_count();
        if !(1..=steps).contains(&options.timesteps) {
            let text = format!("--timesteps: expected 1 to {steps} timesteps, found {}", options.timesteps);
            return Err(Error::usage(text));
        }
        if drawn > 0 {
            let none = options.sampling(0);
            self.samples(0, (batch, 1), &none, &view.conditioning(batch, options.seed)?, &mut unwatched)?;
        }
        self.check_memory(drawn, &dims)?;
        let samples = Samples::load(&options.data, (&name, &dims), &self.ranges(), count, options.seed)?;
        let data = self.load_data(&name, &dims, drawn, features.is_some())?;
        let conditioning = view.conditioning(batch, options.seed)?;
        original.announce(&conditioning, watch)?;
        conditioning.unpaired(&samples).iter().try_for_each(|text| notify(watch, Progress::Warning(text)))?;

        let mut networks = self.count(watch)?;
        let reason = match options.ranks.size() {
            _ if !options.measures_latency => None,
            1 => self.candidates.without_latency()?,
            count => Some(format!("latencies were not measured: {count} ranks would disturb each other")),
        };
        if options.measures_latency && reason.is_none() {
            notify(watch, Progress::At { stage: Stage::Timing, done: 0, total: 1 })?;
            let latencies = self.candidates.latencies(options.seed)?;
            networks.iter_mut().zip(latencies).for_each(|(network, latency)| network.latency = Some(latency));
        }
        self.notes.extend(reason);
        let timesteps = self.losses((&samples, batch), &conditioning, &mut networks, watch)?;
        let drawing = match drawn {
            0 => None,
            _ => Some(self.draw((drawn, data.as_ref()), &mut features, &mut networks, watch)?),
        };
        if features.is_none() {
            self.notes.push(
                "no distances between samples (FD, KID) were computed: they need a network that computes features of images, \
                 --features NET.onnx"
                    .to_owned(),
            );
        }
        let mut networks = networks.into_iter();
        let original = networks.next().ok_or_else(|| Error::usage("no networks").in_file(path))?;
        Ok(Evaluation {
            process: view.configured().process.describe(),
            sizes: self.candidates.sizes(),
            loss_source: samples.source,
            loss_count: count,
            timesteps,
            drawing,
            features: features.map(|features| features.summary().clone()),
            data_source: data.map(|data| data.source),
            original,
            networks: networks.collect(),
            notes: self.notes,
            seconds: self.started.elapsed().as_secs_f64(),
        })
    }

    fn open_features(&self, sample: &[usize]) -> Result<Option<FeatureNetwork>, Error> {
        let Some((model, options)) = &self.options.features else { return Ok(None) };
        let (runtime, sessions) = (self.candidates.runtime, &self.candidates.sessions);
        FeatureNetwork::open(runtime, &model.0, options, sample, sessions).map(Some)
    }

    /// Refuses more samples than fit into memory: those of the original, those of another network, and one copy.
    fn check_memory(&self, drawn: usize, dims: &[usize]) -> Result<(), Error> {
        let elements = dims[1..].iter().fold(drawn as u64, |product, size| product.saturating_mul(*size as u64));
        check_memory(elements.saturating_mul(3 * size_of::<f32>() as u64)).map_err(|text| {
            Error::unmet(format!("{drawn} samples of {:?}: {text}", &dims[1..])).hint("reduce --samples")
        })
    }

    /// Loads the data whose features samples are compared with.
    fn load_data(&self, name: &str, dims: &[usize], drawn: usize, wanted: bool) -> Result<Option<Samples>, Error> {
        let options = self.options;
        if !wanted {
            return Ok(None);
        }
        let available = Samples::available(&options.data, name)?;
        let count = options.data_samples.unwrap_or(drawn.min(available));
        if count < 2 || count > available {
            let text =
                format!("--data-samples: expected 2 to {available}, the number of samples in the data, found {count}");
            return Err(Error::usage(text).in_file(&options.data));
        }
        let fewest = drawn.min(count);
        let kernel = &options.kernel;
        if let Some(size) = kernel.subset_size.filter(|size| !(2..=fewest).contains(size)) {
            let text = format!("--kid-subset-size: expected 2 to {fewest}, the number of samples, found {size}");
            return Err(Error::usage(text));
        }
        if kernel.subsets == 0 {
            return Err(Error::usage("--kid-subsets: expected at least 1, found 0"));
        }
        Samples::load(&options.data, (name, dims), &self.ranges(), count, options.seed).map(Some)
    }

    /// Counts the cost of every network.
    fn count(&self, watch: &mut Watch<'_>) -> Result<Vec<EvaluatedNetwork>, Error> {
        let total = self.candidates.all.len();
        let of_network = |at: usize| {
            notify(watch, Progress::At { stage: Stage::Counting, done: at, total })?;
            let (cost, bytes) = self.candidates.cost(at)?;
            Ok(EvaluatedNetwork {
                path: self.candidates.path(at).to_owned(),
                cost,
                bytes,
                latency: None,
                losses: Vec::new(),
                mean_loss: f64::NAN,
                loss_increase: None,
                consistency: None,
                distances: None,
                broken_samples: 0,
                picture: None,
            })
        };
        (0..total).map(of_network).collect()
    }

    /// Measures the losses of all networks on the same noisy samples; returns the timesteps.
    fn losses(
        &self,
        (samples, batch): (&Samples, usize),
        conditioning: &Conditioning,
        networks: &mut [EvaluatedNetwork],
        watch: &mut Watch<'_>,
    ) -> Result<Vec<f64>, Error> {
        let options = self.options;
        // The same seed as in `Network::loss`.
        let noise = noise(samples.values.shape(), samples.len(), options.seed.wrapping_add(1));
        let mut timesteps = Vec::new();
        let all = networks.len();
        for at in 0..all {
            let mut denoiser = self.candidates.denoiser(at, batch)?;
            let process = &self.candidates.all[at].view().configured().process;
            let of = (samples, &noise);
            let curve = denoising_losses(
                &mut denoiser,
                process,
                conditioning,
                of,
                options.timesteps,
                &*options.ranks,
                &mut |done, total| {
                    notify(watch, Progress::At { stage: Stage::Losses, done: at * total + done, total: all * total })
                },
            )
            .map_err(|error| error.in_file(self.candidates.path(at)))?;
            timesteps = curve.iter().map(|(t, _)| *t).collect();
            networks[at].losses = curve.iter().map(|(_, loss)| *loss).collect();
            networks[at].mean_loss = networks[at].losses.iter().sum::<f64>() / curve.len().max(1) as f64;
            let of_original = networks[0].mean_loss;
            networks[at].loss_increase = (at > 0).then(|| networks[at].mean_loss / of_original - 1.0);
        }
        Ok(timesteps)
    }

    /// Generates samples from all networks and compares them.
    fn draw(
        &mut self,
        (count, data): (usize, Option<&Samples>),
        features: &mut Option<FeatureNetwork>,
        networks: &mut [EvaluatedNetwork],
        watch: &mut Watch<'_>,
    ) -> Result<Drawing, Error> {
        let options = self.options;
        let range = options.network.process.sample_range;
        let sampling = options.sampling(count);
        let (all, batch) = (networks.len(), self.candidates.original().batch(count, BATCH)?);
        if batch == 0 {
            return Err(Error::usage("--batch: expected at least 1, found 0"));
        }
        let conditioning = self.candidates.original().view().conditioning(batch, options.seed)?;
        let sets = all + 1;
        let featured = |features: &mut FeatureNetwork, place: usize, samples: &ArrayD<f32>, watch: &mut Watch<'_>| {
            let rows = features_over(&*options.ranks, features, samples, range, &mut |done, total| {
                // All sets have about the same number of samples.
                notify(watch, Progress::At { stage: Stage::Features, done: place * total + done, total: sets * total })
            })?;
            Featured::new(rows)
        };
        let data = match (features.as_mut(), data) {
            (Some(features), Some(data)) => Some(featured(features, 0, &data.values, watch)?),
            _ => None,
        };
        let (mut reference, mut original): (Option<Reference>, Option<Featured>) = (None, None);
        for (at, network) in networks.iter_mut().enumerate() {
            let samples = self.samples(at, (batch, all), &sampling, &conditioning, watch)?;
            let is_images = is_images(samples.shape());
            let (samples, broken) = mended(samples, if is_images { range.0 as f32 } else { 0.0 });
            network.broken_samples = broken;
            if broken > 0 {
                let path = self.candidates.path(at).display();
                self.notes.push(format!("{path}: {broken} of {count} samples have values that are not finite"));
            }
            if options.pictures > 0 {
                network.picture = grid_png(&first(&samples, options.pictures), range).ok();
            }
            if let (Some(features), Some(data)) = (features.as_mut(), &data) {
                let own = featured(features, at + 1, &samples, watch)?;
                notify(watch, Progress::At { stage: Stage::Distances, done: at, total: all })?;
                let kernel = KernelOptions { seed: options.seed, ..options.kernel };
                network.distances = Some(own.distances(original.as_ref(), data, &kernel)?);
                original = original.or(Some(own));
            }
            match &reference {
                Some(reference) => network.consistency = Some(reference.consistency(&samples)),
                None => {
                    let new = Reference::new(samples, range);
                    self.notes.extend(new.without_ssim());
                    reference = Some(new);
                }
            }
        }
        if let (Some(features), Some(data)) = (features, &data) {
            let (width, fewest) = (features.summary().width, count.min(data.count()));
            if fewest <= width {
                self.notes.push(format!(
                    "FD of {fewest} samples with {width} features is biased upwards by the small number of samples; compare \
                     it only between equal numbers of samples, or use KID"
                ));
            }
        }
        let value_range = reference.map_or(range.1 - range.0, |reference| reference.range);
        let SampleOptions { steps, sampler, skip, eta, seed, .. } = sampling;
        Ok(Drawing { count, steps, sampler, skip, eta, seed, value_range })
    }

    /// Generates the samples of one network.
    fn samples(
        &self,
        at: usize,
        (batch, all): (usize, usize),
        options: &SampleOptions,
        conditioning: &Conditioning,
        watch: &mut Watch<'_>,
    ) -> Result<ArrayD<f32>, Error> {
        let configured = self.candidates.all[at].view().configured();
        let options = SampleOptions { variance: configured.variance, ..*options };
        let mut denoiser = self.candidates.denoiser(at, batch)?;
        generate(
            &mut denoiser,
            &configured.process,
            conditioning,
            &options,
            &*self.options.ranks,
            &mut |done, total| {
                notify(watch, Progress::At { stage: Stage::Sampling, done: at * total + done, total: all * total })
            },
        )
        .map_err(|error| error.in_file(self.candidates.path(at)))
    }
}
