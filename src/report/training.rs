//! The parts of a page about a training, and the page of a training.

use std::fmt::Write;

use super::page::{samples, what_was_used};
use super::plots::{Curve, curves_over_time};
use super::style::{END, escape, head};
use super::{Drawings, TrainingPage, blocks, drawing};
use crate::prune::{FinetuneReport, StepEvaluation};

/// Returns the section of a training: the loss by step, and by timestep before and after.
pub(super) fn section(report: &FinetuneReport) -> String {
    let mut text = format!(
        "<h2>Training</h2>\n<p>{} of {} steps of {} samples on {} weights ({} elements). \
         <span class='soft'>{}</span></p>\n",
        report.steps,
        report.wanted_steps,
        report.batch,
        report.weights,
        report.elements,
        escape(&report.source)
    );
    let steps: Vec<&StepEvaluation> = report.evaluations.iter().filter(|of| !of.losses.is_empty()).collect();
    let best = steps.iter().find(|of| of.step == report.best_step);
    let (Some(first), Some(best)) = (steps.first(), best) else {
        return text + "<p>The losses were not measured: there were too few samples to hold some out.</p>\n";
    };
    let teacher = report.teacher.as_ref().filter(|of| !of.losses.is_empty());
    let _ = writeln!(
        text,
        "<p>Denoising loss on held-out samples: before {:.4}, after {:.4} (step {}){}.</p>",
        first.loss,
        best.loss,
        best.step,
        teacher.map_or_else(String::new, |of| format!(", teacher {:.4}", of.loss))
    );
    if steps.len() > 1 {
        let at: Vec<f64> = steps.iter().map(|of| of.step as f64).collect();
        let tuned: Vec<f64> = steps.iter().map(|of| of.loss).collect();
        let original: Vec<f64> = teacher.map(|of| vec![of.loss; at.len()]).unwrap_or_default();
        let mut curves: Vec<Curve<'_>> = vec![("tuned", "of-tuned", &tuned)];
        curves.extend(teacher.map(|_| ("teacher", "of-original", original.as_slice())));
        let _ = writeln!(text, "<figure>{}</figure>", curves_over_time(("step", "Loss over the steps"), &at, &curves));
    }
    text + &by_timestep(teacher, first, best)
}

fn by_timestep(teacher: Option<&StepEvaluation>, first: &StepEvaluation, best: &StepEvaluation) -> String {
    let at: Vec<f64> = first.losses.iter().map(|(t, _)| *t).collect();
    let of = |evaluation: &StepEvaluation| -> Vec<f64> { evaluation.losses.iter().map(|(_, loss)| *loss).collect() };
    let (original, before, after) = (teacher.map(of), of(first), of(best));
    if at.len() < 2 {
        return String::new();
    }
    let mut curves: Vec<Curve<'_>> = Vec::new();
    curves.extend(original.as_deref().map(|losses| ("teacher", "of-original", losses)));
    curves.extend([("before", "of-cut", before.as_slice()), ("tuned", "of-tuned", after.as_slice())]);
    let plot = curves_over_time(("timestep t", "Losses over timesteps, before and after training"), &at, &curves);
    format!("<h2>Loss by timestep</h2>\n<figure>{plot}</figure>\n")
}

impl TrainingPage<'_> {
    /// Returns the page as HTML.
    pub fn html(&self) -> String {
        let mut page = head(&self.title);
        let _ = writeln!(page, "<p class='soft'>{}</p>", escape(&self.tool));
        page += &samples(&self.drawings);
        page += &section(self.report);
        if let Some((plan, outline)) = self.cut {
            let _ = write!(page, "<h2>The network</h2>\n{}", drawing::network(outline));
            page += &blocks::block_table(outline, None);
            page += &blocks::groups(plan, Some(outline));
        }
        page += &what_was_used(&self.used, &self.command, self.cut.map(|(plan, _)| plan));
        page + END
    }
}

impl Drawings {
    /// Returns the samples of the teacher, and of the network before and after training.
    pub fn of_training(report: &FinetuneReport) -> Self {
        let before = report.evaluations.first();
        let best = report.evaluations.iter().find(|of| of.step == report.best_step).or(report.evaluations.last());
        let of = [("teacher", report.teacher.as_ref()), ("before", before), ("tuned", best.filter(|of| of.step > 0))];
        let mut drawings = Self::default();
        for (name, evaluation) in of {
            let Some((evaluation, values)) = evaluation.and_then(|of| Some((of, of.drawn.as_ref()?))) else { continue };
            let loss = (!evaluation.losses.is_empty()).then_some(evaluation.loss);
            drawings.add(name, (values, report.sample_range), loss);
        }
        if report.best_step == 0 && before.is_some_and(|of| !of.losses.is_empty()) {
            drawings.lines.push(
                "No training step lowered the loss, so the weights are those from before the training.".to_owned(),
            );
        }
        drawings
    }
}
