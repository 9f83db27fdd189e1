//! The plan file: what a cut keeps, so that it can be read, checked and repeated.
//!
//! The schema is described in `docs/plan.md`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::changed::ChangedWeights;
use crate::couple::options::{AttentionOption, NormGroups};
use crate::error::Error;
use crate::graph::digest::DigestKind;
use crate::graph::model::Model;
use crate::graph::{Graph, Reader, ValueId};
use crate::operator::reference::KeptAxes;
use crate::rewrite::WeightSlices;
use crate::write::Edits;

/// Version of the schema that this version writes. It reads all earlier ones too.
pub const SCHEMA: u32 = 2;

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
        let text = std::fs::read_to_string(path).map_err(|error| fail(format!("can't be read: {error}")))?;
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
        let mut text = serde_json::to_string(self)
            .map_err(|error| Error::io(path, format!("the plan can't be written: {error}")))?;
        text.push('\n');
        crate::write::write_file(path, text.as_bytes())
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
const METADATA: &str = "onnx_diffprune.";

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

/// What every reader keeps, by node and input slot of a graph.
///
/// # Errors
/// The plan names a reader, a constant or an index that the graph does not have.
pub fn kept_axes(plan: &Plan, graph: &Graph, path: &Path) -> Result<HashMap<Reader, KeptAxes>, Error> {
    let fail = |message: String| {
        Error::unreadable(path, message).hint("the plan belongs to another model; prune this one to get its plan")
    };
    let mut kept = HashMap::new();
    for tensor in &plan.tensors {
        let value = graph
            .value(&tensor.tensor)
            .ok_or_else(|| fail(format!("the plan names constant {:?}, which the model lacks", tensor.tensor)))?;
        for (axis, indices) in &tensor.keep {
            let size = tensor.dims.get(*axis).copied().unwrap_or(0);
            if indices.iter().any(|index| *index as i64 >= size) {
                let text = format!("the plan keeps an index of {:?} that axis {axis} does not have", tensor.tensor);
                return Err(fail(text));
            }
        }
        for (output, slot) in &tensor.readers {
            let node = graph.value(output).and_then(|output| graph.values[output].producer).map(|(node, _)| node);
            let node = node.filter(|node| graph.nodes[*node].input(*slot) == Some(value)).ok_or_else(|| {
                fail(format!("the plan names node {output:?} as a reader of {:?}, which it is not", tensor.tensor))
            })?;
            kept.insert(Reader { node, slot: *slot }, tensor.keep.clone());
        }
    }
    Ok(kept)
}
