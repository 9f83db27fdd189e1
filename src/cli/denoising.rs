//! A network that denoises, opened as its options say: what `loss` and `sample` begin with.

use std::path::{Path, PathBuf};

use super::config::{check_sizes, parse_sizes};
use super::diffusion_args::DiffusionArgs;
use super::printer::Printer;
use super::prune::read_inputs;
use crate::array::Array;
use crate::diffusion::{Conditioning, ConfiguredProcess, Denoiser, Roles};
use crate::error::Error;
use crate::graph::Graph;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::sizes::{Sizes, sizes_for};
use crate::infer::infer;
use crate::inputs::check_names;
use crate::load::load;
use crate::ops;
use crate::runtime::{Runtime, SessionOptions};

/// A network, what its inputs and outputs stand for, and how it was trained.
pub(super) struct Network {
    model: Model,
    graph: Graph,
    facts: Facts,
    sizes: Sizes,
    given: Option<Vec<(String, Array)>>,
    pub(super) roles: Roles,
    pub(super) configured: ConfiguredProcess,
}

impl Network {
    /// Reads the network at `input`; `given` is a file with its conditioning, `size` holds `NAME=N`, `data` samples whose
    /// sizes are taken where none are named.
    pub(super) fn open(
        input: &Path,
        given: Option<&PathBuf>,
        (size, data): (&[String], Option<&Path>),
        diffusion: &DiffusionArgs,
        printer: &Printer,
    ) -> Result<Self, Error> {
        let given = given.map(|path| read_inputs(path)).transpose()?;
        let model = load(input)?;
        let graph = Graph::new(&model)?;
        check_names(&model, &graph, given.as_deref().unwrap_or_default())?;
        let facts = infer(&model, &graph, &ops::parse(&graph))?;
        let sizes = parse_sizes(size)?;
        check_sizes(&sizes, &sizes_for(&facts, &sizes), input)?;
        let roles = Roles::recognise(&model, &graph, &facts, &diffusion.role_names())?;
        let configured = diffusion.process(&roles)?;
        configured.notes.iter().for_each(|note| printer.warning(note));
        let sizes = roles.sizes_with_arrays(&sizes, data, given.as_deref().unwrap_or_default())?;
        Ok(Self { model, graph, facts, sizes, given, roles, configured })
    }

    /// The values of its other inputs, and the network in a session, for this many samples at once.
    pub(super) fn start(&self, runtime: &Runtime, batch: usize, seed: u64) -> Result<(Conditioning, Denoiser), Error> {
        let path = self.model.path();
        let in_file = |error: Error| error.in_file(path);
        let known = (&self.model, &self.graph, &self.facts);
        let conditioning = Conditioning::new(known, &self.roles, self.given.as_deref(), (&self.sizes, batch), seed)
            .map_err(in_file)?;
        let session = runtime
            .session_from_file(path, &SessionOptions::default())
            .map_err(|error| Error::invalid(path, error.to_string()).caused_by(error))?;
        let denoiser = Denoiser::new(session, &self.roles, &self.facts, &self.sizes, batch).map_err(in_file)?;
        Ok((conditioning, denoiser))
    }

    /// Says what was taken for what, and the process.
    pub(super) fn describe(&self, conditioning: &Conditioning, printer: &Printer) {
        if !printer.is_json() {
            let process = &self.configured.process;
            let lines = self.roles.lines(process, |name| conditioning.is_given(name));
            printer.note(&format!("{}\nprocess:      {}", lines.join("\n"), process.describe()));
        }
    }
}
