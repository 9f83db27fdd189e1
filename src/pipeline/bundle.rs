//! What lies beside a network that was made ready for a runtime.

use std::ffi::OsStr;
use std::path::Path;

use crate::files::read_text;

/// The file that marks a folder as a bundle and lists its files.
pub const MANIFEST: &str = "bundle.json";

/// Bytes of it that are read, at most.
const MANIFEST_LIMIT: u64 = 1 << 20;

/// The timing cache of TensorRT: what kernels took on this GPU, so that a later build is quick.
pub const TIMING_CACHE: &str = "timing.cache";

/// What the commands of a bundle make in it: engines, caches, OpenVINO's own files.
const MADE_LATER: [&str; 6] = [TIMING_CACHE, "engines", "cache", "model.xml", "model.bin", "model.engine"];

/// The files of the bundle in a folder, itself among them; `None` where there is none.
pub fn listed(folder: &Path) -> Option<Vec<String>> {
    let manifest: serde_json::Value =
        serde_json::from_str(&read_text(&folder.join(MANIFEST), MANIFEST_LIMIT).ok()?).ok()?;
    manifest.get("tool")?.as_str().filter(|tool| tool.starts_with(env!("CARGO_PKG_NAME")))?;
    let files = manifest.get("files")?.as_array()?.iter();
    Some(files.filter_map(|name| Some(name.as_str()?.to_owned())).chain([MANIFEST.to_owned()]).collect())
}

/// Whether this entry of a folder belongs to the bundle in it: it is listed, or made by the commands of a bundle.
pub fn is_own(folder: &Path, name: &OsStr) -> bool {
    let is_made = Path::new(name).extension().is_some_and(|kind| kind == "engine");
    let is_listed =
        |listed: &Vec<String>| listed.iter().chain(&MADE_LATER.map(str::to_owned)).any(|own| name == own.as_str());
    listed(folder).as_ref().is_some_and(|listed| is_made || is_listed(listed))
}
