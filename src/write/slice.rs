//! Slicing of tensors: streams the kept indices along some axes.
//!
//! If two axes are cut, the kept bytes of a tensor are short runs of equal length: an element of a matrix, the nine
//! weights of a 3x3 kernel. Therefore, adjacent axes that are kept whole are merged first. Then rows are gathered into
//! one buffer with copies whose length the compiler knows.

use std::borrow::Cow;
use std::io::Write;

use crate::error::Error;
use crate::graph::model::Model;
use crate::graph::tensor::element_size;
use crate::onnx::TensorProto;

/// Size in bytes of the buffer that is passed to the file.
const BUFFER: usize = 1 << 20;

/// A tensor with kept indices, not yet sliced.
#[derive(Debug)]
pub(crate) struct Sliced<'m> {
    model: &'m Model,
    tensor: &'m TensorProto,
    dims: Vec<i64>,
    bytes: u64,
    /// The cut. `None`: everything is copied.
    cut: Option<Cut>,
}

impl<'m> Sliced<'m> {
    /// Prepares the slicing of a tensor. Elements of less than a byte can be copied but not sliced.
    ///
    /// # Errors
    /// The element type can't be sliced, the data can't be read, or an axis or index does not exist.
    pub(crate) fn new(model: &'m Model, tensor: &'m TensorProto, axes: &[(usize, Vec<usize>)]) -> Result<Self, Error> {
        let fail = |message: String| Error::invalid(model.path(), format!("tensor {:?}: {message}", tensor.name));
        let found = model.tensor_bytes(tensor)?.len();
        if axes.is_empty() {
            return Ok(Self { model, tensor, dims: tensor.dims.clone(), bytes: found as u64, cut: None });
        }
        let element = element_size(tensor).map_err(fail)?;
        let sizes: Option<Vec<usize>> = tensor.dims.iter().map(|size| usize::try_from(*size).ok()).collect();
        let sizes = sizes.ok_or_else(|| fail(format!("its shape {:?} can't be sliced", tensor.dims)))?;
        for (axis, indices) in axes {
            let size = sizes.get(*axis).ok_or_else(|| fail(format!("it has no axis {axis}")))?;
            if let Some(index) = indices.iter().find(|index| *index >= size) {
                return Err(fail(format!("axis {axis} of size {size} has no index {index}")));
            }
        }
        let cut = Cut::new(&sizes, element, axes);
        if cut.source_bytes() != Some(found) {
            let text = format!("its data of {found} bytes does not fill its shape {:?}", tensor.dims);
            return Err(fail(text));
        }
        let dims = sliced_dims(&tensor.dims, axes);
        Ok(Self { model, tensor, dims, bytes: cut.kept_bytes(), cut: Some(cut) })
    }

    /// Returns the sizes after slicing.
    pub(crate) fn dims(&self) -> &[i64] {
        &self.dims
    }

    /// Returns the size in bytes after slicing.
    pub(crate) fn len(&self) -> u64 {
        self.bytes
    }

    /// Writes the kept elements in row-major order.
    pub(crate) fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let data: Cow<'_, [u8]> = self.model.tensor_bytes(self.tensor).map_err(std::io::Error::other)?;
        match &self.cut {
            None => out.write_all(&data),
            Some(cut) => cut.write(&data, out),
        }
    }
}

/// Returns the sizes of a tensor after slicing.
pub(super) fn sliced_dims(dims: &[i64], axes: &[(usize, Vec<usize>)]) -> Vec<i64> {
    let mut dims = dims.to_vec();
    for (axis, indices) in axes {
        if let Some(size) = dims.get_mut(*axis) {
            *size = i64::try_from(indices.len()).unwrap_or(i64::MAX);
        }
    }
    dims
}

/// Kept indices along the axes of row-major data.
#[derive(Debug)]
struct Cut {
    /// Outer axes first. Adjacent axes that are kept whole are merged, and those below the last cut are part of
    /// `block`.
    axes: Vec<Axis>,
    /// Size in bytes of the blocks that are always kept together.
    block: usize,
}

#[derive(Debug)]
struct Axis {
    size: usize,
    kept: Option<Vec<usize>>,
}

