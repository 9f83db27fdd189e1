//! Compares the latency of networks at the sizes they are deployed at, in total and by operator.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use super::model::{Model, check_sizes};
use super::progress::{Progress, Stage, Watch, notify};
use super::runtime::Runtime;
use crate::array::Array;
use crate::diffusion::{RoleNames, Roles, UsualSizes};
use crate::error::Error;
use crate::graph::dim::Dim;
use crate::graph::facts::Facts;
use crate::graph::sizes::{Sizes, has_telling_name, sizes_for};
use crate::graph::{Graph, ValueId};
use crate::infer::infer;
use crate::inputs::random_input;
use crate::runtime::{
    Device, Latency, OperatorTime, RuntimeError, Session, SessionOptions, interleaved_latency, operator_times, peak_of,
};
use crate::{graph, lower, ops};

/// Number of warm-up runs before the measurement.
const WARMUP: usize = 5;

/// Maximum number of runs for the times by operator, which are medians.
const PROFILED: usize = 20;

/// How networks are timed.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Sizes of symbolic dimensions, by name. A network need not have all of them.
    pub sizes: Sizes,
    /// The usual sizes of the networks, for symbolic dimensions that `sizes` does not have.
    pub usual_sizes: UsualSizes,
    /// Batch sizes to measure in turn. If empty, the batch size of `sizes`, or one.
    pub batches: Vec<i64>,
    /// Number of rounds. In each, every network runs once.
    pub runs: usize,
    /// For each batch size, the time in seconds after which no further round begins.
    pub seconds: f64,
    /// The device that the networks run on.
    pub device: Device,
    /// Whether operators that the device can't run may run on the CPU.
    pub allow_fallback: bool,
    /// Number of threads within an operator. `None`: ONNX Runtime decides.
    pub threads: Option<usize>,
    /// Seed of the random inputs.
    pub seed: u64,
    /// Whether to measure times by operator, in separate runs.
    pub by_operator: bool,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            sizes: Sizes::new(),
            usual_sizes: UsualSizes::default(),
            batches: Vec::new(),
            runs: 50,
            seconds: 60.0,
            device: Device::default(),
            allow_fallback: false,
            threads: None,
            seed: 0,
            by_operator: true,
        }
    }
}

/// The measured times of networks.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BenchReport {
    /// The networks, in the order of all lists below.
    pub networks: Vec<PathBuf>,
    /// The execution provider and threads of the first network, in words.
    pub execution: String,
    /// The measurements at each batch size.
    pub points: Vec<BenchPoint>,
    /// Symbolic dimensions whose sizes are neither given nor determined by others, with the sizes that were used.
    pub assumed: Sizes,
}

/// The measurements at one batch size.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BenchPoint {
    /// The batch size. `None`: none was requested.
    pub batch: Option<i64>,
    /// The inputs of the first network with their shapes.
    pub inputs: Vec<(String, Vec<usize>)>,
    /// The networks.
    pub networks: Vec<BenchNetwork>,
}

/// The measurements of one network.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BenchNetwork {
    /// The latency, measured in turn with the other networks.
    pub latency: Latency,
    /// Peak CPU memory in bytes for loading and running the network, beyond what the process held before. `None`: the
    /// system does not report it.
    pub peak_memory: Option<u64>,
    /// Time by operator, the longest first. Empty if not requested.
    pub operators: Vec<OperatorTime>,
}

/// A network to time.
struct Candidate {
    model: graph::model::Model,
    graph: Graph,
    facts: Facts,
}

impl Candidate {
    fn new(model: &Model) -> Result<Self, Error> {
        let model = model.0.clone();
        let graph = Graph::new(&model)?;
        let facts = infer(&model, &graph, &ops::parse(&graph))?;
        Ok(Self { model, graph, facts })
    }

    fn shape(&self, input: ValueId) -> Option<&Vec<Dim>> {
        self.facts.values[input].as_ref()?.shape.as_ref()
    }

    /// Returns the symbols of first axes whose names do not suggest another meaning than the batch.
    fn batch_symbols(&self) -> BTreeSet<String> {
        let first = |input: &ValueId| self.shape(*input)?.first()?.as_symbol();
        self.graph.inputs.iter().filter_map(first).filter(|symbol| !has_telling_name(symbol)).collect()
    }

