//! Committed networks and arrays for the tests of diffusion.

use ndarray::ArrayD;
use onnx_diffprune::array::Array;
use onnx_diffprune::diffusion::{Conditioning, Denoiser, RoleNames, Roles};
use onnx_diffprune::graph::Graph;
use onnx_diffprune::graph::facts::Facts;
use onnx_diffprune::graph::model::Model;
use onnx_diffprune::graph::sizes::Sizes;
use onnx_diffprune::infer::infer;
use onnx_diffprune::load::load;
use onnx_diffprune::npz;
use onnx_diffprune::runtime::SessionOptions;

use crate::support::fixtures::{THREADS, fixture, runtime};

pub(super) fn floats(array: &Array) -> ArrayD<f32> {
    let values = array.to_f64().into_iter().map(|value| value as f32).collect();
    ArrayD::from_shape_vec(array.dims.clone(), values).unwrap()
}

/// The arrays of a fixture, by name.
pub(super) struct Arrays(Vec<(String, Array)>);

impl Arrays {
    pub(super) fn read(name: &str) -> Self {
        Self(npz::read(&fixture(name)).unwrap())
    }

    pub(super) fn get(&self, name: &str) -> Option<&Array> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, array)| array)
    }

    pub(super) fn floats(&self, name: &str) -> ArrayD<f32> {
        floats(self.get(name).unwrap_or_else(|| panic!("{name}")))
    }
}

/// A committed network, with the inferred facts about its values.
pub(super) struct Network {
    pub(super) model: Model,
    pub(super) graph: Graph,
    pub(super) facts: Facts,
}

impl Network {
    pub(super) fn new(name: &str) -> Self {
        let model = load(&fixture(name)).unwrap();
        let graph = Graph::new(&model).unwrap();
        let facts = infer(&model, &graph, &onnx_diffprune::ops::parse(&graph)).unwrap();
        Self { model, graph, facts }
    }

    pub(super) fn roles(&self) -> Roles {
        Roles::recognise(&self.model, &self.graph, &self.facts, &RoleNames::default()).unwrap()
    }

    /// Returns a denoiser for batches of this size. Its inputs other than samples are random.
    pub(super) fn denoiser(&self, batch: usize) -> (Denoiser, Conditioning) {
        self.denoiser_given(&[], batch)
    }

    /// Returns a denoiser with given values of other inputs.
    pub(super) fn denoiser_given(&self, given: &[(String, Array)], batch: usize) -> (Denoiser, Conditioning) {
        let options = SessionOptions { threads: THREADS, ..SessionOptions::default() };
        let session = runtime().session_from_file(self.model.path(), &options).unwrap();
        let (roles, sizes) = (self.roles(), Sizes::new());
        let parts = (&self.model, &self.graph, &self.facts);
        let conditioning = Conditioning::new(parts, &roles, Some(given), (&sizes, batch), 0).unwrap();
        (Denoiser::new(session, &roles, &self.facts, &sizes, batch).unwrap(), conditioning)
    }
}
