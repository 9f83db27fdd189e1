//! A denoising network: the roles of its inputs, its loss on clean samples, and samples from it.

mod generated;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::gradients::threads;
use super::model::{Model, check_sizes};
use super::progress::{Progress, Stage, Watch, notify};
use super::runtime::Runtime;
use crate::array::Array;
use crate::collective::{Alone, Collective, least};
use crate::diffusion::{
    Conditioning, ConfiguredProcess, Denoiser, ProcessOptions, Ranges, RoleNames, Roles, SampleOptions, SampleSource,
    Samples, SourceOptions, UsualSizes, denoising_losses, generate, noise,
};
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::sizes::Sizes;
use crate::graph::{self, Graph};
use crate::infer::infer;
use crate::inputs::check_names;
use crate::lower;
use crate::macs::memory::{Footprint, fitting_batch, refuse_beyond};
use crate::ops;
use crate::runtime::{self, SessionOptions, available_memory};
pub use generated::GeneratedSamples;

/// The roles of a denoising network's inputs, how it was trained, and its conditioning.
#[derive(Clone, Debug, Default)]
pub struct NetworkOptions {
    /// The names of known inputs and outputs. The others are recognised automatically.
    pub names: RoleNames,
    /// How the network was trained. Settings that are not given follow from the names of its inputs.
    pub process: ProcessOptions,
    /// Number of samples to evaluate together. `None`: chosen automatically.
    pub batch: Option<usize>,
    /// Conditioning: arrays by the names of inputs; sample i takes row i. Inputs without an array get random values.
    pub inputs: Vec<(String, Array)>,
    /// The usual sizes, for symbolic dimensions that neither sizes nor arrays fix.
    pub usual_sizes: UsualSizes,
}

/// A model, its graph, and the facts about its values.
type Known<'a> = (&'a graph::model::Model, &'a Graph, &'a Facts);

/// The recognised roles and process of a denoising network.
#[derive(Clone, Debug)]
pub(super) struct Findings {
    roles: Roles,
    configured: ConfiguredProcess,
    /// The given sizes, and those that arrays fix.
    sizes: Sizes,
    inputs: Vec<(String, Array)>,
    /// The clean samples, which may come with conditioning.
    data: Option<PathBuf>,
}

impl Findings {
    /// Configures the process and the sizes. `sizes` are given ones, `data` are samples that decide the other sizes.
    ///
    /// # Errors
    /// Fails if the process does not fit the network, or if data can't be read.
    pub(super) fn new(
        roles: Roles,
        facts: &Facts,
        options: &NetworkOptions,
        sizes: &Sizes,
        data: Option<&Path>,
    ) -> Result<Self, Error> {
        let configured = options.process.configure(&roles)?;
        let sizes = sizes_of(&roles, facts, options, sizes, data)?;
        Ok(Self { roles, configured, sizes, inputs: options.inputs.clone(), data: data.map(Path::to_owned) })
    }
}

/// Returns the given sizes, those that arrays fix, and usual ones, as far as the network accepts them.
///
/// # Errors
/// Fails if data can't be read.
pub(super) fn sizes_of(
    roles: &Roles,
    facts: &Facts,
    options: &NetworkOptions,
    given: &Sizes,
    data: Option<&Path>,
) -> Result<Sizes, Error> {
    let fixed = roles.sizes_with_arrays(given, data, &options.inputs)?;
    let mut sizes = fixed.clone();
    for (name, size) in roles.with_usual_sizes(fixed, &options.usual_sizes) {
        let before = sizes.insert(name.clone(), size);
        // A configuration that contradicts the weights belongs to another network.
        if before.is_none() && check_sizes(&sizes, facts, Path::new("")).is_err() {
            sizes.remove(&name);
        }
    }
    Ok(sizes)
}

/// A denoising network with its recognised roles and process.
#[derive(Clone, Copy)]
pub(super) struct Denoising<'a> {
    pub(super) known: Known<'a>,
    pub(super) found: &'a Findings,
}

