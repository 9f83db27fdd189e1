//! A weight of the cut at the size of the original's: its elements at the kept indices, and zeros elsewhere.

use std::io::{Error as IoError, Write};

use bytes::Bytes;

use crate::onnx::DataType;
use crate::operator::reference::KeptAxes;
use crate::write::WeightSource;

const ZEROS: [u8; 4096] = [0; 4096];

/// Elements that are scattered while they are written.
#[derive(Debug)]
pub(super) struct Scattered {
    data_type: DataType,
    /// The sizes of the original's weight.
    dims: Vec<i64>,
    /// For every axis up to the last that lost indices: for every index of the original, the one in the cut.
    axes: Vec<Vec<Option<usize>>>,
    /// Size in bytes of the contiguous elements below those axes.
    block: usize,
    /// The elements of the cut.
    elements: Bytes,
}

impl Scattered {
    /// Scatters `elements` into a tensor of these sizes. Axes that `kept` does not name are whole.
    ///
    /// # Errors
    /// An axis or index does not exist, or the elements do not fill the kept indices.
    pub(super) fn new(data_type: DataType, dims: &[i64], kept: &KeptAxes, elements: Bytes) -> Result<Self, String> {
        let sizes: Option<Vec<usize>> = dims.iter().map(|size| usize::try_from(*size).ok()).collect();
        let sizes = sizes.ok_or_else(|| format!("its shape {dims:?} has a negative size"))?;
        let count = kept.keys().next_back().map_or(0, |last| last + 1);
        if count > sizes.len() {
            return Err(format!("its shape {dims:?} has no axis {}", count - 1));
        }
        let mut axes = Vec::new();
        for (axis, size) in sizes[..count].iter().enumerate() {
            let Some(indices) = kept.get(&axis) else {
                axes.push((0..*size).map(Some).collect());
                continue;
            };
            let mut places = vec![None; *size];
            for (at, index) in indices.iter().enumerate() {
                let place = places.get_mut(*index);
                *place.ok_or_else(|| format!("axis {axis} of {dims:?} has no index {index}"))? = Some(at);
            }
            axes.push(places);
        }
        let element = data_type.byte_size().ok_or("its elements are smaller than a byte or have no fixed size")?;
        let block = sizes[count..].iter().try_fold(element, |bytes, size| bytes.checked_mul(*size));
        let block = block.ok_or("its shape has too many elements")?;
        let scattered = Self { data_type, dims: dims.to_vec(), axes, block, elements };
        let expected = scattered.kept_bytes(0);
        if expected != scattered.elements.len() {
            return Err(format!("expected {expected} bytes, found {}", scattered.elements.len()));
        }
        Ok(scattered)
    }

    /// Returns the same elements in another shape.
    pub(super) fn reshaped(self, dims: &[i64]) -> Self {
        Self { dims: dims.to_vec(), ..self }
    }

    /// Returns the number of bytes of the cut below one index of the axes before `axis`.
    fn kept_bytes(&self, axis: usize) -> usize {
        let kept = self.axes[axis..].iter().map(|places| places.iter().flatten().count());
        kept.fold(self.block, usize::saturating_mul)
    }

    /// Writes the elements below one index of the axes before `axis`. In the cut, they begin at `start`; `None`: the index
    /// is removed, and zeros are written.
    fn write_from(&self, axis: usize, start: Option<usize>, out: &mut dyn Write) -> std::io::Result<()> {
        let Some(start) = start else {
            let sizes = self.axes[axis..].iter().map(Vec::len);
            let mut left = sizes.fold(self.block, usize::saturating_mul);
            while left > 0 {
                let count = left.min(ZEROS.len());
                out.write_all(&ZEROS[..count])?;
                left -= count;
            }
            return Ok(());
        };
        let Some(places) = self.axes.get(axis) else {
            let elements = self.elements.get(start..start + self.block);
            return out.write_all(elements.ok_or_else(|| IoError::other("an element does not exist"))?);
        };
        let stride = self.kept_bytes(axis + 1);
        places.iter().try_for_each(|place| self.write_from(axis + 1, place.map(|at| start + at * stride), out))
    }
}

impl WeightSource for Scattered {
    fn data_type(&self) -> DataType {
        self.data_type
    }

    fn dims(&self) -> &[i64] {
        &self.dims
    }

    fn origin(&self) -> String {
        "the file that is verified".to_owned()
    }

    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        self.write_from(0, Some(0), out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn elements_are_scattered_to_the_kept_indices() {
        let kept = KeptAxes::from([(0, vec![0, 2]), (2, vec![1])]);
        let elements = Bytes::from_static(&[1, 2, 3, 4]);
        let scattered = Scattered::new(DataType::Uint8, &[3, 2, 2], &kept, elements.clone()).unwrap();
        let mut bytes = Vec::new();
        scattered.write(&mut bytes).unwrap();
        assert_eq!(bytes, [0, 1, 0, 2, 0, 0, 0, 0, 0, 3, 0, 4]);
        let whole = Scattered::new(DataType::Uint8, &[2, 2], &KeptAxes::new(), elements.clone()).unwrap();
        bytes.clear();
        whole.write(&mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4]);
        assert!(Scattered::new(DataType::Uint8, &[2, 2], &kept, elements.clone()).is_err());
        assert!(Scattered::new(DataType::Uint8, &[3, 2, 3], &kept, elements.slice(1..)).is_err());
    }
}
