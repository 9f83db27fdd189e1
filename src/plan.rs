//! The plan file records what a cut keeps, so that the cut can be read, checked and repeated.
//!
//! `docs/plan.md` describes the schema.

mod composed;

mod kept;

mod refitted;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::changed::ChangedWeights;
use crate::couple::options::{AttentionOption, NormGroups};
use crate::error::Error;
use crate::files::read_text;
use crate::graph::digest::DigestKind;
use crate::graph::model::Model;
use crate::graph::{Graph, ValueId};
use crate::operator::reference::KeptAxes;
use crate::rewrite::WeightSlices;
use crate::write::Edits;

pub use kept::kept_axes;
pub use refitted::RefitPlan;

/// The schema version that is written. All earlier versions can be read too.
pub const SCHEMA: u32 = 2;

/// Maximum size of a plan file in bytes. Plans of the largest networks take about ten megabytes.
const MOST_BYTES: u64 = 1 << 30;

/// A plan, as the plan file stores it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Version of the schema.
    pub schema: u32,
    /// `onnx-diffprune` and its version.
    pub tool: String,
    /// The digest of the model file and its external data, in hexadecimal. The schema version decides which hash it is
    /// ([`Plan::digest_kind`]).
    pub input_digest: String,
    /// The options of the cut by their names in a configuration file, including those left at their defaults.
    pub options: BTreeMap<String, Value>,
    /// The channel ratio of the cut: the requested one, or the one that was found for a pruning target.
    pub ratio: f64,
    /// The criterion that scored the channels.
    pub criterion: String,
    /// Which parts of attention may be removed.
    pub attention: AttentionOption,
    /// How norm groups are treated.
    pub norm_groups: NormGroups,
    /// The kept indices of every pruned constant.
    pub tensors: Vec<TensorPlan>,
    /// The channel groups with scores and reasons.
    pub groups: Vec<GroupPlan>,
    /// What has changed since the cut was verified. Files of older versions lack this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<ChangedWeights>,
    /// How the weights were refitted. `None`: there was no refit. Files of older versions lack this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refit: Option<RefitPlan>,
}

/// The indices of a constant that some of its readers keep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorPlan {
    /// Name of the initializer, of the output of a Constant node, or of a weight that nodes compute from constants.
    pub tensor: String,
    /// Sizes in the original.
    pub dims: Vec<i64>,
    /// Kept indices of the original, by axis.
    pub keep: BTreeMap<usize, Vec<usize>>,
    /// The nodes that take it as input: first output of the node, and input slot.
    pub readers: Vec<(String, usize)>,
}

/// A channel group in the plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupPlan {
    /// Name of the first weight of the group.
    pub name: String,
    /// Number of channels before the cut.
    pub channels: usize,
    /// Positions of the kept channels.
    pub kept: Vec<usize>,
    /// The score of every channel. Empty if the group was not ranked.
    pub scores: Vec<f64>,
    /// The criterion that ranked this group instead of the plan's, whose scores were not finite. `None`: the plan's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub criterion: Option<String>,
    /// The weights that have these channels along an axis: name, axis and role.
    pub members: Vec<MemberPlan>,
    /// Why the group was not pruned, or less than requested.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// A member of a group in the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberPlan {
    /// Name of the constant.
    pub tensor: String,
    /// The axis.
    pub axis: usize,
    /// `producer`, `consumer` or `parameter`.
    pub role: String,
}

/// Converts the slices of a cut to the form of the plan. Readers with the same slices share an entry.
pub fn tensor_plans(graph: &Graph, dims_of: &dyn Fn(ValueId) -> Vec<i64>, slices: &WeightSlices) -> Vec<TensorPlan> {
    let mut plans: Vec<TensorPlan> = Vec::new();
    let mut known: HashMap<(ValueId, KeptAxes), usize> = HashMap::new();
    for (reader, value, kept) in slices.reads() {
        let reader = (graph.nodes[reader.node].proto.first_output().to_owned(), reader.slot);
        let key = (value, kept.clone());
        match known.get(&key) {
            Some(at) => plans[*at].readers.push(reader),
            None => {
                known.insert(key, plans.len());
                plans.push(TensorPlan {
                    tensor: graph.values[value].name.clone(),
                    dims: dims_of(value),
                    keep: kept.clone(),
                    readers: vec![reader],
                });
            }
        }
    }
    plans
}

