//! A model that ONNX Runtime has loaded: what goes in, what comes out, and runs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};

use ort::logging::LogLevel;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{NoSelectedOutputs, RunOptions, SessionInputValue};
use ort::value::{DynValueRef, ValueType};

use super::Runtime;
use super::device::Device;
use super::error::{RuntimeError, plain};
use super::execution::{Execution, verdict};
use super::placement::PlacementLog;
use super::probe::minor_version;
use super::provider;
use super::values::{borrow, element_type, to_array};
use crate::array::{Array, ElementType};
use crate::files::TemporaryFile;

/// How far the library may rewrite a graph before it runs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Optimization {
    /// Every node runs as it is written.
    None,
    /// Rewrites that keep the meaning exactly, such as constant folding.
    Basic,
    /// Everything, with fused kernels and layouts for the CPU. This is what applications run.
    #[default]
    All,
}

/// How a session is made.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// The number of threads within an operator; the library decides if there is none given.
    pub threads: Option<usize>,
    /// How far the graph may be rewritten.
    pub optimization: Optimization,
    /// The folder relative to which a model in memory refers to external data.
    ///
    /// Versions of ONNX Runtime that cannot be told get the model by a temporary file in this folder, which is removed
    /// as soon as the session is made; for them the folder must be writable. A model from a file ignores this.
    pub external_data_folder: Option<PathBuf>,
    /// Where the session runs.
    pub device: Device,
    /// Whether the session may run on the CPU, wholly or in part, if the device can't run it; otherwise that is an
    /// error. [`Session::execution`] tells what came of it.
    pub allow_fallback: bool,
    /// Whether [`Session::execution`] tells which provider runs which nodes also for a session on the CPU. It
    /// always does for other devices.
    pub record_placement: bool,
    /// Whether values get their memory when they are computed, instead of places in one block that is planned ahead. The
    /// block is larger than all values at their worst, by a third for a gradient graph.
    pub takes_memory_late: bool,
    /// Whether values on the CPU take their memory from the C library, where that is glibc, instead of from an arena of the
    /// session's own. The arena grows by doubling, keeps its pieces apart, and holds what a session does not need while
    /// others run: of a training step of 32 samples of DDPM's network for CIFAR-10, 4.0 GB in place of 3.25.
    pub has_no_arena: bool,
    /// Whether nodes keep the arithmetic that the file gives them. Otherwise the library turns float operators between
    /// DequantizeLinear and QuantizeLinear into ones of integers, which round activations that the file does not.
    pub keeps_arithmetic: bool,
    /// Whether the model has operators of `src/kernels`. The CPU only.
    pub has_kernels: bool,
    /// Whether no value takes the place of an earlier one that is no longer needed. For a graph of thousands of nodes whose
    /// sizes are symbolic, the search for such places takes a time that grows with the square of their number, and longer
    /// than a run. The library offers no other switch than to run nodes side by side, which one thread does as well.
    pub seeks_no_places: bool,
    /// Whether threads sleep while there is nothing for them to do. Otherwise they spin for some time, which makes the nodes
    /// of a network that runs often a little faster, and costs a third of the CPU's time where sessions run once.
    pub waits_asleep: bool,
    /// Whether the execution provider of a device keeps its own settings, as where a network is deployed: on CUDA, factors
    /// rounded to TensorFloat-32, and convolutions that may take gigabytes beside the network.
    pub as_deployed: bool,
    /// What the name of the file begins with in which the library notes when every node ran and how long; see
    /// [`super::operator_times`].
    pub profile: Option<PathBuf>,
}

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct IoInfo {
    /// Its name in the graph.
    pub name: String,
    /// The type of its elements.
    pub element_type: ElementType,
    /// The sizes of its axes as far as the graph fixes them. A scalar and a tensor of unknown rank both have none.
    pub dims: Vec<Option<i64>>,
    /// For each axis without a fixed size the graph's name for the size, if it has one.
    pub symbols: Vec<Option<String>>,
}

impl IoInfo {
    /// The declared shape as text, for messages: `[batch, 3, ?]`.
    pub(crate) fn shape_text(&self) -> String {
        let axis = |(dim, symbol): (&Option<i64>, &Option<String>)| match (dim, symbol) {
            (Some(size), _) => size.to_string(),
            (None, Some(symbol)) => symbol.clone(),
            (None, None) => "?".to_owned(),
        };
        let axes: Vec<String> = self.dims.iter().zip(&self.symbols).map(axis).collect();
        format!("[{}]", axes.join(", "))
    }
}

