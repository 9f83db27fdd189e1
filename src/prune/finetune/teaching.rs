//! The teacher of a run, and the comparison of the network with it.

use super::super::model::Analysis;
use super::super::network::Denoising;
use super::settings::FinetuneSettings;
use crate::analysis;
use crate::diffusion::Noising;
use crate::error::Error;
use crate::finetune::draw::Draws;
use crate::finetune::features::{Correspondence, Feature};
use crate::finetune::objective::Objective;
use crate::finetune::teacher::{Teacher, check_interface};
use crate::finetune::teaching::Teaching;
use crate::finetune::trainer::CleanSamples;
use crate::runtime::{Runtime, SessionOptions};

/// The teacher of a run, and the values that are compared with it.
pub(super) struct TeacherSetup {
    /// The teacher. `None`: there is none.
    pub(super) teacher: Option<Analysis>,
    /// The loss.
    pub(super) objective: Objective,
    /// The intermediate values that are compared.
    pub(super) features: Vec<Feature>,
    /// Number of samples in a run of the graph, including perturbed copies.
    pub(super) batch: usize,
}

impl TeacherSetup {
    /// Analyses the teacher of the settings.
    ///
    /// # Errors
    /// Fails if its file is not valid.
    pub(super) fn teacher(settings: &FinetuneSettings) -> Result<Option<Analysis>, Error> {
        match (&settings.teacher, &settings.cut) {
            (None, _) => Ok(None),
            (Some(_), Some(cut)) => Ok(Some(cut.analysis().clone())),
            (Some(teacher), None) => teacher.analyse().map(Some),
        }
    }

    /// Prepares what the settings request; `micro_batch` is the number of samples in a run.
    ///
    /// # Errors
    /// Fails if the teacher has another interface, intermediate values have no counterpart, or derivatives are
    /// requested of a network that fixes its batch.
    pub(super) fn new(
        settings: &FinetuneSettings,
        teacher: Option<Analysis>,
        (student, network): (&analysis::Analysis, Denoising<'_>),
        micro_batch: usize,
    ) -> Result<Self, Error> {
        let roles = network.roles();
        let mut objective = settings.objective;
        let Some(of) = &teacher else {
            let asked =
                [("--distill-features", settings.features.is_some()), ("--distill-jacobian", objective.jacobian > 0.0)];
            if let Some((name, _)) = asked.into_iter().find(|(_, is_asked)| *is_asked) {
                return Err(Error::usage(format!("{name} needs a teacher, found none"))
                    .hint("give the teacher network with --teacher"));
            }
            objective.distill = 0.0;
            return Ok(Self { teacher, objective, features: Vec::new(), batch: micro_batch });
        };
        check_interface(&of.0, student, &roles.prediction.name)?;
        if objective.parts() > 1
            && let Some(fixed) = roles.fixed_batch()
        {
            let text = format!(
                "--distill-jacobian runs three samples for each sample, but the network fixes its batch size at {fixed}"
            );
            return Err(Error::unsupported(text)
                .in_file(student.model.path())
                .hint("export the network with a symbolic batch, or omit --distill-jacobian"));
        }
        let batch = objective.parts() * micro_batch;
        let features = match settings.features.as_ref().filter(|_| objective.features > 0.0) {
            None => Vec::new(),
            Some(choice) => {
                let sizes = |of: &analysis::Analysis| roles.sizes(&of.facts, network.sizes(), batch);
                let kept = settings.cut.as_ref().map(|cut| &cut.rewritten().kept);
                Correspondence::new((&of.0, &sizes(&of.0)), (student, &sizes(student)), kept)?.features(choice)?
            }
        };
        Ok(Self { teacher, objective, features, batch })
    }

    /// Returns the names of the intermediate values.
    pub(super) fn names(&self) -> Vec<String> {
        self.features.iter().map(|feature| feature.name.clone()).collect()
    }

    /// Loads the teacher, if it is needed. `data` returns the first samples of the run; noise is added to them to find
    /// the directions of derivatives.
    ///
    /// # Errors
    /// Fails if ONNX Runtime refuses the teacher, or if data can't be read.
    pub(super) fn teaching<'d>(
        &self,
        runtime: &Runtime,
        network: Denoising<'_>,
        (noising, draws): (&Noising<'_>, &Draws),
        session: &SessionOptions,
        data: &mut dyn FnMut() -> Result<Box<dyn CleanSamples + 'd>, Error>,
    ) -> Result<Option<Teaching>, Error> {
        let is_asked = self.objective.needs_teacher(!self.features.is_empty());
        let Some(of) = self.teacher.as_ref().filter(|_| is_asked) else { return Ok(None) };
        let at = (network.roles(), network.sizes(), self.batch);
        let teacher = Teacher::new(runtime, &of.0, at, &self.features, session)?;
        let teaching = Teaching::new(teacher, self.features.clone());
        if self.objective.jacobian == 0.0 {
            return Ok(Some(teaching));
        }
        teaching.compare_derivatives((noising, draws), &mut *data()?).map(Some)
    }
}
