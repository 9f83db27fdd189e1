//! The folders that may contain an ONNX Runtime library, and the names of its file.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The folder of packages of the Python that this process runs in, if it does.
static OWN_PACKAGES: OnceLock<PathBuf> = OnceLock::new();

/// Sets the folder of the Python packages, if this process runs in Python; only the first call has an effect.
pub(super) fn set_own_packages(folder: PathBuf) {
    let _ = OWN_PACKAGES.set(folder);
}

/// Whether this process runs in Python, as a part of an installed package.
pub(super) fn has_own_packages() -> bool {
    OWN_PACKAGES.get().is_some()
}

/// A folder to search.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    /// The folder.
    pub(super) folder: PathBuf,
    /// Why it is searched, in words.
    pub(super) how: &'static str,
}

/// Returns the folders that are searched if no library is given, the most specific ones first. Some may not exist.
pub(super) fn searched() -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    let mut add = |how: &'static str, folders: Vec<PathBuf>| {
        for folder in folders {
            if !places.iter().any(|place| place.folder == folder) {
                places.push(Place { folder, how });
            }
        }
    };
    if let Some(packages) = OWN_PACKAGES.get() {
        add("packages of this Python", vec![packages.join("onnxruntime").join("capi")]);
    }
    if let Some(folder) = env::current_exe().ok().as_deref().and_then(Path::parent) {
        add("beside the executable", vec![folder.to_owned(), folder.join("lib")]);
    }
    if let Ok(current) = env::current_dir() {
        let mut folders: Vec<PathBuf> = current.ancestors().flat_map(project_packages).collect();
        if folders.is_empty() {
            folders.push(current.join(".venv*"));
        }
        add("virtual environment of the project", folders);
    }
    for (variable, how) in [
        ("VIRTUAL_ENV", "active virtual environment (VIRTUAL_ENV)"),
        ("CONDA_PREFIX", "active conda environment (CONDA_PREFIX)"),
    ] {
        if let Some(prefix) = env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from) {
            let mut folders = packages_or_pattern(&prefix);
            // Conda's package of the library installs it with the other libraries.
            folders.push(prefix.join("lib"));
            add(how, folders);
        }
    }
    add("Python on the PATH", on_the_path().iter().flat_map(|prefix| packages_or_pattern(prefix)).collect());
    if let Some(home) = env::home_dir() {
        add("Python packages of the user", packages_or_pattern(&home.join(".local")));
    }
    add("system libraries", system_folders());
    places
}

/// Returns the folders of `onnxruntime` in the virtual environments (`.venv*`) directly in this folder.
fn project_packages(folder: &Path) -> Vec<PathBuf> {
    let environments = sorted_entries(folder).into_iter().filter(|entry| is_virtual_environment(entry));
    environments.flat_map(|environment| packages(&environment)).collect()
}

/// Whether this is a folder whose name begins with `.venv`.
fn is_virtual_environment(entry: &Path) -> bool {
    entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".venv")) && entry.is_dir()
}

/// Returns the folders of `onnxruntime` in a Python installation with this prefix, for each of its Python versions.
fn packages(prefix: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        site_packages_of(prefix).into_iter().map(|folder| folder.join("onnxruntime").join("capi")).collect();
    folders.retain(|folder| folder.is_dir());
    folders
}