/// A loaded model.
pub struct Session {
    /// What does the work.
    pub(super) inner: ort::session::Session,
    /// Keeps runs from writing to the log, whose level belongs to making the session.
    pub(super) run_options: RunOptions<NoSelectedOutputs>,
    /// The inputs in the graph's order.
    inputs: Vec<IoInfo>,
    /// The outputs in the graph's order.
    outputs: Vec<IoInfo>,
    /// Where it runs.
    execution: Execution,
}

/// Inputs of one run that are checked and need no further copying; see [`Session::prepare`].
pub(super) struct Prepared<'a>(Vec<(&'a str, DynValueRef<'a>)>);

impl Session {
    /// The inputs that must be given, in the graph's order.
    pub fn inputs(&self) -> &[IoInfo] {
        &self.inputs
    }

    /// The outputs in the graph's order.
    pub fn outputs(&self) -> &[IoInfo] {
        &self.outputs
    }

    /// Where the session runs, as against what was asked for.
    pub fn execution(&self) -> &Execution {
        &self.execution
    }

    /// Runs the model and returns all outputs in the graph's order.
    ///
    /// Every input must be given once, with the declared element type and, where the graph fixes them, sizes.
    pub fn run(&mut self, inputs: &[(String, Array)]) -> Result<Vec<(String, Array)>, RuntimeError> {
        let prepared = self.prepare(inputs)?;
        let outputs =
            self.inner.run_with_options(prepared.views(), &self.run_options).map_err(|error| failed(&error))?;
        outputs.iter().map(|(name, value)| Ok((name.to_owned(), to_array(name, &value)?))).collect()
    }

    /// Runs the model and shows every output's elements where the library computed them, without a copy.
    ///
    /// # Errors
    /// As [`Session::run`]; also an output that is not float32.
    pub fn run_each(
        &mut self,
        inputs: &[(String, Array)],
        mut each: impl FnMut(&str, &[f32]),
    ) -> Result<(), RuntimeError> {
        let prepared = self.prepare(inputs)?;
        let outputs =
            self.inner.run_with_options(prepared.views(), &self.run_options).map_err(|error| failed(&error))?;
        for (name, value) in outputs.iter() {
            let (_, values) = value
                .try_extract_tensor::<f32>()
                .map_err(|error| RuntimeError::RunFailed { message: format!("output {name:?}: {}", plain(&error)) })?;
            each(name, values);
        }
        Ok(())
    }

    /// Compares an array with the input of this name.
    pub(super) fn check_input(&self, name: &str, array: &Array) -> Result<(), RuntimeError> {
        let declared = self.inputs.iter().find(|input| input.name == name).ok_or_else(|| {
            let inputs = self.inputs.iter().map(|input| format!("{:?}", input.name)).collect();
            RuntimeError::UnknownInput { name: name.to_owned(), inputs }
        })?;
        check(declared, array)
    }

    /// Checks the inputs of a run and wraps them.
    pub(super) fn prepare<'a>(&self, inputs: &'a [(String, Array)]) -> Result<Prepared<'a>, RuntimeError> {
        let mut values = Vec::with_capacity(inputs.len());
        for (name, array) in inputs {
            self.check_input(name, array)?;
            values.push((name.as_str(), borrow(name, array)?));
        }
        match self.inputs.iter().find(|declared| inputs.iter().all(|(name, _)| *name != declared.name)) {
            Some(missing) => Err(RuntimeError::MissingInput { name: missing.name.clone() }),
            None => Ok(Prepared(values)),
        }
    }

    /// Runs the model and drops the outputs.
    pub(super) fn run_prepared(&mut self, prepared: &Prepared<'_>) -> Result<(), RuntimeError> {
        self.inner.run_with_options(prepared.views(), &self.run_options).map(|_| ()).map_err(|error| failed(&error))
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("inputs", &self.inputs)
            .field("outputs", &self.outputs)
            .field("execution", &self.execution)
            .finish_non_exhaustive()
    }
}

impl Prepared<'_> {
    /// The inputs as `ort` takes them for one run.
    fn views(&self) -> Vec<(&str, SessionInputValue<'_>)> {
        self.0.iter().map(|(name, value)| (*name, SessionInputValue::View(value.view()))).collect()
    }
}

