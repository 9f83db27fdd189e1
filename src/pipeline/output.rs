//! A changed pipeline: some of its networks are new, everything else is copied.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Component, Pipeline, bundle, hub, names};
use crate::error::Error;
use crate::files::{OutputFolder, Outputs, is_same_file};
use crate::graph::located::named_data_files;

/// Folders within each other that are copied, at most: links may lead in a circle.
const DEPTH: usize = 16;

/// What the plan of a changed network is called, beside `model.onnx`; also the sign of a folder that was written here.
const PLAN: &str = "plan.json";

/// Files of the user's own that a message lists, at most.
const FOREIGN_SHOWN: usize = 5;

/// Kinds of files that hold weights.
const WEIGHTS: [&str; 6] = ["onnx", "safetensors", "bin", "pt", "xml", "engine"];

/// The folder of a changed pipeline, complete beside its place first.
#[derive(Debug)]
pub struct PipelineOutput {
    folder: OutputFolder,
    place: PathBuf,
    from: PathBuf,
    /// The networks that are new.
    changed: Vec<Component>,
    /// Files of the room beside the folder, with their places.
    beside: Vec<(PathBuf, PathBuf)>,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WrittenPipeline {
    /// The files that were copied, by their names in the folder.
    pub copied: Vec<PathBuf>,
    /// Those of them that hold other forms of a changed network's weights, which are the original's still.
    pub unchanged_weights: Vec<PathBuf>,
}

impl PipelineOutput {
    /// An empty folder beside its place, with room for the changed components. In the place there may be nothing, an empty
    /// folder, or a pipeline that was written here before, which is replaced as a whole.
    ///
    /// # Errors
    /// A place that is the pipeline, lies in it or holds it; anything else in the place, also a file in a pipeline that was
    /// written here before which is none of it.
    pub fn beside(pipeline: &Pipeline, place: &Path, changed: &[&Component]) -> Result<Self, Error> {
        let whole = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or(path.to_owned());
        let above = crate::files::parent(place);
        let (from, to) = (whole(&pipeline.folder), whole(above).join(place.file_name().unwrap_or_default()));
        let in_the_way = match () {
            () if from == to || is_same_file(&pipeline.folder, place) => Some("is the pipeline that is read"),
            () if to.starts_with(&from) => Some("lies in the pipeline that is read"),
            () if from.starts_with(&to) => Some("holds the pipeline that is read"),
            () => None,
        };
        if let Some(text) = in_the_way {
            return Err(Error::usage(format!("the output {text}, {}", pipeline.folder.display()))
                .in_file(place)
                .hint("choose a folder of its own for the output"));
        }
        let folder = OutputFolder::beside(place, was_written_here)?;
        refuse_foreign(place, &pipeline.folder)?;
        let output = Self {
            folder,
            place: place.to_owned(),
            from: pipeline.folder.clone(),
            changed: changed.iter().map(|component| (*component).clone()).collect(),
            beside: Vec::new(),
        };
        for component in &output.changed {
            let folder = crate::files::parent(&component.model);
            output.folder.make_folder(folder.strip_prefix(&output.from).unwrap_or(Path::new("")))?;
        }
        Ok(output)
    }

    /// Where a file of the pipeline lies while the output is not in its place.
    pub fn staged(&self, file: &Path) -> PathBuf {
        self.folder.root().join(file.strip_prefix(&self.from).unwrap_or(file))
    }

    /// Where a file of the pipeline lies in the end.
    pub fn place_of(&self, file: &Path) -> PathBuf {
        self.place.join(file.strip_prefix(&self.from).unwrap_or(file))
    }

    /// Where the folder lies for now, and where in the end.
    pub fn roots(&self) -> (&Path, &Path) {
        (self.folder.root(), &self.place)
    }

    /// Where a file may be written that takes its `place`, elsewhere, together with the folder.
    pub fn room_for(&mut self, place: &Path) -> PathBuf {
        let path = self.folder.room().join(format!("beside-{}", self.beside.len()));
        self.beside.push((path.clone(), place.to_owned()));
        path
    }

    /// Moves the files beside the folder to their places, without the folder: a report of a run that failed.
    ///
    /// # Errors
    /// A place can't be taken.
    pub fn publish_beside(self) -> Result<(), Error> {
        let mut outputs = Outputs::default();
        self.beside.iter().filter(|(from, _)| from.exists()).for_each(|(from, place)| outputs.add(from, place));
        outputs.publish(&[])
    }

