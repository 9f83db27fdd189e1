//! A network that denoises: what its inputs stand for, its loss on clean samples, and samples from it.

mod drawn;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::gradients::threads;
use super::model::{Model, check_sizes};
use super::progress::{Progress, Stage, Watch, tell};
use super::runtime::Runtime;
use crate::array::Array;
use crate::collective::{Alone, Collective, least};
use crate::diffusion::{
    Conditioning, ConfiguredProcess, Denoiser, ProcessOptions, Ranges, RoleNames, Roles, SampleOptions, Samples,
    UsualSizes, denoising_losses, generate, noise,
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
pub use drawn::Drawn;

/// What a denoising network's inputs stand for, how it was trained, and what it is fed.
#[derive(Clone, Debug, Default)]
pub struct NetworkOptions {
    /// The names of inputs and outputs that are known; the others are recognised.
    pub names: RoleNames,
    /// How the network was trained; what is not said follows from the names of its inputs.
    pub process: ProcessOptions,
    /// Samples that are evaluated together.
    pub batch: Option<usize>,
    /// Conditioning: arrays by the names of the network's inputs; sample i takes row i. What is not given is drawn.
    pub inputs: Vec<(String, Array)>,
    /// The sizes at which it is usually run, for symbolic dimensions that neither sizes nor arrays give.
    pub usual_sizes: UsualSizes,
}

/// A model in memory, its graph and what is known of its values.
type Known<'a> = (&'a graph::model::Model, &'a Graph, &'a Facts);

/// What was found out about a denoising network.
#[derive(Clone, Debug)]
pub(super) struct Findings {
    roles: Roles,
    configured: ConfiguredProcess,
    /// The sizes that are given, and those that arrays fix.
    sizes: Sizes,
    inputs: Vec<(String, Array)>,
}

impl Findings {
    /// `sizes` are those that are given, `data` samples whose sizes are taken where none are.
    ///
    /// # Errors
    /// A process that does not fit the network, data that can't be read.
    pub(super) fn new(
        roles: Roles,
        facts: &Facts,
        options: &NetworkOptions,
        sizes: &Sizes,
        data: Option<&Path>,
    ) -> Result<Self, Error> {
        let configured = options.process.configure(&roles)?;
        let sizes = sizes_of(&roles, facts, options, sizes, data)?;
        Ok(Self { roles, configured, sizes, inputs: options.inputs.clone() })
    }
}

/// The sizes that are given, then those that arrays fix, then usual ones, as far as the network takes them.
///
/// # Errors
/// Data that can't be read.
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
        // A configuration that contradicts the weights is of another network.
        if before.is_none() && check_sizes(&sizes, facts, Path::new("")).is_err() {
            sizes.remove(&name);
        }
    }
    Ok(sizes)
}

