//! Arrays that keep the bytes of a file and decode single rows on demand.

use bytes::Bytes;

use super::elements::decode;
use crate::array::{Array, ArrayData, ElementType, element_count};

/// An array in row-major order whose elements remain the bytes of a file, mapped or in memory.
#[derive(Clone, Debug)]
pub struct StoredArray {
    dims: Vec<usize>,
    element_type: ElementType,
    big_endian: bool,
    bytes: Bytes,
}

impl StoredArray {
    /// Creates an array from these bytes; `None` if their number does not match the shape.
    pub fn new(dims: Vec<usize>, element_type: ElementType, big_endian: bool, bytes: Bytes) -> Option<Self> {
        let length = element_count(&dims)?.checked_mul(element_type.byte_count())?;
        (length == bytes.len()).then_some(Self { dims, element_type, big_endian, bytes })
    }

    /// Returns the sizes of the axes; the first is the number of rows.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Returns the sizes of a row.
    pub fn row_dims(&self) -> &[usize] {
        self.dims.get(1..).unwrap_or_default()
    }

    /// Returns the type of the elements.
    pub fn element_type(&self) -> ElementType {
        self.element_type
    }

    /// Returns the elements of a row; `None` if there is no such row. Only its bytes are accessed.
    pub fn row(&self, number: usize) -> Option<ArrayData> {
        let count = self.dims.first().copied().filter(|count| number < *count)?;
        let length = self.bytes.len() / count;
        let bytes = self.bytes.get(number * length..(number + 1) * length)?;
        Some(decode(self.element_type, bytes, self.big_endian))
    }
}

impl From<&Array> for StoredArray {
    fn from(array: &Array) -> Self {
        let mut bytes = Vec::new();
        array.data.append_bytes(&mut bytes);
        let (dims, element_type) = (array.dims.clone(), array.element_type());
        Self { dims, element_type, big_endian: false, bytes: bytes.into() }
    }
}

/// Decodes elements from little-endian bytes. Bytes beyond the last whole element are ignored.
pub fn from_bytes(element_type: ElementType, bytes: &[u8]) -> ArrayData {
    decode(element_type, bytes, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::npz::{ArrayFile, to_npy};

    /// Returns an array of three rows with two elements each.
    fn array() -> Array {
        Array::new(vec![3, 2], ArrayData::I16(vec![1, 2, 3, 4, 5, -6])).unwrap()
    }

    #[test]
    fn a_mapped_array_returns_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        std::fs::write(&path, to_npy(&array()).unwrap()).unwrap();
        let mut file = ArrayFile::map(&path).unwrap();
        assert!(file.is_in_place(0));
        let stored = file.stored(0).unwrap();
        assert_eq!((stored.dims(), stored.row_dims()), ([3, 2].as_slice(), [2].as_slice()));
        assert_eq!(stored.row(2), Some(ArrayData::I16(vec![5, -6])));
        assert_eq!(stored.row(3), None);
    }

    #[test]
    fn big_endian_rows_are_read_in_place_but_column_major_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        // numpy.array([[1, 2], [3, 4]], dtype=">i2"), then the same in column-major order.
        for (order, in_place) in [("False", true), ("True", false)] {
            let header = format!("{{'descr': '>i2', 'fortran_order': {order}, 'shape': (2, 2), }}\n");
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend((header.len() as u16).to_le_bytes());
            bytes.extend(header.as_bytes());
            bytes.extend(if in_place { [0, 1, 0, 2, 0, 3, 0, 4] } else { [0, 1, 0, 3, 0, 2, 0, 4] });
            std::fs::write(&path, bytes).unwrap();
            let mut file = ArrayFile::map(&path).unwrap();
            assert_eq!(file.is_in_place(0), in_place);
            assert_eq!(file.stored(0).unwrap().row(1), Some(ArrayData::I16(vec![3, 4])));
        }
    }

    #[test]
    fn members_are_mapped_in_place_unless_compressed() {
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npz");
        for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
            let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
            let options = zip::write::SimpleFileOptions::default().compression_method(method);
            for name in ["a.npy", "b.npy"] {
                archive.start_file(name, options).unwrap();
                archive.write_all(&to_npy(&array()).unwrap()).unwrap();
            }
            archive.finish().unwrap();
            let mut file = ArrayFile::map(&path).unwrap();
            assert_eq!(file.is_in_place(1), method == zip::CompressionMethod::Stored);
            assert_eq!(file.stored(1).unwrap().row(0), Some(ArrayData::I16(vec![1, 2])));
        }
    }

    #[test]
    fn sizes_that_do_not_match_the_bytes_are_refused() {
        let bytes = Bytes::from(vec![0; 12]);
        assert!(StoredArray::new(vec![3, 2], ElementType::I16, false, bytes.clone()).is_some());
        assert!(StoredArray::new(vec![3, 3], ElementType::I16, false, bytes.clone()).is_none());
        assert!(StoredArray::new(vec![usize::MAX, 3], ElementType::I16, false, bytes).is_none());
        let none = StoredArray::new(vec![0, 3], ElementType::I16, false, Bytes::new()).unwrap();
        assert_eq!(none.row(0), None);
        let scalar = StoredArray::new(vec![], ElementType::U8, false, Bytes::from(vec![1])).unwrap();
        assert_eq!((scalar.row(0), scalar.row_dims()), (None, [].as_slice()));
    }
}
