//! The checkpoint file: a flatbuffer that holds the values of the trained weights.
//!
//! The schema is `ort_training_checkpoint.fbs` of ONNX Runtime 1.19. These tables are written:
//!
//! ```text
//! Checkpoint  0 version: int32   1 module_state: ModuleState   (2 optimizer_groups, 3 property_bag: absent)
//! ModuleState 0 requires_grad_params: [Tensor]   1 frozen_params: [Tensor]   (2, 3 flags: absent, false)
//! Tensor      0 name: string   (1 doc_string: absent)   2 dims: [int64]   3 data_type: int32   4 raw_data: [uint8]
//! ```
//!
//! Offsets in a flatbuffer point forward, so every object is written after the one that refers to it.

use super::Parameter;
use crate::error::Error;
use crate::onnx::DataType;

/// The version of the schema that ONNX Runtime 1.19 writes.
const VERSION: i32 = 2;

/// The file identifier of an on-device training checkpoint.
const IDENTIFIER: &[u8; 4] = b"ODTC";

/// The maximum size of a flatbuffer in bytes.
const LIMIT: usize = i32::MAX as usize;

/// Encodes the file. All weights are stored as trained ones.
///
/// # Errors
/// The weights do not fit into 2 GiB.
pub(super) fn encode(parameters: &[Parameter]) -> Result<Vec<u8>, Error> {
    // Names, shapes, tables and padding need far less than this.
    let overhead: usize =
        parameters.iter().map(|parameter| 128 + parameter.name.len() + 8 * parameter.dims.len()).sum();
    let expected = 128 + overhead + parameters.iter().map(|parameter| parameter.values.len()).sum::<usize>();
    if expected > LIMIT {
        let text = format!("expected at most 2 GiB of trained weights for a checkpoint, found {expected} bytes");
        return Err(Error::unmet(text).hint("train fewer weights, chosen with --train REGEX"));
    }
    let mut out = Buffer { bytes: Vec::with_capacity(expected) };
    out.bytes.extend([0; 4]);
    out.bytes.extend(IDENTIFIER);
    let (root, fields) = out.table(&[4, 4]);
    out.point(0, root);
    out.put(fields[0], &VERSION.to_le_bytes());
    let (module_state, lists) = out.table(&[4, 4]);
    out.point(fields[1], module_state);
    let trained = out.vector(4, parameters.len(), &vec![0; 4 * parameters.len()]);
    out.point(lists[0], trained);
    let frozen = out.vector(4, 0, &[]);
    out.point(lists[1], frozen);
    for (at, parameter) in parameters.iter().enumerate() {
        let (tensor, fields) = out.table(&[4, 0, 4, 4, 4]);
        out.point(trained + 4 + 4 * at, tensor);
        let name = out.vector(1, parameter.name.len(), parameter.name.as_bytes());
        out.bytes.push(0);
        out.point(fields[0], name);
        let dims: Vec<u8> = parameter.dims.iter().flat_map(|size| size.to_le_bytes()).collect();
        let dims = out.vector(8, parameter.dims.len(), &dims);
        out.point(fields[2], dims);
        out.put(fields[3], &(DataType::Float as i32).to_le_bytes());
        // ONNX Runtime reads the elements in place as floats, so they are aligned.
        let values = out.vector(8, parameter.values.len(), &parameter.values);
        out.point(fields[4], values);
    }
    Ok(out.bytes)
}

