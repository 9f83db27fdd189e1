//! Held-out rows, from which the ridge of a fit is chosen.
//!
//! Layers of the time path have only one distinct row per timestep. If they have more columns than there are timesteps, a
//! fit with a small ridge matches all of these rows exactly and is far off between them. Every eighth chunk of samples,
//! which is every eighth timestep, is therefore held out. The ridge is raised while that lowers the error there, and a
//! fit that does not lower the error there is rejected.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::shared::of_all;
use super::solve::{Centred, Solution};
use crate::collective::Collective;
use crate::error::Error;

/// The held-out rows of one group of a layer.
#[derive(Debug)]
pub(super) struct Held {
    columns: usize,
    outputs: usize,
    chunks: Vec<Chunk>,
}

#[derive(Debug)]
struct Chunk {
    /// The index of the use of the weights.
    number: usize,
    /// The inputs, of shape `[rows, columns]`.
    x: Vec<f32>,
    /// The residual of the targets with the old weights, of shape `[rows, outputs]`.
    r: Vec<f32>,
    weight: f64,
}

impl Held {
    /// One of this many chunks is held out.
    pub(super) const EVERY: usize = 8;

    /// Approximate number of held-out rows of all chunks together.
    pub(super) const ROWS: usize = 4096;

    pub(super) fn new(columns: usize, outputs: usize) -> Self {
        Self { columns, outputs, chunks: Vec::new() }
    }

    pub(super) fn add(&mut self, number: usize, x: Vec<f32>, r: Vec<f32>, weight: f64) {
        self.chunks.push(Chunk { number, x, r, weight });
    }

    /// Collects the rows of all ranks, in the order of the ranks.
    ///
    /// # Errors
    /// A rank has stopped.
    pub(super) fn share(&mut self, ranks: &dyn Collective) -> Result<(), Error> {
        let (mut headings, mut values): (Vec<[u64; 3]>, Vec<f32>) = (Vec::new(), Vec::new());
        for chunk in &self.chunks {
            headings.push([chunk.number as u64, chunk.weight.to_bits(), chunk.r.len() as u64]);
            values.extend(chunk.x.iter().chain(&chunk.r));
        }
        let headings = of_all(ranks, bytemuck::cast_slice(&headings).to_vec())?.concat();
        let values = of_all(ranks, bytemuck::cast_slice(&values).to_vec())?.concat();
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(&values);
        let mut rest = values.as_slice();
        self.chunks.clear();
        for [number, weight, length] in bytemuck::pod_collect_to_vec::<u8, [u64; 3]>(&headings) {
            let (number, length) = (number as usize, length as usize);
            let rows = length / self.outputs.max(1);
            let (x, after) = rest.split_at(rows * self.columns);
            let (r, after) = after.split_at(length);
            rest = after;
            self.chunks.push(Chunk { number, x: x.to_vec(), r: r.to_vec(), weight: f64::from_bits(weight) });
        }
        Ok(())
    }

    /// Returns the squared error of the old weights, or the error after a change of them.
    fn error(&self, change: Option<(&Centred, &Mat<f64>)>, par: Par) -> f64 {
        let narrow = change
            .map(|(_, change)| Mat::from_fn(self.columns, self.outputs, |row, output| change[(row, output)] as f32));
        let of = |chunk: &Chunk| {
            let mut left = chunk.r.clone();
            if let (Some((system, change)), Some(narrow)) = (change, &narrow) {
                let rows = left.len() / self.outputs.max(1);
                let x = MatRef::from_row_major_slice(&chunk.x, rows, self.columns);
                let into = MatMut::from_row_major_slice_mut(&mut left, rows, self.outputs);
                matmul(into, Accum::Add, x, narrow, -1.0, par);
                if let Some(bias) = system.bias(chunk.number, change) {
                    for row in left.chunks_exact_mut(self.outputs) {
                        row.iter_mut().zip(&bias).for_each(|(left, bias)| *left -= *bias as f32);
                    }
                }
            }
            chunk.weight * left.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>()
        };
        self.chunks.iter().map(of).sum()
    }

    /// Returns the solution with the lowest error on the held-out rows, for the ridge times 1, 10, 100 or 1000. `None`: no
    /// solution lowers the error both on these rows and on those of the fit.
    pub(super) fn best(&self, system: &mut Centred, ridge: f64, par: Par) -> Option<Solution> {
        let mut solve = |factor: f64| {
            let found = system.solve(ridge * factor, par);
            let found = found.filter(|found| found.after.is_finite() && found.after < found.before)?;
            let left = self.error(Some((system, &found.change)), par);
            Some((found, left))
        };
        if self.chunks.is_empty() {
            return solve(1.0).map(|(found, _)| found);
        }
        let before = self.error(None, par);
        let mut best: Option<(Solution, f64)> = None;
        for factor in [1.0, 10.0, 100.0, 1000.0] {
            let found = solve(factor).filter(|(_, left)| left.is_finite());
            match (found, &best) {
                (Some(found), None) => best = Some(found),
                (Some(found), Some((_, least))) if found.1 < *least => best = Some(found),
                (_, Some(_)) => break,
                (None, None) => {}
            }
        }
        best.filter(|(_, left)| *left < before).map(|(found, _)| found)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::solve::System;
    use super::*;

    /// Fits the first of four columns; the held-out rows follow the same map (`sign` 1) or the opposite one (-1).
    fn fitted(sign: f32) -> Option<Solution> {
        let columns = 4;
        let x = |seed: usize, rows: usize| -> Vec<f32> {
            (0..rows * columns).map(|at| (((at + seed) * 7919 % 997) as f32 / 498.5 - 1.0).sin()).collect()
        };
        let target = |x: &[f32], sign: f32| -> Vec<f32> { x.chunks(columns).map(|row| sign * row[0]).collect() };
        let (fit, other) = (x(1, 12), x(555, 40));
        let mut system = System::new(columns, 1, 12, &[false], u64::MAX);
        system.add(0, &fit, &target(&fit, 1.0), 1.0, Par::Seq);
        let mut held = Held::new(columns, 1);
        held.add(0, other.clone(), target(&other, sign), 1.0);
        held.best(&mut system.centred(Par::Seq), 1e-6, Par::Seq)
    }

    #[test]
    fn a_fit_that_generalises_is_accepted() {
        let found = fitted(1.0).unwrap();
        assert!((found.change[(0, 0)] - 1.0).abs() < 1e-3, "{:?}", found.change);
    }

    #[test]
    fn a_fit_that_does_not_generalise_is_rejected() {
        assert!(fitted(-1.0).is_none());
    }
}