impl<'a> Denoising<'a> {
    pub(super) fn path(&self) -> &'a Path {
        self.known.0.path()
    }

    pub(super) fn roles(&self) -> &'a Roles {
        &self.found.roles
    }

    pub(super) fn configured(&self) -> &'a ConfiguredProcess {
        &self.found.configured
    }

    pub(super) fn sizes(&self) -> &'a Sizes {
        &self.found.sizes
    }

    /// Returns the shape of a batch of samples.
    pub(super) fn sample_dims(&self, batch: usize) -> Result<Vec<usize>, Error> {
        let sizes = self.roles().sizes(self.known.2, self.sizes(), batch);
        self.roles().sample.dims(&sizes).map_err(|error| error.in_file(self.path()))
    }

    /// Returns the values of the inputs that are neither sample nor time.
    pub(super) fn conditioning(&self, batch: usize, seed: u64) -> Result<Conditioning, Error> {
        let given = Some(self.found.inputs.as_slice());
        let conditioning = Conditioning::new(self.known, self.roles(), given, (self.sizes(), batch), seed)
            .map_err(|error| error.in_file(self.path()))?;
        let Some(data) = &self.found.data else { return Ok(conditioning) };
        let names: Vec<String> = self.roles().conditioning_ports().map(|port| port.name.clone()).collect();
        if names.is_empty() {
            return Ok(conditioning);
        }
        // Only the conditioning is used here, not the values of samples.
        let (dims, options) = (self.sample_dims(1)?, SourceOptions { inputs: Some(names), ..SourceOptions::default() });
        let source = SampleSource::open(data, (&self.roles().sample.name, &dims), &Ranges::default(), &options)?;
        conditioning.with_rows_of(Arc::new(source))
    }

    /// Returns the bytes of a run with this many samples.
    ///
    /// # Errors
    /// Fails if an external file has disappeared.
    pub(super) fn needed(&self, batch: usize) -> Result<u64, Error> {
        let (model, graph, facts) = self.known;
        let sizes = self.roles().sizes(facts, self.sizes(), batch);
        Ok(Footprint::of(model, graph, facts, &sizes)?.run())
    }

    /// Returns the number of samples per run that fits into free memory: `wanted`, or a divisor if it `may_shrink`.
    ///
    /// # Errors
    /// Fails if memory is too small.
    pub(super) fn fitting(&self, wanted: usize, may_shrink: bool) -> Result<usize, Error> {
        let available = available_memory();
        let (of_one, of_all) = (self.needed(1)?, self.needed(wanted)?);
        // All memory except the weights grows with the batch.
        let of_each = of_all.saturating_sub(of_one) / wanted.saturating_sub(1).max(1) as u64;
        let needed = |batch: usize| of_one.saturating_add(of_each.saturating_mul(batch as u64 - 1));
        if may_shrink && let Some(batch) = fitting_batch(available, wanted, needed) {
            return Ok(batch);
        }
        let (what, bytes, hint) = match wanted {
            count if count > 1 && !may_shrink => {
                (format!("a run of {count} samples"), of_all, "reduce --batch, or use smaller sizes with --size")
            }
            _ => ("a run of one sample".to_owned(), of_one, "use smaller sizes with --size"),
        };
        let refused = refuse_beyond(available, bytes, &what);
        refused.map(|()| wanted).map_err(|error| error.in_file(self.path()).hint(hint))
    }

    /// Opens the network in a session, for this many samples at once.
    pub(super) fn denoiser(&self, runtime: &runtime::Runtime, batch: usize) -> Result<Denoiser, Error> {
        self.denoiser_on(runtime, batch, &SessionOptions::default())
    }

    /// Opens the network in a session with these options.
    pub(super) fn denoiser_on(
        &self,
        runtime: &runtime::Runtime,
        batch: usize,
        options: &SessionOptions,
    ) -> Result<Denoiser, Error> {
        let session = lower::session(runtime, self.known.0, options)?;
        Denoiser::new(session, self.roles(), self.known.2, self.sizes(), batch)
            .map_err(|error| error.in_file(self.path()))
    }

    /// Returns the recognised roles, one line each.
    pub(super) fn lines(&self, conditioning: &Conditioning) -> Vec<String> {
        self.roles().lines(&self.configured().process, |name| conditioning.is_given(name))
    }

    /// Returns these lines with the process.
    pub(super) fn described(&self, lines: &[String]) -> String {
        format!("{}\nprocess:      {}", lines.join("\n"), self.configured().process.describe())
    }
}