/// A denoising network with what was found out about it.
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

    /// The shape of a batch of samples.
    pub(super) fn sample_dims(&self, batch: usize) -> Result<Vec<usize>, Error> {
        let sizes = self.roles().sizes(self.known.2, self.sizes(), batch);
        self.roles().sample.dims(&sizes).map_err(|error| error.in_file(self.path()))
    }

    /// The values of the inputs that are neither sample nor time.
    pub(super) fn conditioning(&self, batch: usize, seed: u64) -> Result<Conditioning, Error> {
        let given = Some(self.found.inputs.as_slice());
        Conditioning::new(self.known, self.roles(), given, (self.sizes(), batch), seed)
            .map_err(|error| error.in_file(self.path()))
    }

    /// Bytes of a run with this many samples.
    ///
    /// # Errors
    /// An external file has disappeared.
    pub(super) fn needed(&self, batch: usize) -> Result<u64, Error> {
        let (model, graph, facts) = self.known;
        let sizes = self.roles().sizes(facts, self.sizes(), batch);
        Ok(Footprint::of(model, graph, facts, &sizes)?.run())
    }

    /// Samples of one run that fit into the memory that is free: `wanted`, or where it `may_shrink` a divisor of that.
    ///
    /// # Errors
    /// There is too little memory.
    pub(super) fn fitting(&self, wanted: usize, may_shrink: bool) -> Result<usize, Error> {
        let available = available_memory();
        let (of_one, of_all) = (self.needed(1)?, self.needed(wanted)?);
        // All but the weights grows with the batch.
        let of_each = of_all.saturating_sub(of_one) / wanted.saturating_sub(1).max(1) as u64;
        let needed = |batch: usize| of_one.saturating_add(of_each.saturating_mul(batch as u64 - 1));
        if may_shrink && let Some(batch) = fitting_batch(available, wanted, needed) {
            return Ok(batch);
        }
        let (what, bytes, hint) = match wanted {
            count if count > 1 && !may_shrink => {
                (format!("a run of {count} samples"), of_all, "give a smaller --batch, or smaller sizes with --size")
            }
            _ => ("a run of one sample".to_owned(), of_one, "give smaller sizes with --size"),
        };
        let refused = refuse_beyond(available, bytes, &what);
        refused.map(|()| wanted).map_err(|error| error.in_file(self.path()).hint(hint))
    }

    /// The network in a session, for this many samples at once.
    pub(super) fn denoiser(&self, runtime: &runtime::Runtime, batch: usize) -> Result<Denoiser, Error> {
        self.denoiser_on(runtime, batch, &SessionOptions::default())
    }

    /// The same in a session as `options` say.
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

    /// What was taken for what, one line each.
    pub(super) fn lines(&self, conditioning: &Conditioning) -> Vec<String> {
        self.roles().lines(&self.configured().process, |name| conditioning.is_given(name))
    }

    /// The same with the process.
    pub(super) fn described(&self, lines: &[String]) -> String {
        format!("{}\nprocess:      {}", lines.join("\n"), self.configured().process.describe())
    }
}

/// A network that denoises.
#[derive(Debug)]
pub struct Network {
    model: graph::model::Model,
    graph: Graph,
    facts: Facts,
    batch: Option<usize>,
    sample_range: (f64, f64),
    found: Findings,
    /// The processes that divide the samples.
    ranks: Arc<dyn Collective>,
}

/// On what the denoising loss is measured.
#[derive(Clone, Debug)]
pub struct LossOptions {
    /// Clean samples: a folder of images, or a `.npy`, `.npz` or `.safetensors` file.
    pub data: PathBuf,
    /// The values of the data that stand for the ends of the sample range; see
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
    /// The defaults on these samples.
    pub fn on(data: impl Into<PathBuf>) -> Self {
        Self { data: data.into(), data_range: None, count: 256, timesteps: 25, seed: 0 }
    }
}