impl Axis {
    fn count(&self) -> usize {
        self.kept.as_ref().map_or(self.size, Vec::len)
    }

    fn index(&self, at: usize) -> usize {
        self.kept.as_ref().map_or(at, |kept| kept[at])
    }
}

impl Cut {
    fn new(sizes: &[usize], element: usize, cuts: &[(usize, Vec<usize>)]) -> Self {
        let mut axes: Vec<Axis> = Vec::new();
        for (axis, &size) in sizes.iter().enumerate() {
            // If an axis is listed twice, the last entry counts.
            let kept = cuts.iter().rfind(|(at, _)| *at == axis).map(|(_, kept)| kept.clone());
            match (axes.last_mut(), kept) {
                (Some(Axis { size: outer, kept: None }), None) => *outer = outer.saturating_mul(size),
                (_, kept) => axes.push(Axis { size, kept }),
            }
        }
        let whole = axes.pop_if(|axis| axis.kept.is_none()).map_or(1, |axis| axis.size);
        Self { axes, block: element.saturating_mul(whole) }
    }

    fn source_bytes(&self) -> Option<usize> {
        self.axes.iter().try_fold(self.block, |bytes, axis| bytes.checked_mul(axis.size))
    }

    fn kept_bytes(&self) -> u64 {
        self.axes.iter().map(|axis| axis.count() as u64).product::<u64>() * self.block as u64
    }

    fn write(&self, data: &[u8], out: &mut dyn Write) -> std::io::Result<()> {
        let Some((row, outer)) = self.axes.split_last() else {
            return out.write_all(data);
        };
        if self.kept_bytes() == 0 {
            return Ok(());
        }
        let indices = row.kept.clone().unwrap_or_else(|| (0..row.size).collect());
        let runs = runs(&indices, self.block);
        let row_bytes = row.size * self.block;
        let mut buffer = Vec::with_capacity(BUFFER + (1 << 16));
        let mut counters = vec![0; outer.len()];
        loop {
            let at = outer.iter().zip(&counters).fold(0, |at, (axis, &counter)| at * axis.size + axis.index(counter));
            self.gather(&data[at * row_bytes..(at + 1) * row_bytes], &indices, &runs, &mut buffer, out)?;
            // Advances to the next row. The innermost counter changes fastest.
            let Some(axis) = (0..outer.len()).rev().find(|&axis| counters[axis] + 1 < outer[axis].count()) else {
                return out.write_all(&buffer);
            };
            counters[axis] += 1;
            counters[axis + 1..].fill(0);
        }
    }

    /// Appends the kept blocks of one row. Writes the buffer out whenever it is full.
    fn gather(
        &self,
        row: &[u8],
        indices: &[usize],
        runs: &[(usize, usize)],
        buffer: &mut Vec<u8>,
        out: &mut dyn Write,
    ) -> std::io::Result<()> {
        // Long runs are copied as a whole, short ones block by block in copies of known length.
        let is_long = runs.len() * 4 <= indices.len() || self.block >= 128;
        if is_long {
            for &(start, length) in runs {
                if buffer.len() + length > BUFFER {
                    flush(buffer, out)?;
                }
                if length > BUFFER {
                    out.write_all(&row[start..start + length])?;
                } else {
                    buffer.extend_from_slice(&row[start..start + length]);
                }
            }
            return Ok(());
        }
        for part in indices.chunks(BUFFER / 128) {
            if buffer.len() + part.len() * self.block > BUFFER {
                flush(buffer, out)?;
            }
            match self.block {
                1 => blocks::<1>(row, part, buffer),
                2 => blocks::<2>(row, part, buffer),
                4 => blocks::<4>(row, part, buffer),
                8 => blocks::<8>(row, part, buffer),
                16 => blocks::<16>(row, part, buffer),
                // 3x3 kernels in half and single precision.
                18 => blocks::<18>(row, part, buffer),
                36 => blocks::<36>(row, part, buffer),
                block => part.iter().for_each(|&at| buffer.extend_from_slice(&row[at * block..(at + 1) * block])),
            }
        }
        Ok(())
    }
}

