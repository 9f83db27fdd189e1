//! A model that ONNX Runtime has loaded: its inputs, its outputs, and its runs.

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

/// How much the library may optimise a graph before it runs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Optimization {
    /// Every node runs as it is written.
    None,
    /// Optimisations that preserve the results exactly, such as constant folding.
    Basic,
    /// All optimisations, with fused kernels and layouts for the CPU. Applications run models like this.
    #[default]
    All,
}

/// The settings of a session.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Number of threads within an operator. `None`: the library decides.
    pub threads: Option<usize>,
    /// How much the graph may be optimised.
    pub optimization: Optimization,
    /// The folder of the external data of a model in memory. `None`: it has none.
    ///
    /// Versions of ONNX Runtime without an option for this load the model from a temporary file in this folder, which must
    /// then be writable. The file is removed as soon as the session is created. Models from files ignore this.
    pub external_data_folder: Option<PathBuf>,
    /// The device on which the session runs.
    pub device: Device,
    /// Whether the session may run on the CPU, entirely or in part, if the device can't run it. Otherwise that is an
    /// error. [`Session::execution`] reports where it runs.
    pub allow_fallback: bool,
    /// Whether [`Session::execution`] reports which provider runs which nodes also for a session on the CPU. It always does
    /// for other devices.
    pub record_placement: bool,
    /// Whether values get their memory when they are computed, instead of in one block that is planned before. The block
    /// is larger than the peak of all values, by a third for a gradient graph.
    pub no_memory_pattern: bool,
    /// Whether values on the CPU take their memory from the C library, if that is glibc, instead of from an arena of the
    /// session. The arena grows by doubling, can't merge its parts, and keeps memory that the session does not need while
    /// others run. For a training step of 32 samples of DDPM's network for CIFAR-10, it takes 4.0 GB instead of 3.25.
    pub no_arena: bool,
    /// Whether nodes keep the arithmetic of the file. Otherwise the library converts float operators between
    /// DequantizeLinear and QuantizeLinear to integer operators, which round activations that the file does not round.
    pub no_qdq_fusion: bool,
    /// Whether the model has operators of `src/kernels`. They only run on the CPU.
    pub has_kernels: bool,
    /// Whether no value reuses the memory of an earlier one that is no longer needed. For a graph of thousands of nodes
    /// with symbolic sizes, the search for such memory takes a time quadratic in their number, and longer than a run. The
    /// only option of the library that disables it is parallel execution of nodes, which also works with one thread.
    pub no_memory_reuse: bool,
    /// Whether threads sleep while they have nothing to do. Otherwise they spin for some time. Spinning makes the nodes
    /// of a network that runs often a little faster, but costs a third of the CPU's time if sessions run once.
    pub no_spinning: bool,
    /// Whether the execution provider of a device keeps its default settings, as in a deployed network. On CUDA, factors
    /// are then rounded to TensorFloat-32, and convolutions may take gigabytes besides the network.
    pub as_deployed: bool,
    /// The prefix of the path of the file to which the library writes when every node ran and how long; see
    /// [`super::operator_times`]. `None`: no profile is written.
    pub profile: Option<PathBuf>,
}

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct IoInfo {
    /// Its name in the graph.
    pub name: String,
    /// The type of its elements.
    pub element_type: ElementType,
    /// The sizes of its axes. `None`: the graph does not fix the size. A scalar and a tensor of unknown rank have no axes.
    pub dims: Vec<Option<i64>>,
    /// For each axis without a fixed size, the graph's name for the size. `None`: it has no name.
    pub symbols: Vec<Option<String>>,
}

impl IoInfo {
    /// Returns the declared shape as text, for messages: `[batch, 3, ?]`.
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
    /// The session of the library.
    pub(super) inner: ort::session::Session,
    /// Options that keep runs from writing to the log, whose level is set for creating the session.
    pub(super) run_options: RunOptions<NoSelectedOutputs>,
    /// The inputs in the graph's order.
    inputs: Vec<IoInfo>,
    /// The outputs in the graph's order.
    outputs: Vec<IoInfo>,
    /// The device and the providers that it uses.
    execution: Execution,
}

/// Checked inputs of one run that need no further copies; see [`Session::prepare`].
pub(super) struct Prepared<'a>(Vec<(&'a str, DynValueRef<'a>)>);

impl Session {
    /// Returns the inputs of the model, in the graph's order.
    pub fn inputs(&self) -> &[IoInfo] {
        &self.inputs
    }

    /// Returns the outputs of the model, in the graph's order.
    pub fn outputs(&self) -> &[IoInfo] {
        &self.outputs
    }

    /// Returns the device and providers that the session uses, compared with the requested device.
    pub fn execution(&self) -> &Execution {
        &self.execution
    }

    /// Runs the model and returns all outputs in the graph's order.
    ///
    /// Every input must be given once, with the declared element type and with the sizes that the graph fixes.
    pub fn run(&mut self, inputs: &[(String, Array)]) -> Result<Vec<(String, Array)>, RuntimeError> {
        let prepared = self.prepare(inputs)?;
        let outputs =
            self.inner.run_with_options(prepared.views(), &self.run_options).map_err(|error| failed(&error))?;
        outputs.iter().map(|(name, value)| Ok((name.to_owned(), to_array(name, &value)?))).collect()
    }