/// Compares an array with what the model declares. The library would find the same, but in words that do not say which
/// kind of mistake it is.
fn check(declared: &IoInfo, array: &Array) -> Result<(), RuntimeError> {
    let name = declared.name.clone();
    if array.element_type() != declared.element_type {
        return Err(RuntimeError::InputType { name, expected: declared.element_type, found: array.element_type() });
    }
    let agrees = |(&dim, &size): (&Option<i64>, &usize)| dim.is_none_or(|dim| usize::try_from(dim) == Ok(size));
    // No declared dimensions may also mean that the rank is unknown.
    let fits = declared.dims.is_empty()
        || declared.dims.len() == array.dims.len() && declared.dims.iter().zip(&array.dims).all(agrees);
    match fits {
        true => Ok(()),
        false => Err(RuntimeError::InputShape { name, expected: declared.shape_text(), found: array.dims.clone() }),
    }
}

/// The first version that can be told where the external data of a model in memory is. Earlier ones have the option,
/// but 1.19 fails in its optimizers, which look for the data beside the model's own path.
const FOLDER_OPTION_SINCE: u32 = 22;

/// Makes a session from a model in memory.
pub(super) fn from_bytes(runtime: &Runtime, model: &[u8], options: &SessionOptions) -> Result<Session, RuntimeError> {
    on_device(runtime, options, |mut builder| {
        let Some(folder) = &options.external_data_folder else { return commit(builder.commit_from_memory(model)) };
        if minor_version(&runtime.version).is_none_or(|minor| minor < FOLDER_OPTION_SINCE) {
            return from_file_beside(builder, folder, model);
        }
        let folder =
            std::path::absolute(folder).map_err(|source| RuntimeError::Folder { folder: folder.clone(), source })?;
        let Some(text) = folder.to_str() else {
            return from_file_beside(builder, &folder, model);
        };
        let mut builder = builder
            .with_config_entry("session.model_external_initializers_file_folder_path", text)
            .map_err(|error| rejected(&error))?;
        commit(builder.commit_from_memory(model))
    })
}

/// Makes a session from a model file.
pub(super) fn from_file(runtime: &Runtime, path: &Path, options: &SessionOptions) -> Result<Session, RuntimeError> {
    on_device(runtime, options, |mut builder| commit(builder.commit_from_file(path)))
}

/// Makes a session from a model in memory by way of a file in `folder` that does not outlive the call.
fn from_file_beside(
    mut builder: SessionBuilder,
    folder: &Path,
    model: &[u8],
) -> Result<ort::session::Session, RuntimeError> {
    let refused = |source| RuntimeError::Folder { folder: folder.to_owned(), source };
    let file = TemporaryFile::inside(folder, |file| file.write_all(model)).map_err(refused)?;
    commit(builder.commit_from_file(file.path()))
}

/// Whether ONNX Runtime has made a session with the operators of `src/kernels` in this process.
static KNOWS_KERNELS: Mutex<bool> = Mutex::new(false);

/// Makes a session on the device that is asked for, or if that fails and is allowed to, on the CPU.
fn on_device(
    runtime: &Runtime,
    options: &SessionOptions,
    load: impl Fn(SessionBuilder) -> Result<ort::session::Session, RuntimeError>,
) -> Result<Session, RuntimeError> {
    // ONNX Runtime looks whether it knows the domain of our operators and adds it in two steps, once in a process, so that
    // two threads must not do it at once.
    let mut is_known = options.has_kernels.then(|| KNOWS_KERNELS.lock().unwrap_or_else(PoisonError::into_inner));
    if is_known.as_ref().is_some_and(|is_known| **is_known) {
        is_known = None;
    }
    let made = on_any_device(runtime, options, load);
    if let (Some(is_known), Ok(_)) = (&mut is_known, &made) {
        **is_known = true;
    }
    made
}

fn on_any_device(
    runtime: &Runtime,
    options: &SessionOptions,
    load: impl Fn(SessionBuilder) -> Result<ort::session::Session, RuntimeError>,
) -> Result<Session, RuntimeError> {
    match on(runtime, options, options.device, &load) {
        Err(error) if options.device != Device::Cpu && options.allow_fallback => {
            let mut session = on(runtime, options, Device::Cpu, &load)?;
            session.execution.requested = options.device;
            session.execution.reason = Some(error.to_string());
            Ok(session)
        }
        result => result,
    }
}