/// The denoising loss over timesteps.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LossReport {
    /// Where the samples come from, in words.
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
    /// Recognises what a network's inputs stand for. `sizes` are those of symbolic dimensions, `data` samples whose sizes
    /// are taken where none are given.
    ///
    /// # Errors
    /// An invalid model, a network that does not denoise, a process that does not fit it.
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

    /// The same, whose losses and samples are computed by several ranks: each takes some of the samples, and all get the
    /// result. All call the same methods.
    #[must_use]
    pub fn over(self, ranks: Arc<dyn Collective>) -> Self {
        Self { ranks, ..self }
    }

    pub(super) fn view(&self) -> Denoising<'_> {
        Denoising { known: (&self.model, &self.graph, &self.facts), found: &self.found }
    }

    /// What of the process's configuration has no effect here, in words.
    pub fn notes(&self) -> &[String] {
        &self.found.configured.notes
    }

    /// The samples that are evaluated together: as asked, else as the network fixes them, else at most `most` and no more
    /// than there is memory for.
    ///
    /// # Errors
    /// There is too little memory.
    pub(super) fn batch(&self, count: usize, most: usize) -> Result<usize, Error> {
        let said = self.batch.or_else(|| self.found.roles.fixed_batch());
        let batch = match said.unwrap_or(count.min(most)) {
            0 => 0,
            wanted => self.view().fitting(wanted, said.is_none())?,
        };
        least(&*self.ranks, batch)
    }

    /// The network in a session of this rank.
    fn denoiser(&self, runtime: &Runtime, batch: usize) -> Result<Denoiser, Error> {
        let options = SessionOptions { threads: threads(&*self.ranks), ..SessionOptions::default() };
        self.view().denoiser_on(runtime.0, batch, &options)
    }

    pub(super) fn announce(&self, conditioning: &Conditioning, watch: &mut Watch<'_>) -> Result<(), Error> {
        let view = self.view();
        tell(watch, Progress::Network(&view.described(&view.lines(conditioning))))
    }

    /// Measures the denoising loss.
    ///
    /// # Errors
    /// Samples that can't be read or do not fit, a network that fails; the caller stopped.
    pub fn loss(&self, runtime: &Runtime, options: &LossOptions, watch: &mut Watch<'_>) -> Result<LossReport, Error> {
        let (view, path) = (self.view(), self.model.path());
        let batch = self.batch(options.count, 32)?;
        if batch == 0 || options.count == 0 || !options.count.is_multiple_of(batch) {
            let text = format!("--count: expected a multiple of the batch of {batch}, found {}", options.count);
            return Err(Error::usage(text).hint("--batch sets the batch where the network does not fix it"));
        }
        let conditioning = view.conditioning(batch, options.seed)?;
        let mut denoiser = self.denoiser(runtime, batch)?;
        let ranges = Ranges { data: options.data_range, sample: self.sample_range };
        let dims = denoiser.dims().to_vec();
        let name = &view.roles().sample.name;
        let samples = Samples::load(&options.data, (name, &dims), &ranges, options.count, options.seed)?;
        let noise = noise(&dims, options.count, options.seed.wrapping_add(1));
        self.announce(&conditioning, watch)?;
        conditioning.unpaired(&samples).iter().try_for_each(|text| tell(watch, Progress::Warning(text)))?;
        let process = &view.configured().process;
        let of = (&samples, &noise);
        let losses = denoising_losses(
            &mut denoiser,
            process,
            &conditioning,
            of,
            options.timesteps,
            &*self.ranks,
            &mut |done, total| tell(watch, Progress::At { stage: Stage::Losses, done, total }),
        )
        .map_err(|error| error.in_file(path))?;
        Ok(LossReport { source: samples.source, process: process.describe(), losses })
    }

    /// Refuses to make one image of this many samples where they are none, or it would be too large.
    ///
    /// # Errors
    /// As [`Drawn::png`].
    pub fn check_png(&self, count: usize) -> Result<(), Error> {
        let mut shape = self.view().sample_dims(1)?;
        if let Some(first) = shape.first_mut() {
            *first = count;
        }
        crate::diffusion::check_grid(&shape).map_err(|error| error.in_file(self.model.path()))
    }

    /// Draws samples; of `options`, the variance is that of the process.
    ///
    /// # Errors
    /// Options that make no sense, a network that fails or draws what is not finite; the caller stopped.
    pub fn sample(&self, runtime: &Runtime, options: &SampleOptions, watch: &mut Watch<'_>) -> Result<Drawn, Error> {
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
            tell(watch, Progress::At { stage: Stage::Sampling, done, total })
        })
        .map_err(|error| error.in_file(path))?;
        let seconds = started.elapsed().as_secs_f64();
        if let Some(wrong) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::unmet(format!("the samples contain {wrong}"))
                .in_file(path)
                .hint("check --prediction-type, --schedule and --time-input; the time step of some networks is sigma under another name"));
        }
        let given = view.roles().conditioning.iter().filter(|port| conditioning.is_given(&port.name));
        Ok(Drawn {
            roles: view.roles().summary(),
            process: process.describe(),
            conditioning_given: given.map(|port| port.name.clone()).collect(),
            seconds,
            range: self.sample_range,
            values,
        })
    }
}
