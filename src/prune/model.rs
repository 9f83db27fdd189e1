//! A model and its analysis, as callers of the library hold them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::apply::apply;
use super::choice::score;
use super::cut::{Cut, Scores};
use super::gradients::gradients;
use super::network::{NetworkOptions, sizes_of};
use super::options::ScoreOptions;
use super::output::{self, Task};
use super::progress::{Progress, Stage, Watch, notify, unwatched};
use super::refit::measure;
use super::runtime::{Runtime, needed};
use crate::array::Array;
use crate::diffusion::{Roles, UsualSizes};
use crate::error::Error;
use crate::graph::digest::DigestKind;
use crate::graph::facts::Facts;
use crate::graph::sizes::{Sizes, sizes_for};
use crate::macs::Cost;
use crate::plan::Plan;
use crate::verify::{VerifyOptions, VerifyReport, verify_plan};
use crate::{analysis, graph, inputs, load, write};

/// An ONNX model whose file is memory-mapped, not copied. A clone shares the data.
#[derive(Clone, Debug)]
pub struct Model(pub(super) graph::model::Model);

impl Model {
    /// Reads and checks a model file.
    ///
    /// # Errors
    /// Fails if the file can't be read, is not an ONNX model, or contradicts itself.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        load::load(path.as_ref()).map(Self)
    }

    /// Checks the bytes of a model file. `path` names the file in messages. External data is read from the folder of
    /// this path, and ONNX Runtime loads the file itself.
    ///
    /// # Errors
    /// Fails if the bytes are not an ONNX model, or if it contradicts itself.
    pub fn from_bytes(path: impl AsRef<Path>, bytes: Vec<u8>) -> Result<Self, Error> {
        load::from_bytes(path.as_ref(), bytes.into()).map(Self)
    }

    /// Returns the path that the model was read from.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Returns warnings about deviations of the file from the ONNX format.
    pub fn notes(&self) -> &[String] {
        self.0.notes()
    }

    /// Returns the external data files that the model refers to.
    pub fn external_files(&self) -> Vec<PathBuf> {
        self.0.external_files()
    }

    /// Reads the arrays of a `.npz` file by the names of the model's inputs. Arrays that match no input are refused
    /// before the file is unpacked.
    ///
    /// # Errors
    /// Fails if a name is no input of the model, sizes differ from the input's (except the first, which counts rows),
    /// the arrays don't fit into memory, or the file can't be read.
    pub fn read_inputs(&self, path: &Path) -> Result<Vec<(String, Array)>, Error> {
        inputs::read(&self.0, path)
    }

    /// Returns the bytes of the model file and its external files.
    ///
    /// # Errors
    /// Fails if an external file has disappeared.
    pub fn total_bytes(&self) -> Result<u64, Error> {
        self.0.total_bytes()
    }

    /// Returns the BLAKE3 of the model file followed by its external data files, in hexadecimal, as a plan stores it.
    pub fn digest(&self) -> String {
        self.0.digest(DigestKind::default())
    }

    /// Refuses an output that would replace the model or one of its data files, before any work is done.
    ///
    /// # Errors
    /// Fails in this case, and if the output is a folder or a device.
    pub fn check_output(&self, output: &Path) -> Result<(), Error> {
        write::check_destination(&self.0, output)
    }

    /// Returns the model as a part of a pipeline: an output with the same file name also keeps the name of the data
    /// file.
    #[must_use]
    pub fn keeping_data_name(mut self) -> Self {
        self.0.keeps_data_name = true;
        self
    }

    /// Returns the path of an output's external data: next to the output, with its name and the suffix `.data`, or with
    /// the [name](Self::keeping_data_name) of the model's data file.
    pub fn data_path(&self, output: &Path) -> PathBuf {
        output.with_file_name(write::data_name(&self.0, output))
    }

    /// Refuses a plan that was made for another model; `file` names the plan in messages.
    ///
    /// # Errors
    /// Fails if the digests differ.
    pub fn check_plan(&self, plan: &Plan, file: &Path) -> Result<(), Error> {
        plan.check_input(&self.0, file)
    }

    /// Builds the graph, infers shapes, and finds which channels must be removed together.
    ///
    /// # Errors
    /// Fails if the model contradicts itself.
    pub fn analyse(&self) -> Result<Analysis, Error> {
        analysis::analyse(&self.0).map(|analysis| Analysis(Arc::new(analysis)))
    }
}