fn flush(buffer: &mut Vec<u8>, out: &mut dyn Write) -> std::io::Result<()> {
    out.write_all(buffer)?;
    buffer.clear();
    Ok(())
}

/// Returns runs of consecutive indices as start and length in bytes.
fn runs(indices: &[usize], block: usize) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &index in indices {
        match runs.last_mut() {
            Some((start, length)) if *start + *length == index * block => *length += block,
            _ => runs.push((index * block, block)),
        }
    }
    runs
}

/// Appends blocks of `N` bytes.
fn blocks<const N: usize>(row: &[u8], indices: &[usize], buffer: &mut Vec<u8>) {
    let (source, _) = row.as_chunks::<N>();
    let start = buffer.len();
    buffer.resize(start + indices.len() * N, 0);
    let (target, _) = buffer[start..].as_chunks_mut::<N>();
    for (block, &at) in target.iter_mut().zip(indices) {
        *block = source[at];
    }
}

/// Returns the kept elements of row-major data. `axes` lists the kept indices by axis.
///
/// # Panics
/// If an axis or index does not exist or the data does not fill its shape.
pub fn slice_bytes(data: &[u8], dims: &[usize], element: usize, axes: &[(usize, Vec<usize>)]) -> Vec<u8> {
    let mut result = Vec::new();
    // Writing to memory does not fail.
    let _ = Cut::new(dims, element, axes).write(data, &mut result);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns the kept elements one by one, following the definition.
    fn naive(data: &[u8], dims: &[usize], element: usize, axes: &[(usize, Vec<usize>)]) -> Vec<u8> {
        let all: Vec<Vec<usize>> = (0..dims.len())
            .map(|axis| axes.iter().find(|(at, _)| *at == axis).map_or((0..dims[axis]).collect(), |(_, k)| k.clone()))
            .collect();
        let mut places = vec![0];
        for (axis, kept) in all.iter().enumerate() {
            places = places.iter().flat_map(|at| kept.iter().map(move |index| at * dims[axis] + index)).collect();
        }
        places.iter().flat_map(|at| data[at * element..(at + 1) * element].to_vec()).collect()
    }

    #[allow(clippy::type_complexity)]
    fn cases() -> impl Strategy<Value = (Vec<usize>, usize, Vec<(usize, Vec<usize>)>)> {
        let dims = prop::collection::vec(1..7_usize, 0..5);
        (dims, prop::sample::select(vec![1_usize, 2, 3, 4, 8, 16])).prop_flat_map(|(dims, element)| {
            let axes: Vec<_> = dims
                .iter()
                .enumerate()
                .map(|(axis, size)| {
                    prop::option::of(prop::collection::vec(0..*size, 0..8))
                        .prop_map(move |kept| kept.map(|k| (axis, k)))
                })
                .collect();
            (Just(dims), Just(element), axes.prop_map(|axes| axes.into_iter().flatten().collect()))
        })
    }

    proptest! {
        #[test]
        fn any_cut_matches_a_naive_gather((dims, element, axes) in cases()) {
            let length = dims.iter().product::<usize>() * element;
            let data: Vec<u8> = (0..length).map(|i| (i * 31 + i / 251) as u8).collect();
            prop_assert_eq!(slice_bytes(&data, &dims, element, &axes), naive(&data, &dims, element, &axes));
        }
    }

    #[test]
    fn tensors_larger_than_the_buffer_are_gathered_in_parts() {
        let element = 4;
        for dims in [vec![3, 400_000], vec![600, 20, 3, 3], vec![2, 3, 200_000], vec![5000, 64]] {
            let data: Vec<u8> = (0..dims.iter().product::<usize>() * element).map(|i| (i % 251) as u8).collect();
            let every_other = |axis: usize| (axis, (0..dims[axis]).step_by(2).collect::<Vec<_>>());
            for axes in [vec![every_other(1)], vec![every_other(0)], vec![every_other(0), every_other(1)]] {
                assert!(slice_bytes(&data, &dims, element, &axes) == naive(&data, &dims, element, &axes), "{dims:?}");
            }
        }
    }
}