/// Makes a session on one device.
fn on(
    runtime: &Runtime,
    options: &SessionOptions,
    device: Device,
    load: impl Fn(SessionBuilder) -> Result<ort::session::Session, RuntimeError>,
) -> Result<Session, RuntimeError> {
    let mut builder = builder(runtime, options).map_err(|error| rejected(&error))?;
    let log = (device != Device::Cpu || options.record_placement).then(PlacementLog::listening);
    if let Some(log) = log.clone() {
        let logger = Arc::new(move |_: LogLevel, _: &str, _: &str, _: &str, message: &str| log.read(message));
        builder = builder.with_logger(logger).map_err(|error| rejected(&error))?;
        builder = builder.with_log_level(LogLevel::Verbose).map_err(|error| rejected(&error))?;
    }
    if device != Device::Cpu {
        provider::prepare(&runtime.library, device)?;
        builder = provider::register(builder, &runtime.version, device, options.as_deployed)?;
    }
    let inner = load(builder).map_err(|error| match error {
        RuntimeError::ModelRejected { message } if device != Device::Cpu => {
            RuntimeError::ModelRejected { message: format!("on device {device}: {message}") }
        }
        other => other,
    })?;
    let placement = log.and_then(|log| log.finish());
    if !options.allow_fallback {
        verdict(device, placement.as_ref())?;
    }
    let inputs =
        inner.inputs().iter().map(|outlet| describe(outlet.name(), outlet.dtype())).collect::<Result<_, _>>()?;
    let outputs =
        inner.outputs().iter().map(|outlet| describe(outlet.name(), outlet.dtype())).collect::<Result<_, _>>()?;
    let mut run_options = RunOptions::new().map_err(|error| rejected(&error))?;
    run_options.set_log_level(LogLevel::Fatal).map_err(|error| rejected(&error))?;
    let execution = Execution { requested: device, used: device, reason: None, placement };
    Ok(Session { inner, run_options, inputs, outputs, execution })
}

/// The settings that all sessions share, and those of `options`.
pub(super) fn builder(runtime: &Runtime, options: &SessionOptions) -> ort::Result<SessionBuilder> {
    let level = match options.optimization {
        Optimization::None => GraphOptimizationLevel::Disable,
        Optimization::Basic => GraphOptimizationLevel::Level1,
        Optimization::All => GraphOptimizationLevel::All,
    };
    let mut builder = ort::session::Session::builder(&runtime.environment)?
        .with_optimization_level(level)?
        .with_log_level(LogLevel::Fatal)?
        // Threads of a session that has nothing to do would otherwise keep spinning for a while and slow down the
        // session that is measured next.
        .with_config_entry("session.force_spinning_stop", "1")?;
    if let Some(threads) = options.threads {
        builder = builder.with_intra_threads(threads)?;
    }
    if options.seeks_no_places {
        builder = builder
            .with_parallel_execution(true)?
            .with_inter_threads(2)?
            .with_config_entry("session.inter_op.allow_spinning", "0")?;
    }
    if options.waits_asleep {
        builder = builder.with_config_entry("session.intra_op.allow_spinning", "0")?;
    }
    if options.takes_memory_late {
        builder = builder.with_memory_pattern(false)?;
    }
    if options.has_no_arena && super::keep_free_memory() {
        builder = builder.with_execution_providers([ort::ep::CPU::default().with_arena_allocator(false).build()])?;
    }
    if options.keeps_arithmetic {
        builder = builder.with_config_entry("session.disable_quant_qdq", "1")?;
    }
    if let Some(prefix) = &options.profile {
        builder = builder.with_profiling(prefix)?;
    }
    if options.has_kernels {
        builder = builder.with_operators(crate::kernels::domain()?)?;
    }
    Ok(builder)
}

/// What the library made of a model.
fn commit(made: ort::Result<ort::session::Session>) -> Result<ort::session::Session, RuntimeError> {
    made.map_err(|error| rejected(&error))
}

/// The description of an input or output.
fn describe(name: &str, declared: &ValueType) -> Result<IoInfo, RuntimeError> {
    let unsupported = || RuntimeError::UnsupportedType { name: name.to_owned(), found: declared.to_string() };
    let ValueType::Tensor { ty, shape, dimension_symbols } = declared else {
        return Err(unsupported());
    };
    let element_type = element_type(*ty).ok_or_else(unsupported)?;
    // The library reports -1 for a size that the graph does not fix.
    let dims: Vec<Option<i64>> = shape.iter().map(|&dim| (dim >= 0).then_some(dim)).collect();
    let symbols = dims
        .iter()
        .zip(dimension_symbols.iter())
        .map(|(dim, symbol)| (dim.is_none() && !symbol.is_empty()).then(|| symbol.clone()))
        .collect();
    Ok(IoInfo { name: name.to_owned(), element_type, dims, symbols })
}

/// The error for a model that does not load.
pub(super) fn rejected<R>(error: &ort::Error<R>) -> RuntimeError {
    RuntimeError::ModelRejected { message: plain(error) }
}

/// The error for a run that does not succeed.
pub(super) fn failed<R>(error: &ort::Error<R>) -> RuntimeError {
    RuntimeError::RunFailed { message: plain(error) }
}