/// Refuses sizes for dimensions that the model does not have, which is probably a typing error, and sizes that
/// contradict a weight or each other.
pub(super) fn check_sizes(given: &Sizes, facts: &Facts, path: &Path) -> Result<(), Error> {
    let known = sizes_for(facts, given);
    for (name, size) in given {
        if !known.contains_key(name) {
            let names: Vec<&str> = known.keys().map(String::as_str).filter(|name| !name.starts_with('?')).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(Error::usage(format!("--size: {} has no symbolic dimension {name:?}", path.display()))
                .hint(format!("its symbolic dimensions: {names}")));
        }
        if let Some(fixed) = facts.fixed.get(name).filter(|fixed| fixed.size != *size) {
            let text = format!(
                "--size {name}={size}: node {} of {} only runs at {name}={}",
                fixed.node,
                path.display(),
                fixed.size
            );
            return Err(Error::usage(text).hint("omit this size: it follows from the weights"));
        }
        let tied =
            facts.ties.iter().find(|tie| tie.symbol == *name).and_then(|tie| Some((tie, tie.size.eval(&known)?)));
        if let Some((tie, other)) = tied.filter(|(_, other)| *size != *other && *size != 1 && *other != 1) {
            let text =
                format!("--size {name}={size}: must be equal to {}, which is {other}, in {}", tie.size, path.display());
            return Err(Error::usage(text).hint("set both to the same size, or omit one"));
        }
    }
    check_lengths("--size", given, facts, path)
}

/// Refuses sizes that lead to different lengths where the network requires equal ones. The hint names sizes that work.
pub(super) fn check_lengths(option: &str, given: &Sizes, facts: &Facts, path: &Path) -> Result<(), Error> {
    let Some(found) = facts.contradiction(given) else { return Ok(()) };
    let size = given.get(&found.symbol).copied().unwrap_or_default();
    let (a, b) = found.lengths;
    let text = format!(
        "{option} {}={size}: {} can't run at this size, since lengths {a} and {b} would have to be equal",
        found.symbol,
        path.display()
    );
    let hint = match found.multiple {
        Some(multiple) => {
            let (below, above) = (size / multiple * multiple, (size / multiple + 1) * multiple);
            let near = if below > 0 { format!("{below} and {above}") } else { above.to_string() };
            format!("multiples of {multiple} work, such as {near}")
        }
        None => "use a size that the network was exported for".to_owned(),
    };
    Err(Error::usage(text).hint(hint))
}

/// A model with its graph, shapes and coupling. A clone shares the data.
#[derive(Clone, Debug)]
pub struct Analysis(pub(super) Arc<analysis::Analysis>);

impl Analysis {
    /// Returns the model.
    pub fn model(&self) -> Model {
        Model(self.0.model.clone())
    }

    /// Returns a size for every symbolic dimension: the given ones, and small ones chosen by name.
    ///
    /// # Errors
    /// Fails if a size is for a dimension that the model does not have.
    pub fn sizes(&self, given: &Sizes) -> Result<Sizes, Error> {
        check_sizes(given, &self.0.facts, self.0.model.path())?;
        Ok(sizes_for(&self.0.facts, given))
    }

    /// Returns the given sizes, those that the arrays of `data` and of the conditioning fix, and the usual sizes of a
    /// pipeline. If the pipeline is known, these are the sizes for costs, verification and latency. For a network that
    /// does not denoise, only the last two axes of its single input have usual sizes.
    ///
    /// # Errors
    /// Fails if data can't be read.
    pub fn usual_sizes(&self, network: &NetworkOptions, given: &Sizes, data: Option<&Path>) -> Result<Sizes, Error> {
        let (model, graph, facts) = (&self.0.model, &self.0.graph, &self.0.facts);
        if network.usual_sizes == UsualSizes::default() {
            return Ok(given.clone());
        }
        match (Roles::recognise(model, graph, facts, &network.names), network.usual_sizes.sample) {
            (Ok(roles), _) => sizes_of(&roles, facts, network, given, data),
            (Err(_), Some(edges)) => Ok(output::with_edges(&self.0, given, edges)),
            (Err(_), None) => Ok(given.clone()),
        }
    }

    /// Returns the cost of the network at these sizes of symbolic dimensions, and small sizes for others.
    ///
    /// # Errors
    /// Fails if a size is for a dimension that the model does not have.
    pub fn cost(&self, given: &Sizes) -> Result<Cost, Error> {
        let sizes = self.sizes(given)?;
        Ok(self.0.count(|counter| counter.cost(None, &sizes)))
    }

    /// Refuses arrays that match no input of the model.
    ///
    /// # Errors
    /// Fails if a name is no input of the model.
    pub fn check_inputs(&self, inputs: &[(String, Array)]) -> Result<(), Error> {
        inputs::check_names(&self.0.model, &self.0.graph, inputs)
    }

