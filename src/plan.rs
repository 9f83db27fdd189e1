//! The plan file: what a cut keeps, so that it can be read, checked and repeated.
//!
//! The schema is described in `docs/plan.md`.

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

/// Version of the schema that this version writes. It reads all earlier ones too.
pub const SCHEMA: u32 = 2;

/// Bytes of a plan file, at most; those of the largest networks have some ten megabytes.
const MOST_BYTES: u64 = 1 << 30;

/// A whole plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Version of the schema.
    pub schema: u32,
    /// `onnx-diffprune` and its version.
    pub tool: String,
    /// The digest of the model file and its external data, in hexadecimal; of which kind, says the schema.
    pub input_digest: String,
    /// The options of the cut by their names in a configuration file, defaults included.
    pub options: BTreeMap<String, Value>,
    /// The channel ratio that was used: the one that was asked for, or found for a target.
    pub ratio: f64,
    /// The criterion that scored the channels.
    pub criterion: String,
    /// What may shrink in attention.
    pub attention: AttentionOption,
    /// What happens to norm groups.
    pub norm_groups: NormGroups,
    /// What every pruned constant keeps.
    pub tensors: Vec<TensorPlan>,
    /// The channel groups with scores and reasons.
    pub groups: Vec<GroupPlan>,
    /// What has changed since the cut was verified; older versions know no such thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<ChangedWeights>,
    /// How the weights were fitted, where they were; older versions know no such thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refit: Option<RefitPlan>,
}

/// What some readers of a constant keep of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorPlan {
    /// Name of the initializer, of the output of a Constant node, or of a weight that nodes compute from constants.
    pub tensor: String,
    /// Sizes in the original.
    pub dims: Vec<i64>,
    /// Kept indices in the original, by axis.
    pub keep: BTreeMap<usize, Vec<usize>>,
    /// The readers: first output of the node, and input slot.
    pub readers: Vec<(String, usize)>,
}

/// A channel group in the plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupPlan {
    /// Name of the first weight of the group.
    pub name: String,
    /// Channels before.
    pub channels: usize,
    /// Positions of the kept channels.
    pub kept: Vec<usize>,
    /// Score of every channel; empty where nothing was ranked.
    pub scores: Vec<f64>,
    /// The criterion that scored it, where the plan's gave no finite scores.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub criterion: Option<String>,
    /// Weights that the channels go through: name, axis and role.
    pub members: Vec<MemberPlan>,
    /// Why the group did not shrink, or not as far as asked.
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

/// The tensors of a cut in the form of the plan, readers with the same slices together.
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
    /// The file can't be read or is no plan of a known schema.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let fail = |message: String| Error::unreadable(path, message);
        let text = read_text(path, MOST_BYTES)?;
        let plan: Plan = serde_json::from_str(&text).map_err(|error| fail(format!("not a plan file: {error}")))?;
        if !(1..=SCHEMA).contains(&plan.schema) {
            return Err(fail(format!("expected plan schema 1 to {SCHEMA}, found {}", plan.schema)));
        }
        Ok(plan)
    }

    /// Writes the plan beside its destination and renames it into place.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        crate::files::write_file(path, &self.to_bytes(path)?)
    }

    /// The content of a plan file; `path` names it in messages.
    ///
    /// # Errors
    /// The plan has no form as JSON.
    pub(crate) fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let mut text = serde_json::to_string(self)
            .map_err(|error| Error::io(path, format!("the plan can't be written: {error}")))?;
        text.push('\n');
        Ok(text.into_bytes())
    }

    /// What the pruned file's own metadata says of the cut: tool, options, ratio and a digest of the input; and what has
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

/// Keys of the metadata that this tool writes begin with this.
pub(crate) const METADATA: &str = "onnx_diffprune.";

impl Plan {
    /// How the digest of the input was computed.
    pub fn digest_kind(&self) -> DigestKind {
        if self.schema == 1 { DigestKind::Sha256 } else { DigestKind::Blake3 }
    }

    /// Refuses a plan that was made for another file than the model's; `file` names the plan in messages.
    ///
    /// # Errors
    /// The digests differ.
    pub fn check_input(&self, model: &Model, file: &Path) -> Result<(), Error> {
        let (kind, expected) = (self.digest_kind(), &self.input_digest);
        let found = model.digest(kind);
        if *expected == found {
            return Ok(());
        }
        let (kind, path) = (kind.name(), model.path().display());
        let text = format!("the plan is for another file: its input has {kind} {expected}, {path} has {found}");
        Err(Error::usage(text).in_file(file))
    }

    /// Lets the written file say what [`Plan::metadata`] says, and no longer what the file that is cut says of the cut by
    /// which it came about itself. Of such earlier rounds only their number is told on.
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