/// A flatbuffer under construction.
struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    /// Appends zeros until the position `ahead` bytes after the end is a multiple of `alignment`.
    fn pad(&mut self, alignment: usize, ahead: usize) {
        let end = (self.bytes.len() + ahead).next_multiple_of(alignment) - ahead;
        self.bytes.resize(end, 0);
    }

    fn put(&mut self, at: usize, content: &[u8]) {
        self.bytes[at..at + content.len()].copy_from_slice(content);
    }

    /// Writes the offset at `at` so that it points to `to`, which comes after it.
    fn point(&mut self, at: usize, to: usize) {
        // The whole buffer is smaller than the largest offset.
        self.put(at, &((to - at) as u32).to_le_bytes());
    }

    /// Appends a table of zeros with fields of these sizes in bytes. A size of zero means that the field is absent.
    /// Returns the position of the table and of every field.
    fn table(&mut self, sizes: &[usize]) -> (usize, Vec<usize>) {
        self.pad(2, 0);
        let description = self.bytes.len();
        let mut end = 4usize;
        let mut offsets = Vec::new();
        for size in sizes {
            end = end.next_multiple_of((*size).max(1));
            offsets.push(if *size == 0 { 0 } else { end });
            end += size;
        }
        let header = [4 + 2 * sizes.len(), end];
        for number in header.iter().chain(&offsets) {
            self.bytes.extend((*number as u16).to_le_bytes());
        }
        self.pad(8, 0);
        let table = self.bytes.len();
        self.bytes.extend(((table - description) as i32).to_le_bytes());
        self.bytes.resize(table + end, 0);
        (table, offsets.into_iter().map(|offset| table + offset).collect())
    }

    /// Appends a vector: its length, then its elements at a multiple of `alignment`. Returns its position.
    fn vector(&mut self, alignment: usize, count: usize, content: &[u8]) -> usize {
        self.pad(alignment.max(4), 4);
        let at = self.bytes.len();
        self.bytes.extend((count as u32).to_le_bytes());
        self.bytes.extend(content);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    /// Returns the position of a table's field, following the flatbuffer format.
    fn field(bytes: &[u8], table: usize, slot: usize) -> Option<usize> {
        let description = table - number(bytes, table);
        let short = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()) as usize;
        let offset = if 4 + 2 * slot < short(description) { short(description + 4 + 2 * slot) } else { 0 };
        (offset > 0).then_some(table + offset)
    }

    fn follow(bytes: &[u8], table: usize, slot: usize) -> usize {
        let at = field(bytes, table, slot).unwrap();
        at + number(bytes, at)
    }

    #[test]
    fn weights_are_found_by_following_the_flatbuffer_format() {
        let parameter = |name: &str, dims: &[i64], values: &[f32]| Parameter {
            name: name.to_owned(),
            dims: dims.to_vec(),
            values: values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into(),
        };
        let given = [parameter("fc.weight", &[2, 1], &[1.5, -2.0]), parameter("b", &[1], &[3.0])];
        let bytes = encode(&given).unwrap();
        assert_eq!(&bytes[4..8], b"ODTC");
        let root = number(&bytes, 0);
        assert_eq!(number(&bytes, field(&bytes, root, 0).unwrap()), 2);
        let module = follow(&bytes, root, 1);
        assert_eq!(number(&bytes, follow(&bytes, module, 1)), 0);
        let list = follow(&bytes, module, 0);
        assert_eq!(number(&bytes, list), 2);
        for (at, parameter) in given.iter().enumerate() {
            let entry = list + 4 + 4 * at;
            let tensor = entry + number(&bytes, entry);
            let name = follow(&bytes, tensor, 0);
            let end = name + 4 + number(&bytes, name);
            assert_eq!((&bytes[name + 4..end], bytes[end]), (parameter.name.as_bytes(), 0));
            let dims = follow(&bytes, tensor, 2);
            assert_eq!((number(&bytes, dims), (dims + 4) % 8), (parameter.dims.len(), 0));
            assert_eq!(&bytes[dims + 4..dims + 12], parameter.dims[0].to_le_bytes());
            assert_eq!(number(&bytes, field(&bytes, tensor, 3).unwrap()), 1);
            let raw = follow(&bytes, tensor, 4);
            assert_eq!(&bytes[raw + 4..raw + 4 + number(&bytes, raw)], &parameter.values[..]);
        }
    }
}
