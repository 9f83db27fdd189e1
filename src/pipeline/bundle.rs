//! The files of a bundle: a network that was prepared for a runtime.

use std::ffi::OsStr;
use std::path::Path;

use crate::files::read_text;

/// The file that marks a folder as a bundle and lists its files.
pub const MANIFEST: &str = "bundle.json";

/// Maximum size of the manifest in bytes.
const MANIFEST_LIMIT: u64 = 1 << 20;

/// The timing cache of TensorRT: kernel timings on this GPU that make later builds faster.
pub const TIMING_CACHE: &str = "timing.cache";

/// The files that the commands of a bundle create in it: engines, caches, OpenVINO's files.
const MADE_LATER: [&str; 6] = [TIMING_CACHE, "engines", "cache", "model.xml", "model.bin", "model.engine"];

/// Returns the files of the bundle in a folder, including the manifest. `None` if there is no bundle.
pub fn listed(folder: &Path) -> Option<Vec<String>> {
    let manifest: serde_json::Value =
        serde_json::from_str(&read_text(&folder.join(MANIFEST), MANIFEST_LIMIT).ok()?).ok()?;
    manifest.get("tool")?.as_str().filter(|tool| tool.starts_with(env!("CARGO_PKG_NAME")))?;
    let files = manifest.get("files")?.as_array()?.iter();
    Some(files.filter_map(|name| Some(name.as_str()?.to_owned())).chain([MANIFEST.to_owned()]).collect())
}

/// Returns whether an entry of a folder belongs to the bundle in it: the manifest lists it, or a command of a bundle
/// created it.
pub fn is_own(folder: &Path, name: &OsStr) -> bool {
    let is_made = Path::new(name).extension().is_some_and(|kind| kind == "engine");
    let is_listed =
        |listed: &Vec<String>| listed.iter().chain(&MADE_LATER.map(str::to_owned)).any(|own| name == own.as_str());
    listed(folder).as_ref().is_some_and(|listed| is_made || is_listed(listed))
}