/// A denoising network.
#[derive(Debug)]
pub struct Network {
    model: graph::model::Model,
    graph: Graph,
    facts: Facts,
    batch: Option<usize>,
    sample_range: (f64, f64),
    found: Findings,
    /// The processes that share the samples.
    ranks: Arc<dyn Collective>,
}

/// The samples and timesteps for the denoising loss.
#[derive(Clone, Debug)]
pub struct LossOptions {
    /// Clean samples: a folder of images, or a `.npy`, `.npz` or `.safetensors` file.
    pub data: PathBuf,
    /// The values of the data that correspond to the ends of the sample range; see
    /// [`super::GradientSettings::data_range`].
    pub data_range: Option<(f64, f64)>,
    /// The number of samples.
    pub count: usize,
    /// The number of timesteps, spread evenly over the schedule.
    pub timesteps: usize,
    /// Seed of the choice of samples and of the noise, which is the same at every timestep.
    pub seed: u64,
}

impl LossOptions {
    /// Returns the default options with these samples.
    pub fn on(data: impl Into<PathBuf>) -> Self {
        Self { data: data.into(), data_range: None, count: 256, timesteps: 25, seed: 0 }
    }
}

/// The denoising loss over timesteps.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LossReport {
    /// The source of the samples, in words.
    pub source: String,
    /// The process, in words.
    pub process: String,
    /// Timesteps with their losses.
    pub losses: Vec<(f64, f64)>,
}

impl LossReport {
    /// The mean over the timesteps.
    pub fn mean(&self) -> f64 {
        self.losses.iter().map(|(_, loss)| loss).sum::<f64>() / self.losses.len() as f64
    }
}

impl Network {
    /// Recognises the roles of a network's inputs. `sizes` are sizes of symbolic dimensions, `data` are samples that
    /// decide the other sizes.
    ///
    /// # Errors
    /// Fails if the model is invalid, the network does not denoise, or the process does not fit it.
    pub fn open(model: &Model, options: &NetworkOptions, sizes: &Sizes, data: Option<&Path>) -> Result<Self, Error> {
        let model = model.0.clone();
        let graph = Graph::new(&model)?;
        check_names(&model, &graph, &options.inputs)?;
        let facts = infer(&model, &graph, &ops::parse(&graph))?;
        check_sizes(sizes, &facts, model.path())?;
        let roles = Roles::recognise(&model, &graph, &facts, &options.names)?;
        let found = Findings::new(roles, &facts, options, sizes, data)?;
        let sample_range = options.process.sample_range;
        Ok(Self { model, graph, facts, batch: options.batch, sample_range, found, ranks: Arc::new(Alone) })
    }

    /// Lets several ranks compute losses and samples. Each rank computes a part, and all get the result. All ranks must
    /// call the same methods.
    #[must_use]
    pub fn over(self, ranks: Arc<dyn Collective>) -> Self {
        Self { ranks, ..self }
    }