    /// Runs the model and passes every output's elements to `each` without a copy.
    ///
    /// # Errors
    /// As [`Session::run`]; also an output is not float32.
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

    /// Checks an array for the input of this name.
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
    /// Returns the inputs in the form that `ort` takes for one run.
    fn views(&self) -> Vec<(&str, SessionInputValue<'_>)> {
        self.0.iter().map(|(name, value)| (*name, SessionInputValue::View(value.view()))).collect()
    }
}

/// Compares an array with the declaration of the model. The library would find the same error, but its message does not
/// state the kind of mistake.
fn check(declared: &IoInfo, array: &Array) -> Result<(), RuntimeError> {
    let name = declared.name.clone();
    if array.element_type() != declared.element_type {
        return Err(RuntimeError::InputType { name, expected: declared.element_type, found: array.element_type() });
    }
    let agrees = |(&dim, &size): (&Option<i64>, &usize)| dim.is_none_or(|dim| usize::try_from(dim) == Ok(size));
    // An unknown rank is also reported as no declared dimensions.
    let fits = declared.dims.is_empty()
        || declared.dims.len() == array.dims.len() && declared.dims.iter().zip(&array.dims).all(agrees);
    match fits {
        true => Ok(()),
        false => Err(RuntimeError::InputShape { name, expected: declared.shape_text(), found: array.dims.clone() }),
    }
}

/// The first minor version with an option for the folder of the external data of a model in memory. Earlier ones have the
/// option, but 1.19 fails in its optimizers, which search for the data beside the model's own path.
const FOLDER_OPTION_SINCE: u32 = 22;

/// Creates a session from a model in memory.
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

/// Creates a session from a model file.
pub(super) fn from_file(runtime: &Runtime, path: &Path, options: &SessionOptions) -> Result<Session, RuntimeError> {
    on_device(runtime, options, |mut builder| commit(builder.commit_from_file(path)))
}

/// Creates a session from a model in memory through a temporary file in `folder`.
fn from_file_beside(
    mut builder: SessionBuilder,
    folder: &Path,
    model: &[u8],
) -> Result<ort::session::Session, RuntimeError> {
    let refused = |source| RuntimeError::Folder { folder: folder.to_owned(), source };
    let file = TemporaryFile::inside(folder, |file| file.write_all(model)).map_err(refused)?;
    commit(builder.commit_from_file(file.path()))
}

/// Whether a session with the operators of `src/kernels` has been created in this process.
static KNOWS_KERNELS: Mutex<bool> = Mutex::new(false);

/// Creates a session on the requested device. If that fails and fallback is allowed, creates it on the CPU.
fn on_device(
    runtime: &Runtime,
    options: &SessionOptions,
    load: impl Fn(SessionBuilder) -> Result<ort::session::Session, RuntimeError>,
) -> Result<Session, RuntimeError> {
    // ONNX Runtime checks whether it knows the domain of our operators and adds it in two steps, once per process.
    // Two threads must not do that at the same time.
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

/// Creates a session on one device.
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

/// Returns a session builder with the settings common to all sessions, and those of `options`.
pub(super) fn builder(runtime: &Runtime, options: &SessionOptions) -> ort::Result<SessionBuilder> {
    let level = match options.optimization {
        Optimization::None => GraphOptimizationLevel::Disable,
        Optimization::Basic => GraphOptimizationLevel::Level1,
        Optimization::All => GraphOptimizationLevel::All,
    };
    let mut builder = ort::session::Session::builder(&runtime.environment)?
        .with_optimization_level(level)?
        .with_log_level(LogLevel::Fatal)?
        // Threads of an idle session would otherwise spin for a while and slow down the session that is measured
        // next.
        .with_config_entry("session.force_spinning_stop", "1")?;
    if let Some(threads) = options.threads {
        builder = builder.with_intra_threads(threads)?;
    }
    if options.no_memory_reuse {
        builder = builder
            .with_parallel_execution(true)?
            .with_inter_threads(2)?
            .with_config_entry("session.inter_op.allow_spinning", "0")?;
    }
    if options.no_spinning {
        builder = builder.with_config_entry("session.intra_op.allow_spinning", "0")?;
    }
    if options.no_memory_pattern {
        builder = builder.with_memory_pattern(false)?;
    }
    if options.no_arena && super::keep_free_memory() {
        builder = builder.with_execution_providers([ort::ep::CPU::default().with_arena_allocator(false).build()])?;
    }
    if options.no_qdq_fusion {
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

/// Converts the library's result of creating a session.
fn commit(made: ort::Result<ort::session::Session>) -> Result<ort::session::Session, RuntimeError> {
    made.map_err(|error| rejected(&error))
}

/// Returns the description of an input or output.
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

/// Returns the error for a model that does not load.
pub(super) fn rejected<R>(error: &ort::Error<R>) -> RuntimeError {
    RuntimeError::ModelRejected { message: plain(error) }
}

/// Returns the error for a run that fails.
pub(super) fn failed<R>(error: &ort::Error<R>) -> RuntimeError {
    RuntimeError::RunFailed { message: plain(error) }
}
