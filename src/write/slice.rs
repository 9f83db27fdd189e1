//! Slicing of tensors: kept indices along some axes, streamed.

use std::io::Write;

use bytes::Bytes;

use crate::error::Error;
use crate::load::{Model, element_size};
use crate::onnx::TensorProto;

/// Bytes that are gathered before they are handed to the file.
const BUFFER: usize = 1 << 20;

/// A tensor with kept indices, not yet sliced.
pub(crate) struct Sliced {
    data: Bytes,
    dims: Vec<usize>,
    element: usize,
    axes: Vec<Option<Vec<usize>>>,
}

impl Sliced {
    /// Prepares to slice a tensor.
    ///
    /// # Errors
    /// An element type of less than a byte, unreadable data, an axis or index that does not exist.
    pub(crate) fn new(model: &Model, tensor: &TensorProto, axes: &[(usize, Vec<usize>)]) -> Result<Self, Error> {
        let fail = |message: String| Error::input(model.path(), format!("tensor {:?}: {message}", tensor.name));
        let element = element_size(tensor).map_err(fail)?;
        let dims: Vec<usize> = tensor.dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
        let mut kept = vec![None; dims.len()];
        for (axis, indices) in axes {
            let size = dims.get(*axis).ok_or_else(|| fail(format!("it has no axis {axis}")))?;
            if let Some(index) = indices.iter().find(|index| *index >= size) {
                return Err(fail(format!("axis {axis} of size {size} has no index {index}")));
            }
            kept[*axis] = Some(indices.clone());
        }
        let data = model.tensor_view(tensor)?;
        let needed = dims.iter().product::<usize>() * element;
        if data.len() != needed {
            return Err(fail(format!("expected {needed} bytes, found {}", data.len())));
        }
        Ok(Self { data, dims, element, axes: kept })
    }

    /// The sizes after slicing.
    pub(crate) fn dims(&self) -> Vec<i64> {
        self.sizes().map(|size| i64::try_from(size).unwrap_or(i64::MAX)).collect()
    }

    fn sizes(&self) -> impl Iterator<Item = usize> + '_ {
        self.dims.iter().zip(&self.axes).map(|(size, kept)| kept.as_ref().map_or(*size, Vec::len))
    }

    /// Bytes after slicing.
    pub(crate) fn len(&self) -> u64 {
        self.sizes().product::<usize>() as u64 * self.element as u64
    }

    /// Writes the kept elements in row-major order.
    pub(crate) fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        if self.axes.iter().all(Option::is_none) {
            return out.write_all(&self.data);
        }
        let mut buffer = Vec::with_capacity(BUFFER + 4096);
        self.visit(0, 0, &mut |run: &[u8]| {
            if run.len() >= BUFFER {
                out.write_all(&buffer)?;
                buffer.clear();
                return out.write_all(run);
            }
            buffer.extend_from_slice(run);
            if buffer.len() >= BUFFER {
                out.write_all(&buffer)?;
                buffer.clear();
            }
            Ok(())
        })?;
        out.write_all(&buffer)
    }

    /// Calls `emit` with every contiguous run of kept bytes below `offset` (in bytes) of axis `axis`.
    fn visit(
        &self,
        axis: usize,
        offset: usize,
        emit: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let stride = self.dims[axis + 1..].iter().product::<usize>() * self.element;
        let is_last = self.axes[axis + 1..].iter().all(Option::is_none);
        match &self.axes[axis] {
            None if is_last => emit(&self.data[offset..offset + self.dims[axis] * stride]),
            None => (0..self.dims[axis]).try_for_each(|at| self.visit(axis + 1, offset + at * stride, emit)),
            Some(kept) if is_last => {
                // Neighbouring indices make one run.
                let mut at = 0;
                while at < kept.len() {
                    let mut end = at + 1;
                    while end < kept.len() && kept[end] == kept[end - 1] + 1 {
                        end += 1;
                    }
                    let start = offset + kept[at] * stride;
                    emit(&self.data[start..start + (end - at) * stride])?;
                    at = end;
                }
                Ok(())
            }
            Some(kept) => kept.iter().try_for_each(|at| self.visit(axis + 1, offset + at * stride, emit)),
        }
    }
}

/// The kept elements of row-major data; `axes` names kept indices by axis.
pub fn slice_bytes(data: &[u8], dims: &[usize], element: usize, axes: &[(usize, Vec<usize>)]) -> Vec<u8> {
    let mut kept = vec![None; dims.len()];
    for (axis, indices) in axes {
        kept[*axis] = Some(indices.clone());
    }
    let sliced = Sliced { data: Bytes::copy_from_slice(data), dims: dims.to_vec(), element, axes: kept };
    let mut result = Vec::new();
    // Writing to memory does not fail.
    let _ = sliced.write(&mut result);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_axes_matches_a_naive_gather() {
        let dims = [3, 4, 2, 2];
        let data: Vec<u8> = (0..48).collect();
        let choices: [&[(usize, Vec<usize>)]; 5] = [
            &[(0, vec![0, 2])],
            &[(1, vec![1, 2, 3])],
            &[(0, vec![1]), (1, vec![0, 3])],
            &[(3, vec![1])],
            &[(0, vec![2, 0]), (2, vec![1]), (3, vec![0])],
        ];
        for axes in choices {
            let all: Vec<Vec<usize>> = (0..4)
                .map(|axis| axes.iter().find(|(at, _)| *at == axis).map_or((0..dims[axis]).collect(), |(_, k)| k.clone()))
                .collect();
            let mut expected = Vec::new();
            for a in &all[0] {
                for b in &all[1] {
                    for c in &all[2] {
                        for d in &all[3] {
                            expected.push(data[((a * 4 + b) * 2 + c) * 2 + d]);
                        }
                    }
                }
            }
            assert_eq!(slice_bytes(&data, &dims, 1, axes), expected, "{axes:?}");
        }
    }
}
