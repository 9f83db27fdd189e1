//! Execution providers: checking whether one can be used, and registering it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::ep::{ArbitrarilyConfigurableExecutionProvider, CUDA, ExecutionProviderDispatch, TensorRT};
use ort::session::builder::SessionBuilder;

use super::device::{CPU_PROVIDER, CUDA_PROVIDER, Device, TENSORRT_PROVIDER};
use super::error::{RuntimeError, plain};
use super::preload::preload_needs_of;
use super::probe::{available_providers, minor_version};
use super::search_paths::cuda_folders;

/// The first minor version whose CUDA provider has the option `use_tf32`.
const TF32_OPTION_SINCE: u32 = 18;

/// Options that the user sets for the provider of the device, by their names in ONNX Runtime.
static GIVEN: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// The results of preparing providers, by name: the libraries loaded for one, or the reason why it can't be used.
static PREPARED: Mutex<BTreeMap<&'static str, Result<Vec<PathBuf>, String>>> = Mutex::new(BTreeMap::new());

/// Sets options of the execution provider of every device but the CPU, for all sessions created from now on. They are
/// applied last and override those that the tool sets itself.
pub(super) fn set_given(options: Vec<(String, String)>) {
    *GIVEN.lock().unwrap_or_else(PoisonError::into_inner) = options;
}

/// Checks that the library `library` supports the device, and loads what its providers need. Returns the files that were
/// loaded.
///
/// # Errors
/// [`RuntimeError::DeviceUnavailable`] with the reason.
pub(super) fn prepare(library: &Path, device: Device) -> Result<Vec<PathBuf>, RuntimeError> {
    let mut loaded = Vec::new();
    for provider in device.providers().iter().filter(|provider| **provider != CPU_PROVIDER) {
        let mut prepared = PREPARED.lock().unwrap_or_else(PoisonError::into_inner);
        // A process has only one library, so the result does not change.
        let result = prepared.entry(*provider).or_insert_with(|| prepare_provider(library, provider));
        match result {
            Ok(files) => loaded.extend(files.iter().cloned()),
            Err(reason) => return Err(RuntimeError::DeviceUnavailable { device, reason: reason.clone() }),
        }
    }
    Ok(loaded)
}

fn prepare_provider(library: &Path, provider: &str) -> Result<Vec<PathBuf>, String> {
    let available = available_providers();
    if !available.iter().any(|name| name == provider) {
        return Err(format!(
            "{} was built without {provider}, only with {}; install the Python package onnxruntime-gpu, which has it",
            library.display(),
            available.join(", ")
        ));
    }
    let folder = library.parent().unwrap_or(Path::new("."));
    let short = if provider == TENSORRT_PROVIDER { "tensorrt" } else { "cuda" };
    let shared = folder.join(library_name("shared"));
    let own = folder.join(library_name(short));
    for file in [&shared, &own] {
        if !file.is_file() {
            return Err(format!("{provider} needs {}, but there is no such file", file.display()));
        }
    }
    if cfg!(target_os = "linux") { preload_needs_of(&own, &cuda_folders(library)) } else { Ok(Vec::new()) }
}

/// Returns the file name of a provider's library on this system.
fn library_name(provider: &str) -> String {
    let (prefix, extension) = if cfg!(windows) {
        ("", "dll")
    } else if cfg!(target_os = "macos") {
        ("lib", "dylib")
    } else {
        ("lib", "so")
    };
    format!("{prefix}onnxruntime_providers_{provider}.{extension}")
}

/// Adds the providers of the device to a session builder. They have their default settings if the session is one
/// `as_deployed`.
pub(super) fn register(
    builder: SessionBuilder,
    version: &str,
    device: Device,
    as_deployed: bool,
) -> Result<SessionBuilder, RuntimeError> {
    let Some(index) = device.index() else { return Ok(builder) };
    // Device numbers are parsed as signed numbers.
    let index = i32::try_from(index).unwrap_or(i32::MAX);
    let given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let is_tensorrt = matches!(device, Device::TensorRt(_));
    let providers: Vec<ExecutionProviderDispatch> = device
        .providers()
        .iter()
        .map(|provider| match *provider {
            CUDA_PROVIDER => {
                let given = if is_tensorrt { &[][..] } else { &given[..] };
                let cuda = CUDA::default().with_device_id(index);
                let cuda = if as_deployed { cuda } else { exact(cuda, version, given) };
                with_options(cuda, given).build().error_on_failure()
            }
            _ => with_options(TensorRT::default().with_device_id(index), &given).build().error_on_failure(),
        })
        .collect();
    builder
        .with_execution_providers(providers)
        .map_err(|error| RuntimeError::DeviceUnavailable { device, reason: plain(&error) })
}

fn with_options<P: ArbitrarilyConfigurableExecutionProvider>(provider: P, options: &[(String, String)]) -> P {
    options.iter().fold(provider, |provider, (name, value)| provider.with_arbitrary_config(name, value))
}

/// Configures CUDA for float32 arithmetic as in the graph: by default ONNX Runtime rounds factors to TensorFloat-32 (10
/// bits of mantissa). Without tensor cores, its search for convolution algorithms chooses some with a workspace many times
/// the size of their values (on an H100, 13.9 GB for one of an SD 1.5 U-Net cut at 0.5, of one sample); `DEFAULT` chooses
/// algorithms without. The arena grows by what is requested: by default it doubles each time, and a training step would
/// take up to twice what it needs.
fn exact(cuda: CUDA, version: &str, given: &[(String, String)]) -> CUDA {
    let cuda = cuda.with_arbitrary_config("arena_extend_strategy", "kSameAsRequested");
    let rounds = given.iter().any(|(name, value)| name == "use_tf32" && value == "1");
    match minor_version(version) {
        Some(minor) if minor < TF32_OPTION_SINCE => cuda,
        _ if rounds => cuda,
        _ => cuda.with_arbitrary_config("use_tf32", "0").with_arbitrary_config("cudnn_conv_algo_search", "DEFAULT"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn libraries_have_the_names_that_the_runtime_searches() {
        assert_eq!(library_name("cuda"), "libonnxruntime_providers_cuda.so");
        assert_eq!(library_name("shared"), "libonnxruntime_providers_shared.so");
    }
}