    /// Returns those of the given sizes that this network has, with this batch size.
    ///
    /// # Errors
    /// Fails if the network fixes another batch size, or if sizes contradict a weight or each other.
    fn given(&self, given: &Sizes, usual: &UsualSizes, batch: Option<i64>) -> Result<Sizes, Error> {
        let known = sizes_for(&self.facts, &Sizes::new());
        let mut own: Sizes = given.clone();
        own.retain(|name, _| known.contains_key(name));
        if let Some(batch) = batch {
            let symbols = self.batch_symbols();
            let fixed = self.graph.inputs.iter().filter_map(|input| self.shape(*input)?.first()?.as_const()).max();
            if symbols.is_empty() && fixed != Some(batch) {
                let found =
                    fixed.map_or("has no batch axis".to_owned(), |fixed| format!("fixes a batch size of {fixed}"));
                return Err(Error::usage(format!("--batch {batch}: the network {found}"))
                    .in_file(self.model.path())
                    .hint("leave --batch out, or export the network with a symbolic batch size"));
            }
            own.extend(symbols.into_iter().map(|symbol| (symbol, batch)));
        }
        check_sizes(&own, &self.facts, self.model.path())?;
        // The usual sizes contradict the weights if they belong to another network.
        let roles = Roles::recognise(&self.model, &self.graph, &self.facts, &RoleNames::default());
        let usual = roles.map(|roles| roles.with_usual_sizes(own.clone(), usual)).unwrap_or_else(|_| own.clone());
        Ok(if check_sizes(&usual, &self.facts, self.model.path()).is_ok() { usual } else { own })
    }

    fn inputs(&self, given: &Sizes, seed: u64) -> Result<Vec<(String, Array)>, Error> {
        let sizes = sizes_for(&self.facts, given);
        let known = (&self.model, &self.graph, &self.facts);
        let draw = |input: &ValueId| {
            let name = &self.graph.values[*input].name;
            let unknown = || Error::invalid(self.model.path(), format!("graph input {name:?} declares no shape"));
            let dims = self.shape(*input).ok_or_else(unknown)?.iter();
            let dims: Option<Vec<usize>> = dims.map(|dim| usize::try_from(dim.eval(&sizes)?).ok()).collect();
            Ok((name.clone(), random_input(known, name, &dims.ok_or_else(unknown)?, seed)?))
        };
        self.graph.inputs.iter().map(draw).collect()
    }

    /// Returns the symbolic sizes of inputs that are not given.
    fn assumed(&self, given: &Sizes) -> Sizes {
        let mut names = BTreeSet::new();
        let shapes = self.graph.inputs.iter().filter_map(|input| self.shape(*input)).flatten();
        shapes.for_each(|dim| dim.symbols(&mut names));
        let follows = |name: &String| {
            self.facts.fixed.contains_key(name) || self.facts.ties.iter().any(|tie| tie.symbol == *name)
        };
        let mut sizes = sizes_for(&self.facts, given);
        sizes.retain(|name, _| names.contains(name) && !given.contains_key(name) && !follows(name));
        sizes
    }
}