impl Plan {
    /// Reads a plan file.
    ///
    /// # Errors
    /// Fails if the file can't be read or isn't a plan of a known schema.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let fail = |message: String| Error::unreadable(path, message);
        let text = read_text(path, MOST_BYTES)?;
        let plan: Plan = serde_json::from_str(&text).map_err(|error| {
            fail(format!("not a plan file: {error}"))
                .hint("a plan is the .plan.json file that the tool writes beside a pruned network")
        })?;
        if !(1..=SCHEMA).contains(&plan.schema) {
            return Err(fail(format!("expected plan schema 1 to {SCHEMA}, found {}", plan.schema)));
        }
        Ok(plan)
    }

    /// Writes the plan to a temporary file next to `path`, and renames it.
    ///
    /// # Errors
    /// Fails if the file can't be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        crate::files::write_file(path, &self.to_bytes(path)?)
    }

    /// Returns the content of a plan file; `path` names it in messages.
    ///
    /// # Errors
    /// Fails if the plan can't be expressed as JSON.
    pub(crate) fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let mut text = serde_json::to_string(self)
            .map_err(|error| Error::io(path, format!("the plan can't be converted to JSON: {error}")))?;
        text.push('\n');
        Ok(text.into_bytes())
    }

    /// Returns the metadata entries of the pruned file: tool, options, ratio, a digest of the input, and what has
    /// changed since the cut was verified, if anything.
    pub fn metadata(&self) -> Vec<(String, String)> {
        let options = json!(self.options).to_string();
        let digest = match self.digest_kind() {
            DigestKind::Sha256 => "sha256",
            DigestKind::Blake3 => "blake3",
        };
        let mut entries = vec![
            ("onnx_diffprune.tool".to_owned(), self.tool.clone()),
            ("onnx_diffprune.options".to_owned(), options),
            ("onnx_diffprune.ratio".to_owned(), self.ratio.to_string()),
            (format!("onnx_diffprune.input_{digest}"), self.input_digest.clone()),
        ];
        let changed = self.changed.as_ref().map(|changed| changed.metadata().to_string());
        entries.extend(changed.map(|text| ("onnx_diffprune.changed_weights".to_owned(), text)));
        entries
    }
}

/// The prefix of all metadata keys that this tool writes.
pub(crate) const METADATA: &str = "onnx_diffprune.";

impl Plan {
    /// Returns the hash that the digest of the input was computed with.
    pub fn digest_kind(&self) -> DigestKind {
        if self.schema == 1 { DigestKind::Sha256 } else { DigestKind::Blake3 }
    }

    /// Refuses a plan that was made for a file other than the model's; `file` names the plan in messages.
    ///
    /// # Errors
    /// Fails if the digests differ.
    pub fn check_input(&self, model: &Model, file: &Path) -> Result<(), Error> {
        let (kind, expected) = (self.digest_kind(), &self.input_digest);
        let found = model.digest(kind);
        if *expected == found {
            return Ok(());
        }
        let (kind, path) = (kind.name(), model.path().display());
        let text = format!("the plan is for another file: expected {kind} {expected}, but {path} has {found}");
        Err(Error::usage(text).in_file(file).hint("pass the unpruned network that this plan was made for, unchanged"))
    }

    /// Puts the entries of [`Plan::metadata`] into the written file. Entries of an earlier cut in the file that is cut
    /// now are dropped; only the number of rounds is carried on.
    pub fn record_in(&self, model: &Model, edits: &mut Edits) {
        edits.metadata = self.metadata();
        edits.dropped_metadata = vec![METADATA.to_owned()];
        let entry = |name: &str| {
            let key = format!("{METADATA}{name}");
            model.proto().metadata_props.iter().rev().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
        };
        if entry("tool").is_some() {
            let earlier: u64 = entry("round").and_then(|round| round.parse().ok()).unwrap_or(1);
            edits.metadata.push((format!("{METADATA}round"), earlier.saturating_add(1).to_string()));
        }
    }
}
