//! The output of a changed pipeline: some networks are new, everything else is copied.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Component, Pipeline, bundle, hub, names};
use crate::error::Error;
use crate::files::{OutputFolder, Outputs, is_same_file};
use crate::graph::located::named_data_files;

/// Maximum depth of nested folders that are copied: links may lead in circles.
const DEPTH: usize = 16;

/// The extension of the plan of a changed network, next to `model.onnx`. It also marks a folder that this tool wrote.
const PLAN: &str = "plan.json";

/// Maximum number of the user's files that a message lists.
const FOREIGN_SHOWN: usize = 5;

/// The extensions of files that hold weights.
const WEIGHTS: [&str; 6] = ["onnx", "safetensors", "bin", "pt", "xml", "engine"];

/// The folder of a changed pipeline. It is completed in a temporary folder next to its final path.
#[derive(Debug)]
pub struct PipelineOutput {
    folder: OutputFolder,
    place: PathBuf,
    from: PathBuf,
    /// The new networks.
    changed: Vec<Component>,
    /// Further files, with their final paths.
    beside: Vec<(PathBuf, PathBuf)>,
}

/// The files that were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WrittenPipeline {
    /// The files that were copied, by their names in the folder.
    pub copied: Vec<PathBuf>,
    /// The copied files that hold the weights of a changed network in other forms: still those of the original.
    pub unchanged_weights: Vec<PathBuf>,
}

impl PipelineOutput {
    /// Creates an empty temporary folder next to `place`, with folders for the changed components. At `place` there may
    /// be nothing, an empty folder, or a pipeline that this tool wrote, which is replaced as a whole.
    ///
    /// # Errors
    /// `place` is the input pipeline, is inside it or contains it, or something else is there, including files that do
    /// not belong to a pipeline of an earlier run.
    pub fn beside(pipeline: &Pipeline, place: &Path, changed: &[&Component]) -> Result<Self, Error> {
        let whole = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or(path.to_owned());
        let above = crate::files::parent(place);
        let (from, to) = (whole(&pipeline.folder), whole(above).join(place.file_name().unwrap_or_default()));
        let in_the_way = match () {
            () if from == to || is_same_file(&pipeline.folder, place) => Some("is the input pipeline"),
            () if to.starts_with(&from) => Some("is inside the input pipeline"),
            () if from.starts_with(&to) => Some("contains the input pipeline"),
            () => None,
        };
        if let Some(text) = in_the_way {
            return Err(Error::usage(format!("the output {text}, {}", pipeline.folder.display()))
                .in_file(place)
                .hint("choose another folder for the output"));
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

    /// Returns the temporary path of a file of the pipeline.
    pub fn staged(&self, file: &Path) -> PathBuf {
        self.folder.root().join(file.strip_prefix(&self.from).unwrap_or(file))
    }

    /// Returns the final path of a file of the pipeline.
    pub fn place_of(&self, file: &Path) -> PathBuf {
        self.place.join(file.strip_prefix(&self.from).unwrap_or(file))
    }

    /// Returns the temporary and the final path of the folder.
    pub fn roots(&self) -> (&Path, &Path) {
        (self.folder.root(), &self.place)
    }

    /// Returns a temporary path for a file outside the folder. It is moved to `place` together with the folder.
    pub fn room_for(&mut self, place: &Path) -> PathBuf {
        let path = self.folder.room().join(format!("beside-{}", self.beside.len()));
        self.beside.push((path.clone(), place.to_owned()));
        path
    }

    /// Moves the files outside the folder to their final paths, without the folder: for the report of a run that
    /// failed.
    ///
    /// # Errors
    /// A file can't be moved.
    pub fn publish_beside(self) -> Result<(), Error> {
        let mut outputs = Outputs::default();
        self.beside.iter().filter(|(from, _)| from.exists()).for_each(|(from, place)| outputs.add(from, place));
        outputs.publish(&[])
    }

    /// Copies everything that is not changed and moves the folder and the other files to their final paths.
    ///
    /// # Errors
    /// A file can't be read or written. Nothing is left behind then.
    pub fn publish(self) -> Result<WrittenPipeline, Error> {
        let left_out = self.left_out()?;
        let mut written = WrittenPipeline::default();
        let mut folders = vec![(PathBuf::new(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            for name in names(&self.from.join(&folder))? {
                let (name, from) = (folder.join(&name), self.from.join(&folder).join(&name));
                if from.is_dir() {
                    // Hidden folders belong to other tools, such as Git's history or the records of a download.
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

    /// Returns the files of the pipeline that are not copied: the changed networks, their plans, and data files that no
    /// other network refers to.
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
            // Files of the same name are already in the output.
            let staged = names(crate::files::parent(&self.staged(model)))?;
            left_out.extend(staged.iter().map(|name| folder.join(name)));
            left_out.extend([model.clone(), model.with_extension(PLAN)]);
            left_out.extend(data);
        }
        Ok(left_out)
    }
}

/// Returns an error if `place` has files that no earlier run wrote. A file of an earlier run has its name in the input
/// pipeline, is a network or its plan, data or configuration, or belongs to a bundle.
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
                // Hidden folders are never copied.
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
        "the output folder holds a pipeline of an earlier run, and files that do not belong to it: {}{more}",
        foreign[..shown].join(", ")
    );
    Err(Error::io(place, text).hint(
        "an earlier pipeline is replaced as a whole: move these files elsewhere, or choose another output folder",
    ))
}

/// Returns whether this tool wrote a pipeline folder: one of its networks has a plan or the manifest of a bundle next
/// to it.
fn was_written_here(folder: &Path) -> bool {
    let is_ours = |component: &Component| {
        component.model.with_extension(PLAN).is_file() || component.model.with_file_name(bundle::MANIFEST).is_file()
    };
    hub::snapshot(folder).is_ok_and(|snapshot| snapshot == folder)
        && Pipeline::open(folder).is_ok_and(|pipeline| pipeline.components.iter().any(is_ours))
}