/// Measures the latency of networks in turn.
///
/// # Errors
/// Fails if there is no network, if no network has a given size or one contradicts it, if a network does not run, or if
/// the caller stopped.
pub fn bench(
    networks: &[Model],
    runtime: &Runtime,
    options: &BenchOptions,
    watch: &mut Watch<'_>,
) -> Result<BenchReport, Error> {
    let candidates: Vec<Candidate> = networks.iter().map(Candidate::new).collect::<Result<_, _>>()?;
    let first = candidates.first().ok_or_else(|| Error::usage("no network given: name at least one ONNX file"))?;
    for (name, size) in &options.sizes {
        if !candidates.iter().any(|one| sizes_for(&one.facts, &Sizes::new()).contains_key(name)) {
            check_sizes(&Sizes::from([(name.clone(), *size)]), &first.facts, first.model.path())?;
        }
    }
    if options.runs == 0 {
        return Err(Error::usage("--runs: expected at least 1, found 0"));
    }
    let batches = match options.batches.is_empty() {
        true => vec![None],
        false => options.batches.iter().copied().map(Some).collect(),
    };
    let sessions = SessionOptions {
        device: options.device,
        allow_fallback: options.allow_fallback,
        threads: options.threads,
        record_placement: true,
        as_deployed: true,
        ..SessionOptions::default()
    };
    let bench = Bench { runtime, sessions: &sessions, options, candidates: &candidates };
    let (mut points, mut execution) = (Vec::new(), String::new());
    for (at, batch) in batches.iter().enumerate() {
        notify(watch, Progress::At { stage: Stage::Timing, done: at, total: batches.len() })?;
        let (point, of_first) = bench.point(*batch)?;
        points.push(point);
        execution = of_first;
    }
    // A batch size that is not given is one. This needs no mention.
    let mut assumed =
        first.assumed(&first.given(&options.sizes, &options.usual_sizes, batches.first().copied().flatten())?);
    assumed.retain(|name, _| !first.batch_symbols().contains(name));
    let networks = networks.iter().map(|model| model.path().to_owned()).collect();
    Ok(BenchReport { networks, execution, points, assumed })
}

/// Everything that is the same for all batch sizes.
struct Bench<'a> {
    runtime: &'a Runtime,
    sessions: &'a SessionOptions,
    options: &'a BenchOptions,
    candidates: &'a [Candidate],
}

impl Bench<'_> {
    /// Measures at one batch size. Also returns where the first network ran.
    fn point(&self, batch: Option<i64>) -> Result<(BenchPoint, String), Error> {
        let options = self.options;
        let inputs: Vec<Vec<(String, Array)>> = self
            .candidates
            .iter()
            .map(|candidate| {
                candidate.inputs(&candidate.given(&options.sizes, &options.usual_sizes, batch)?, options.seed)
            })
            .collect::<Result<_, _>>()?;
        // Loading ONNX Runtime's libraries for the first time must not count towards the first network.
        if let Some(first) = self.candidates.first() {
            drop(self.open(first, self.sessions)?);
        }
        let mut peaks = Vec::new();
        for (candidate, inputs) in self.candidates.iter().zip(&inputs) {
            let fail = |error: RuntimeError| Error::unmet(error.to_string()).in_file(candidate.model.path());
            let (done, peak) = peak_of(|| -> Result<(), Error> {
                let mut session = self.open(candidate, self.sessions)?;
                // The second run reuses memory that the first one allocated.
                (0..2).try_for_each(|_| session.run(inputs).map(drop)).map_err(fail)
            });
            done?;
            peaks.push(peak);
        }
        let mut sessions: Vec<Session> =
            self.candidates.iter().map(|candidate| self.open(candidate, self.sessions)).collect::<Result<_, _>>()?;
        let execution = sessions.first().map(|session| session.execution().to_string()).unwrap_or_default();
        let mut all: Vec<&mut Session> = sessions.iter_mut().collect();
        let given: Vec<&[(String, Array)]> = inputs.iter().map(Vec::as_slice).collect();
        let fail = |error: RuntimeError| Error::unmet(error.to_string()).caused_by(error);
        let latencies = interleaved_latency(&mut all, &given, options.runs, WARMUP, options.seconds).map_err(fail)?;
        drop(sessions);
        let mut networks = Vec::new();
        for (((candidate, inputs), latency), peak_memory) in
            self.candidates.iter().zip(&inputs).zip(latencies).zip(peaks)
        {
            let operators = match options.by_operator {
                true => {
                    let runs = options.runs.min(PROFILED);
                    operator_times(self.sessions, |options| self.open(candidate, options), inputs, (WARMUP, runs))?
                }
                false => Vec::new(),
            };
            networks.push(BenchNetwork { latency, peak_memory, operators });
        }
        let of_first = inputs.into_iter().next().unwrap_or_default();
        let inputs = of_first.into_iter().map(|(name, array)| (name, array.dims)).collect();
        Ok((BenchPoint { batch, inputs, networks }, execution))
    }

    fn open(&self, candidate: &Candidate, options: &SessionOptions) -> Result<Session, Error> {
        lower::session(self.runtime.0, &candidate.model, options)
    }
}