/// Returns the folders of installed packages in a Python installation with this prefix, for each of its Python versions.
fn site_packages_of(prefix: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for library in ["lib", "lib64"] {
        let versions = sorted_entries(&prefix.join(library))
            .into_iter()
            .filter(|entry| entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3")));
        for version in versions {
            folders.extend(["site-packages", "dist-packages"].map(|packages| version.join(packages)));
        }
    }
    // The layout on Windows, where folder names have no Python version.
    folders.push(prefix.join("Lib").join("site-packages"));
    folders.retain(|folder| folder.is_dir());
    folders
}

/// Returns the folders with CUDA's libraries, those for ONNX Runtime's library `runtime` first: the packages of its
/// Python environment, those of the environments that are searched for ONNX Runtime itself, and CUDA's own folders.
pub(super) fn cuda_folders(runtime: &Path) -> Vec<PathBuf> {
    let mut sites = Vec::new();
    // `onnxruntime/capi/libonnxruntime.so` is three levels below the folder of packages.
    sites.extend(runtime.ancestors().nth(3).map(Path::to_owned));
    let mut prefixes = Vec::new();
    if let Ok(current) = env::current_dir() {
        for folder in current.ancestors() {
            let hidden = sorted_entries(folder).into_iter().filter(|entry| is_virtual_environment(entry));
            prefixes.extend(hidden);
        }
    }
    let named = |variable: &str| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    prefixes.extend(named("VIRTUAL_ENV"));
    prefixes.extend(named("CONDA_PREFIX"));
    prefixes.extend(on_the_path());
    prefixes.extend(env::home_dir().map(|home| home.join(".local")));
    sites.extend(prefixes.iter().flat_map(|prefix| site_packages_of(prefix)));
    let mut folders: Vec<PathBuf> = sites.iter().flat_map(|site| wheel_folders(site)).collect();
    folders.extend(named("CONDA_PREFIX").map(|prefix| prefix.join("lib")));
    for variable in ["CUDA_PATH", "CUDA_HOME"] {
        folders.extend(named(variable).map(|prefix| prefix.join("lib64")));
    }
    folders.push(PathBuf::from("/usr/local/cuda/lib64"));
    // `lib64` is often a link to `lib`.
    let mut seen = std::collections::BTreeSet::new();
    folders.retain(|folder| folder.is_dir() && folder.canonicalize().is_ok_and(|folder| seen.insert(folder)));
    folders
}

/// Returns the library folders of the packages of CUDA, cuDNN and TensorRT in a folder of Python packages:
/// `nvidia/cudnn/lib`, `nvidia/cu13/lib` and similar ones, and `tensorrt_libs`.
fn wheel_folders(site: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        sorted_entries(&site.join("nvidia")).into_iter().map(|package| package.join("lib")).collect();
    folders.push(site.join("tensorrt_libs"));
    folders.retain(|folder| folder.is_dir());
    folders
}

/// As [`packages`]. If there are none, returns the pattern of the searched folder, so that an error can show it.
fn packages_or_pattern(prefix: &Path) -> Vec<PathBuf> {
    let folders = packages(prefix);
    if folders.is_empty() { vec![prefix.join("lib/python3*/site-packages/onnxruntime/capi")] } else { folders }
}

/// Returns the folders that may contain the library if the user gives this folder: itself, the `lib` of an unpacked
/// release, and the packages of a Python environment.
pub(super) fn inside(folder: &Path) -> Vec<PathBuf> {
    let mut folders = vec![folder.to_owned(), folder.join("lib"), folder.join("capi"), folder.join("onnxruntime/capi")];
    folders.extend(packages(folder));
    folders
}

/// Returns the prefixes of the Python installations on the PATH. Links are followed to the packages.
fn on_the_path() -> Vec<PathBuf> {
    let mut prefixes = Vec::new();
    let path = env::var_os("PATH").unwrap_or_default();
    for folder in env::split_paths(&path) {
        for name in ["python3", "python", "python.exe"] {
            let file = folder.join(name);
            if !file.is_file() {
                continue;
            }
            for file in [Some(file.clone()), file.canonicalize().ok()].into_iter().flatten() {
                let bin = file.parent();
                // On Windows the interpreter is in the prefix itself.
                prefixes.extend(bin.and_then(Path::parent).map(Path::to_owned));
                if cfg!(windows) {
                    prefixes.extend(bin.map(Path::to_owned));
                }
            }
        }
    }
    prefixes
}

/// Returns the folders that the dynamic loader would search.
fn system_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let variables: &[&str] = if cfg!(windows) {
        &["PATH"]
    } else if cfg!(target_os = "macos") {
        &["DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"]
    } else {
        &["LD_LIBRARY_PATH"]
    };
    for variable in variables {
        folders.extend(env::split_paths(&env::var_os(variable).unwrap_or_default()));
    }
    if cfg!(target_os = "linux") {
        for file in sorted_entries(Path::new("/etc/ld.so.conf.d")) {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            folders.extend(text.lines().map(str::trim).filter(|line| line.starts_with('/')).map(PathBuf::from));
        }
    }
    if !cfg!(windows) {
        let usual = ["/usr/local/lib", "/usr/local/lib64", "/opt/homebrew/lib", "/usr/lib", "/usr/lib64", "/lib"];
        folders.extend(usual.iter().map(PathBuf::from));
    }
    // To the loader, an empty or relative entry means the current folder. No code is loaded from there.
    folders.retain(|folder| folder.is_absolute() && folder.is_dir());
    folders
}

