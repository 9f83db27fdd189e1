//! A single process.

use std::ops::Range;

use super::Collective;
use super::ranks::check_parts;
use crate::error::Error;

/// A single process: the only rank. A sum over all ranks is its own values.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn local_rank(&self) -> usize {
        0
    }

    fn local_size(&self) -> usize {
        1
    }

    fn sum(&self, _: &mut [f32]) -> Result<(), Error> {
        Ok(())
    }

    fn sum_f64(&self, _: &mut [f64]) -> Result<(), Error> {
        Ok(())
    }

    fn reduce_scatter(&self, values: &mut [f32], parts: &[Range<usize>]) -> Result<(), Error> {
        check_parts(parts, 1, values.len())
    }

    fn all_gather(&self, values: &mut [f32], parts: &[Range<usize>]) -> Result<(), Error> {
        check_parts(parts, 1, values.len())
    }

    fn broadcast(&self, _: &mut Vec<u8>, root: usize) -> Result<(), Error> {
        super::ranks::check_root(root, 1)
    }

    fn gather(&self, bytes: Vec<u8>) -> Result<Option<Vec<Vec<u8>>>, Error> {
        Ok(Some(vec![bytes]))
    }

    fn barrier(&self) -> Result<(), Error> {
        Ok(())
    }

    fn abort(&self, code: u8) -> ! {
        std::process::exit(code.into())
    }
}