    /// Refuses a verification that needs too much memory, before any work is done.
    ///
    /// # Errors
    /// Fails in this case. The hint names what to do.
    pub fn check_memory(&self, options: &VerifyOptions) -> Result<(), Error> {
        inputs::affordable_sizes(&self.0, &options.inputs()).map(|_| ())
    }

    /// Returns whether the model computes weights from constants. Scoring and repeating a cut then need ONNX Runtime,
    /// whatever the criterion.
    pub fn computes_weights(&self) -> bool {
        !self.0.fold.is_empty()
    }

    /// Scores all channels. Criteria that only depend on weights need no runtime, unless the model [computes
    /// weights](Self::computes_weights).
    ///
    /// # Errors
    /// Fails if a weight can't be read or nothing can be pruned. The gradient criteria also fail if the network does
    /// not denoise, data does not fit, an operator has no gradient, or memory is too small.
    pub fn score<'r>(&self, options: &ScoreOptions, runtime: impl Into<Option<&'r Runtime>>) -> Result<Scores, Error> {
        self.score_with(options, runtime, &mut unwatched)
    }

    /// Does the same as [`Analysis::score`], with progress.
    ///
    /// # Errors
    /// Same as [`Analysis::score`]; also fails if the caller stopped.
    pub fn score_with<'r>(
        &self,
        options: &ScoreOptions,
        runtime: impl Into<Option<&'r Runtime>>,
        watch: &mut Watch<'_>,
    ) -> Result<Scores, Error> {
        let runtime = runtime.into().copied();
        self.sizes(&options.sizes)?;
        if let Some(cut) = &options.gradients.adaptive {
            cut.check()?;
        }
        self.check_inputs(&options.gradients.network.inputs)?;
        let gradients = match options.criterion.needs_gradients() {
            true => {
                let runtime = needed(runtime, "a gradient criterion")?;
                Some(match &options.task {
                    Task::Denoising => gradients(&self.0, runtime, options, watch)?,
                    Task::Output(samples) => output::gradients(&self.0, runtime, options, samples, watch)?,
                })
            }
            false => None,
        };
        notify(watch, Progress::At { stage: Stage::Scoring, done: 0, total: 1 })?;
        let sums = gradients.as_ref().map(|(sums, report, _)| (sums, report.sample_elements as f64));
        let runtime = runtime.map(|runtime| runtime.0);
        let mut scoring = hashed_beside(&self.0.model, || score(&self.0, options, sums, runtime))?;
        let (report, samples) = gradients.map(|(_, report, samples)| (report, samples)).unzip();
        if options.compares_groups {
            measure(&self.0, &mut scoring, runtime, options, samples, watch)?;
        }
        Ok(Scores::new(self.clone(), options.clone(), scoring, report))
    }

    /// Repeats the cut of a plan exactly; `file` names the plan in messages. ONNX Runtime is needed if the model
    /// [computes weights](Self::computes_weights).
    ///
    /// # Errors
    /// Fails if the plan belongs to another model or contradicts its coupling.
    pub fn repeat<'r>(&self, plan: &Plan, file: &Path, runtime: impl Into<Option<&'r Runtime>>) -> Result<Cut, Error> {
        let (kept, rewritten) = apply(&self.0, plan, file, runtime.into().map(|runtime| runtime.0))?;
        Ok(Cut::repeated(self.clone(), plan.clone(), kept, rewritten))
    }

    /// Compares a pruned file with this model, its original, under a plan; `file` names the plan in messages. A pruned
    /// file that does not run or differs is no error; the report states that it did not pass.
    ///
    /// # Errors
    /// Fails if the plan belongs to another model, the original can't be run with indices masked, or the caller
    /// stopped.
    pub fn verify(
        &self,
        pruned: &Model,
        (plan, file): (&Plan, &Path),
        runtime: &Runtime,
        options: &VerifyOptions,
        watch: &mut Watch<'_>,
    ) -> Result<VerifyReport, Error> {
        self.model().check_plan(plan, file)?;
        self.sizes(&options.sizes)?;
        notify(watch, Progress::At { stage: Stage::Verifying, done: 0, total: 1 })?;
        verify_plan(&self.0, plan, file, &pruned.0, runtime.0, options)
    }
}

/// Computes the digest of the model on a second thread while `work` runs.
fn hashed_beside<T>(model: &graph::model::Model, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        scope.spawn(|| model.digest(DigestKind::default()));
        work()
    })
}