    /// Copies all that is not changed and moves the folder to its place, with the files beside it.
    ///
    /// # Errors
    /// A file can't be read or written: nothing is left behind then.
    pub fn publish(self) -> Result<WrittenPipeline, Error> {
        let left_out = self.left_out()?;
        let mut written = WrittenPipeline::default();
        let mut folders = vec![(PathBuf::new(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            for name in names(&self.from.join(&folder))? {
                let (name, from) = (folder.join(&name), self.from.join(&folder).join(&name));
                if from.is_dir() {
                    // What is hidden belongs to other tools: the history of Git, what a download has noted.
                    let is_hidden = name.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
                    if depth < DEPTH && !is_hidden {
                        self.folder.make_folder(&name)?;
                        folders.push((name, depth + 1));
                    }
                } else if !left_out.contains(&from) {
                    self.folder.copy(&from, &name)?;
                    let of_changed = self.changed.iter().any(|component| from.starts_with(&component.folder));
                    let kind = name.extension().map(|kind| kind.to_string_lossy().to_ascii_lowercase());
                    if of_changed && kind.is_some_and(|kind| WEIGHTS.contains(&kind.as_str())) {
                        written.unchanged_weights.push(name.clone());
                    }
                    written.copied.push(name);
                }
            }
        }
        written.copied.sort();
        written.unchanged_weights.sort();
        let beside: Vec<(PathBuf, PathBuf)> = self.beside.into_iter().filter(|(from, _)| from.exists()).collect();
        self.folder.publish(&beside)?;
        Ok(written)
    }

    /// The files of the pipeline that have no place in the output: the changed networks, their plans, and data files that no
    /// other network names.
    fn left_out(&self) -> Result<BTreeSet<PathBuf>, Error> {
        let mut left_out = BTreeSet::new();
        for Component { model, .. } in &self.changed {
            let folder = crate::files::parent(model);
            let mut data: BTreeSet<PathBuf> = named_data_files(model).into_iter().flatten().collect();
            for name in names(folder)? {
                let other = folder.join(name);
                let is_model = other.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("onnx"));
                if is_model && other != *model {
                    named_data_files(&other).into_iter().flatten().for_each(|file| _ = data.remove(&file));
                }
            }
            // What has its name in the output is there already.
            let staged = names(crate::files::parent(&self.staged(model)))?;
            left_out.extend(staged.iter().map(|name| folder.join(name)));
            left_out.extend([model.clone(), model.with_extension(PLAN)]);
            left_out.extend(data);
        }
        Ok(left_out)
    }
}

/// Refuses a place with files that no run has written there: of what an earlier run wrote, each has its name in the pipeline
/// that is read, or is a network with its plan, its data and its
/// configuration, or belongs to a bundle.
fn refuse_foreign(place: &Path, from: &Path) -> Result<(), Error> {
    let Ok(earlier) = Pipeline::open(place) else { return Ok(()) };
    let mut own = BTreeSet::new();
    for Component { model, config_path, .. } in &earlier.components {
        own.extend(named_data_files(model).into_iter().flatten());
        own.extend([model.clone(), model.with_extension(PLAN)]);
        own.extend(config_path.clone());
    }
    let fail = |path: &Path, error: std::io::Error| Error::unreadable(path, format!("can't be read: {error}"));
    let mut foreign = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = place.join(&folder);
        for entry in path.read_dir().map_err(|error| fail(&path, error))? {
            let entry = entry.map_err(|error| fail(&path, error))?;
            let name = folder.join(entry.file_name());
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                // A folder that is hidden is never copied.
                true if !entry.file_name().as_encoded_bytes().starts_with(b".") => folders.push(name),
                _ if from.join(&name).is_file()
                    || own.contains(&entry.path())
                    || bundle::is_own(&path, &entry.file_name()) => {}
                _ => foreign.push(name.display().to_string()),
            }
        }
    }
    if foreign.is_empty() {
        return Ok(());
    }
    foreign.sort();
    let shown = foreign.len().min(FOREIGN_SHOWN);
    let more = foreign.len() - shown;
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let text = format!(
        "expected a place for a folder, found a pipeline of an earlier run with files that are none of it: {}{more}",
        foreign[..shown].join(", ")
    );
    Err(Error::io(place, text)
        .hint("an earlier pipeline is replaced as a whole: move these files elsewhere, or choose another place"))
}

/// Whether a folder is a pipeline that was written here: the plan of a cut lies beside one of its networks, or what a bundle
/// says of itself.
fn was_written_here(folder: &Path) -> bool {
    let is_ours = |component: &Component| {
        component.model.with_extension(PLAN).is_file() || component.model.with_file_name(bundle::MANIFEST).is_file()
    };
    hub::snapshot(folder).is_ok_and(|snapshot| snapshot == folder)
        && Pipeline::open(folder).is_ok_and(|pipeline| pipeline.components.iter().any(is_ours))
}
