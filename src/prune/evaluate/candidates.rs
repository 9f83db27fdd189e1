//! The networks of an evaluation: checks that they have the same interface, and measures their costs.

use std::path::Path;

use super::super::gradients::threads;
use super::super::network::Network;
use super::EvaluateOptions;
use crate::analysis::analyse;
use crate::diffusion::{Denoiser, noise};
use crate::error::Error;
use crate::graph::sizes::{Sizes, sizes_for};
use crate::macs::Cost;
use crate::runtime::{Latency, Runtime, RuntimeError, SessionOptions, check_memory, interleaved_latency};

/// Latency measurement: number of rounds, number of warm-up rounds, and seconds for each network.
const LATENCY_RUNS: usize = 30;
const WARMUP: usize = 3;
const LATENCY_SECONDS: f64 = 3.0;

/// The networks; the original is the first.
pub(super) struct Candidates<'a> {
    pub(super) all: &'a [Network],
    pub(super) runtime: &'a Runtime,
    pub(super) sessions: SessionOptions,
}

impl<'a> Candidates<'a> {
    /// # Errors
    /// Fails if a network has other inputs or sample sizes than the original.
    pub(super) fn new(all: &'a [Network], runtime: &'a Runtime, options: &EvaluateOptions) -> Result<Self, Error> {
        let sessions = SessionOptions {
            device: options.device,
            allow_fallback: options.allow_fallback,
            threads: threads(&*options.ranks),
            ..SessionOptions::default()
        };
        let this = Self { all, runtime, sessions };
        let ports = |network: &Network| -> Result<Vec<(String, Vec<usize>)>, Error> {
            let view = network.view();
            let roles = view.roles();
            let sizes = roles.sizes(view.known.2, view.sizes(), roles.fixed_batch().unwrap_or(1));
            let mut ports = vec![("the sample".to_owned(), roles.sample.dims(&sizes)?)];
            for port in roles.conditioning_ports() {
                ports.push((format!("input {:?}", port.name), port.dims(&sizes)?));
            }
            ports.sort();
            Ok(ports)
        };
        let wanted = ports(this.original()).map_err(|error| error.in_file(this.path(0)))?;
        for (at, network) in all.iter().enumerate().skip(1) {
            let found = ports(network).map_err(|error| error.in_file(this.path(at)))?;
            if found != wanted {
                let text = |ports: &[(String, Vec<usize>)]| -> String {
                    ports.iter().map(|(name, dims)| format!("{name} {dims:?}")).collect::<Vec<_>>().join(", ")
                };
                let text =
                    format!("expected the same inputs as the original, {}, found {}", text(&wanted), text(&found));
                return Err(Error::usage(text)
                    .in_file(this.path(at))
                    .hint("give the network that it was pruned from with --original"));
            }
        }
        Ok(this)
    }

    pub(super) fn original(&self) -> &'a Network {
        &self.all[0]
    }

    pub(super) fn path(&self, at: usize) -> &'a Path {
        self.all[at].view().path()
    }

    /// Opens a network in a session, for batches of this many samples.
    pub(super) fn denoiser(&self, at: usize, batch: usize) -> Result<Denoiser, Error> {
        self.all[at].view().denoiser_on(self.runtime, batch, &self.sessions)
    }

    /// Returns the batch size of single runs: one, or the size that the graph fixes.
    fn least_batch(&self) -> usize {
        self.original().view().roles().fixed_batch().unwrap_or(1)
    }

    /// Returns the sizes at which networks are counted and timed.
    pub(super) fn sizes(&self) -> Sizes {
        self.sizes_of(self.original())
    }

    fn sizes_of(&self, network: &Network) -> Sizes {
        let view = network.view();
        view.roles().sizes(view.known.2, view.sizes(), self.least_batch())
    }

    /// Returns the cost of a network, and the bytes of its files.
    ///
    /// # Errors
    /// Fails if the model contradicts itself, or if an external file has disappeared.
    pub(super) fn cost(&self, at: usize) -> Result<(Cost, u64), Error> {
        let model = self.all[at].view().known.0;
        let analysis = analyse(model)?;
        let sizes = sizes_for(&analysis.facts, &self.sizes_of(&self.all[at]));
        Ok((analysis.count(|counter| counter.cost(None, &sizes)), model.total_bytes()?))
    }

    /// Returns why latencies can't be measured, if so. Networks are timed in turn, so all must fit into memory at once.
    ///
    /// # Errors
    /// Fails if an external file has disappeared.
    pub(super) fn without_latency(&self) -> Result<Option<String>, Error> {
        let mut needed = 0u64;
        for network in self.all {
            needed = needed.saturating_add(network.view().needed(self.least_batch())?);
        }
        let refused = check_memory(needed).err();
        Ok(refused.map(|text| {
            format!("latencies were not measured, since this needs all networks in memory at once: {text}")
        }))
    }

    /// Measures the latency of one run of each network, in turn.
    ///
    /// # Errors
    /// Fails if a network does not run.
    pub(super) fn latencies(&self, seed: u64) -> Result<Vec<Latency>, Error> {
        let batch = self.least_batch();
        let conditioning = self.original().view().conditioning(batch, seed)?;
        let numbers: Vec<usize> = (0..batch).collect();
        let (mut sessions, mut inputs) = (Vec::new(), Vec::new());
        for (at, network) in self.all.iter().enumerate() {
            let mut denoiser = self.denoiser(at, batch)?;
            denoiser.set_conditioning(&conditioning, &numbers)?;
            let process = &network.view().configured().process;
            let levels = process.schedule.levels();
            let x = noise(denoiser.dims(), batch, 0);
            inputs.push(denoiser.inputs(process, &x, &levels[levels.len() / 2])?.to_vec());
            sessions.push(denoiser.into_session());
        }
        let mut sessions: Vec<_> = sessions.iter_mut().collect();
        let inputs: Vec<_> = inputs.iter().map(Vec::as_slice).collect();
        let seconds = LATENCY_SECONDS * self.all.len() as f64;
        let fail = |error: RuntimeError| Error::unmet(error.to_string()).caused_by(error);
        interleaved_latency(&mut sessions, &inputs, LATENCY_RUNS, WARMUP, seconds).map_err(fail)
    }
}