    pub(super) fn view(&self) -> Denoising<'_> {
        Denoising { known: (&self.model, &self.graph, &self.facts), found: &self.found }
    }

    /// Returns warnings about settings of the process that have no effect.
    pub fn notes(&self) -> &[String] {
        &self.found.configured.notes
    }

    /// Returns the number of samples to evaluate together: the requested number, or the number that the network fixes,
    /// or else at most `most` and as many as fit into memory.
    ///
    /// # Errors
    /// Fails if memory is too small.
    pub(super) fn batch(&self, count: usize, most: usize) -> Result<usize, Error> {
        let said = self.batch.or_else(|| self.found.roles.fixed_batch());
        let batch = match said.unwrap_or(count.min(most)) {
            0 => 0,
            wanted => self.view().fitting(wanted, said.is_none())?,
        };
        least(&*self.ranks, batch)
    }

    /// Opens the network in a session of this rank.
    fn denoiser(&self, runtime: &Runtime, batch: usize) -> Result<Denoiser, Error> {
        let options = SessionOptions { threads: threads(&*self.ranks), ..SessionOptions::default() };
        self.view().denoiser_on(runtime.0, batch, &options)
    }

    pub(super) fn announce(&self, conditioning: &Conditioning, watch: &mut Watch<'_>) -> Result<(), Error> {
        let view = self.view();
        notify(watch, Progress::Network(&view.described(&view.lines(conditioning))))
    }

    /// Measures the denoising loss.
    ///
    /// # Errors
    /// Fails if samples can't be read or do not fit, the network fails, or the caller stopped.
    pub fn loss(&self, runtime: &Runtime, options: &LossOptions, watch: &mut Watch<'_>) -> Result<LossReport, Error> {
        let (view, path) = (self.view(), self.model.path());
        if self.batch == Some(0) {
            return Err(Error::usage("--batch: expected at least 1, found 0"));
        }
        let batch = self.batch(options.count, 32)?;
        if batch == 0 || options.count == 0 || !options.count.is_multiple_of(batch) {
            let text = format!("--count: expected a multiple of the batch size {batch}, found {}", options.count);
            return Err(Error::usage(text).hint("--batch sets the batch size if the network does not fix it"));
        }
        let conditioning = view.conditioning(batch, options.seed)?;
        let mut denoiser = self.denoiser(runtime, batch)?;
        let ranges = Ranges { data: options.data_range, sample: self.sample_range };
        let dims = denoiser.dims().to_vec();
        let name = &view.roles().sample.name;
        let samples = Samples::load(&options.data, (name, &dims), &ranges, options.count, options.seed)?;
        let noise = noise(&dims, options.count, options.seed.wrapping_add(1));
        self.announce(&conditioning, watch)?;
        conditioning.unpaired(&samples).iter().try_for_each(|text| notify(watch, Progress::Warning(text)))?;
        let process = &view.configured().process;
        let of = (&samples, &noise);
        let losses = denoising_losses(
            &mut denoiser,
            process,
            &conditioning,
            of,
            options.timesteps,
            &*self.ranks,
            &mut |done, total| notify(watch, Progress::At { stage: Stage::Losses, done, total }),
        )
        .map_err(|error| error.in_file(path))?;
        Ok(LossReport { source: samples.source, process: process.describe(), losses })
    }

    /// Refuses one image of this many samples if they are not images, or if it would be too large.
    ///
    /// # Errors
    /// Same as [`GeneratedSamples::png`].
    pub fn check_png(&self, count: usize) -> Result<(), Error> {
        let mut shape = self.view().sample_dims(1)?;
        if let Some(first) = shape.first_mut() {
            *first = count;
        }
        crate::diffusion::check_grid(&shape).map_err(|error| error.in_file(self.model.path()))
    }

    /// Generates samples. The variance of `options` is replaced by that of the process.
    ///
    /// # Errors
    /// Fails if options are invalid, the network fails, samples are not finite, or the caller stopped.
    pub fn sample(
        &self,
        runtime: &Runtime,
        options: &SampleOptions,
        watch: &mut Watch<'_>,
    ) -> Result<GeneratedSamples, Error> {
        let (view, path) = (self.view(), self.model.path());
        if options.count == 0 {
            return Err(Error::usage("--count: expected at least 1, found 0"));
        }
        let batch = self.batch(options.count, 16)?;
        if batch == 0 {
            return Err(Error::usage("--batch: expected at least 1, found 0"));
        }
        let conditioning = view.conditioning(batch, options.seed)?;
        let mut denoiser = self.denoiser(runtime, batch)?;
        let configured = view.configured();
        let options = SampleOptions { variance: configured.variance, ..*options };
        self.announce(&conditioning, watch)?;
        let started = Instant::now();
        let process = &configured.process;
        let values = generate(&mut denoiser, process, &conditioning, &options, &*self.ranks, &mut |done, total| {
            notify(watch, Progress::At { stage: Stage::Sampling, done, total })
        })
        .map_err(|error| error.in_file(path))?;
        let seconds = started.elapsed().as_secs_f64();
        if let Some(wrong) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::unmet(format!("the samples contain {wrong}"))
                .in_file(path)
                .hint("check --prediction-type, --schedule and --time-input; some networks take sigma as their timestep input"));
        }
        let given = view.roles().conditioning.iter().filter(|port| conditioning.is_given(&port.name));
        Ok(GeneratedSamples {
            roles: view.roles().summary(),
            process: process.describe(),
            conditioning_given: given.map(|port| port.name.clone()).collect(),
            seconds,
            range: self.sample_range,
            values,
        })
    }
}