/// Returns the library file in a folder; of several, that of the highest version.
pub(super) fn library_in(folder: &Path) -> Option<PathBuf> {
    let entries = sorted_entries(folder).into_iter().filter_map(|entry| {
        let version = library_version(&entry.file_name()?.to_string_lossy())?;
        entry.is_file().then_some((version, entry))
    });
    entries.max_by(|(left, _), (right, _)| left.cmp(right)).map(|(_, entry)| entry)
}

/// Returns the version in a file name if it is the library's name; empty for a name without a version.
fn library_version(name: &str) -> Option<Vec<u32>> {
    let numbers = |text: &str| text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>();
    if matches!(name, "onnxruntime.dll" | "libonnxruntime.so" | "libonnxruntime.dylib") {
        return Some(Vec::new());
    }
    // Other files with similar names are the libraries of execution providers and debugging symbols.
    let rest = name.strip_prefix("libonnxruntime.")?;
    match (rest.strip_prefix("so."), rest.strip_suffix(".dylib")) {
        (Some(version), _) | (None, Some(version)) => numbers(version),
        (None, None) => None,
    }
}

/// Returns the entries of a folder, sorted by name; none if it can't be read.
pub(super) fn sorted_entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_library_itself_is_accepted() {
        assert_eq!(library_version("libonnxruntime.so.1.31.1"), Some(vec![1, 31, 1]));
        assert_eq!(library_version("libonnxruntime.1.22.0.dylib"), Some(vec![1, 22, 0]));
        assert_eq!(library_version("libonnxruntime.so"), Some(vec![]));
        assert_eq!(library_version("onnxruntime.dll"), Some(vec![]));
        assert_eq!(library_version("libonnxruntime_providers_shared.so"), None);
        assert_eq!(library_version("libonnxruntime.so.1.2.debug"), None);
        assert_eq!(library_version("libonnxruntime.a"), None);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libonnxruntime.so.1.9.0", "libonnxruntime.so.1.31.1", "libonnxruntime_providers_shared.so"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(library_in(folder.path()), Some(folder.path().join("libonnxruntime.so.1.31.1")));
        assert_eq!(library_in(&folder.path().join("absent")), None);
    }

    #[test]
    fn virtual_environments_of_a_project_are_found() {
        let project = tempfile::tempdir().unwrap();
        let capi = project.path().join(".venv-tests/lib/python3.11/site-packages/onnxruntime/capi");
        std::fs::create_dir_all(&capi).unwrap();
        std::fs::create_dir_all(project.path().join("venv/lib/python3.11/site-packages/onnxruntime/capi")).unwrap();
        assert_eq!(project_packages(project.path()), [capi]);
    }

    #[test]
    fn libraries_of_cuda_are_searched_in_the_wheels_beside_the_runtime() {
        let root = tempfile::tempdir().unwrap();
        let site = root.path().join("lib/python3.11/site-packages");
        let expected = ["nvidia/cu13/lib", "nvidia/cudnn/lib", "tensorrt_libs"].map(|folder| site.join(folder));
        for folder in expected.iter().chain([&site.join("onnxruntime/capi"), &site.join("nvidia/empty")]) {
            std::fs::create_dir_all(folder).unwrap();
        }
        let folders = cuda_folders(&site.join("onnxruntime/capi/libonnxruntime.so.1.31.1"));
        assert_eq!(folders[..3], expected);
    }
}
