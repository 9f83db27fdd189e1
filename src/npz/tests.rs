//! Round trips, and files as NumPy writes them.

use half::{bf16, f16};

use super::*;
use crate::array::{ArrayData, ElementType};

/// One array of each element type.
fn samples() -> Vec<(String, Array)> {
    let types = [
        ElementType::F32,
        ElementType::F64,
        ElementType::F16,
        ElementType::BF16,
        ElementType::I64,
        ElementType::I32,
        ElementType::I16,
        ElementType::I8,
        ElementType::U8,
        ElementType::U16,
        ElementType::U32,
        ElementType::U64,
        ElementType::Bool,
    ];
    let values = [0.0, 1.0, 2.0, 3.0, 100.0, 5.0];
    types.iter().map(|&kind| (kind.to_string(), Array::from_f64(kind, vec![2, 3], &values).unwrap())).collect()
}

#[test]
fn every_element_type_survives_a_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.npz");
    let arrays = samples();
    write(&path, arrays.iter().map(|(name, array)| (name.as_str(), array))).unwrap();
    assert_eq!(read(&path).unwrap(), arrays);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_single_npy_is_named_after_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sample.npy");
    let array = Array::new(vec![], ArrayData::I64(vec![-7])).unwrap();
    std::fs::write(&path, to_npy(&array).unwrap()).unwrap();
    assert_eq!(read(&path).unwrap(), [("sample".to_owned(), array)]);
}

/// Reads the array of a `.npy` file.
fn from_npy(bytes: &[u8]) -> Result<Array, String> {
    let array = ArrayFile::from_bytes(bytes.to_vec(), "x").and_then(|mut file| file.read(0));
    array.map_err(|error| error.to_string())
}

/// Builds a `.npy` file with this header text and data.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn column_major_and_big_endian_arrays_are_read() {
    // numpy.asfortranarray([[1, 2, 3], [4, 5, 6]], dtype=">i2")
    let header = "{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3), }\n";
    let array = from_npy(&npy(header, &[0, 1, 0, 4, 0, 2, 0, 5, 0, 3, 0, 6])).unwrap();
    assert_eq!(array, Array::new(vec![2, 3], ArrayData::I16(vec![1, 2, 3, 4, 5, 6])).unwrap());
}

#[test]
fn half_precision_is_read_as_numpy_and_ml_dtypes_write_it() {
    let header = "{'descr': '<f2', 'fortran_order': False, 'shape': (1,), }\n";
    assert_eq!(from_npy(&npy(header, &[0x00, 0x3c])).unwrap().data, ArrayData::F16(vec![f16::ONE]));
    let header = "{'descr': '<V2', 'fortran_order': False, 'shape': (1,), }\n";
    assert_eq!(from_npy(&npy(header, &[0x80, 0x3f])).unwrap().data, ArrayData::BF16(vec![bf16::ONE]));
}

#[test]
fn damaged_files_are_errors() {
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n";
    assert!(from_npy(&npy(header, &[0; 8])).unwrap_err().contains("needs 12 bytes"));
    let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (18446744073709551615, 2), }\n";
    assert!(from_npy(&npy(header, &[])).is_err());
    let bytes = to_bytes(samples().iter().map(|(name, array)| (name.as_str(), array))).unwrap();
    for length in [0, 1, 20, bytes.len() / 2, bytes.len() - 1] {
        assert!(read_bytes(&bytes[..length]).is_err(), "{length}");
    }
}

#[test]
fn an_array_whose_size_contradicts_its_shape_is_not_written() {
    let array = Array { dims: vec![4], data: ArrayData::U8(vec![1]) };
    assert!(to_bytes([("x", &array)]).is_err());
}
