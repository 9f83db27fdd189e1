//! Weights that are streamed to the output from another source, converted to the element type that the output stores.

use std::io::{Error as IoError, Write};
use std::sync::Arc;

use half::{bf16, f16};

use super::WeightSource;
use crate::error::Error;
use crate::graph::tensor::byte_length;
use crate::onnx::{DataType, TensorProto};

/// Number of bytes that are converted before they are written.
const BUFFER: usize = 1 << 16;

/// An initializer whose elements come from another source.
#[derive(Clone, Debug)]
pub struct Streamed {
    /// Position in the file of the initializer that it replaces. Fields of its message other than type, sizes and
    /// elements are copied. `None`: it replaces none.
    pub index: Option<usize>,
    /// The name in the output.
    pub name: String,
    /// The element type in the output.
    pub data_type: DataType,
    /// The sizes in the output.
    pub dims: Vec<i64>,
    /// The source of the elements.
    pub source: Arc<dyn WeightSource>,
}

impl Streamed {
    /// Checks that the source has the sizes of the output and a type that can be stored there. Returns the size of the
    /// elements in the output in bytes.
    ///
    /// # Errors
    /// It does not. The message names the tensor, and what was expected and found.
    pub(super) fn check(&self) -> Result<u64, String> {
        let (name, origin) = (&self.name, self.source.origin());
        if self.source.dims() != self.dims {
            return Err(format!(
                "tensor {name:?}: expected shape {:?}, found {:?} in {origin}",
                self.dims,
                self.source.dims()
            ));
        }
        let (from, to) = (self.source.data_type(), self.data_type);
        if from != to && (decoder(from).is_none() || encoder(to).is_none()) {
            let (from, to) = (from.spec_name(), to.spec_name());
            return Err(format!("tensor {name:?}: expected elements of type {to}, found {from} in {origin}"));
        }
        match byte_length(&self.header()) {
            Ok(Some(length)) => Ok(length),
            Ok(None) => Err(format!("tensor {name:?}: elements of type {} have no fixed size", to.spec_name())),
            Err(error) => Err(format!("tensor {name:?}: {error}")),
        }
    }

    /// Returns the tensor without elements.
    pub(super) fn header(&self) -> TensorProto {
        TensorProto::of_raw(&self.name, self.data_type, &self.dims, Vec::new())
    }

    /// Returns the number of bytes that the source must provide.
    fn source_bytes(&self) -> Option<u64> {
        byte_length(&TensorProto { data_type: self.source.data_type() as i32, ..self.header() }).ok().flatten()
    }

    /// Writes the elements, converted to the type of the output.
    ///
    /// # Errors
    /// The source provides another number of elements, or the source or `out` returns an error.
    pub(super) fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let expected = self.source_bytes().unwrap_or(0);
        let (from, to) = (self.source.data_type(), self.data_type);
        let convert = if from == to { None } else { decoder(from).zip(encoder(to)) };
        let mut sink = Sink { out, convert, expected, found: 0, rest: Vec::new(), buffer: Vec::with_capacity(BUFFER) };
        let wrong = |found: u64, of: &str| {
            let (name, origin) = (&self.name, self.source.origin());
            let text = format!("tensor {name:?}: expected {expected} bytes, found {of}{found} in {origin}");
            IoError::other(Error::usage(text))
        };
        let result = self.source.write(&mut sink);
        if sink.found > expected {
            return Err(wrong(sink.found, "at least "));
        }
        result?;
        if sink.found < expected {
            return Err(wrong(sink.found, ""));
        }
        Ok(())
    }
}

/// The size of an element in bytes, and a function that decodes the first element.
type Decode = (usize, fn(&[u8]) -> f64);

/// A function that appends an encoded element.
type Encode = fn(f64, &mut Vec<u8>);

fn decoder(data_type: DataType) -> Option<Decode> {
    fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.first_chunk().copied().unwrap_or([0; N])
    }
    Some(match data_type {
        DataType::Double => (8, |bytes| f64::from_le_bytes(first(bytes))),
        DataType::Float => (4, |bytes| f64::from(f32::from_le_bytes(first(bytes)))),
        DataType::Float16 => (2, |bytes| f64::from(f16::from_le_bytes(first(bytes)))),
        DataType::Bfloat16 => (2, |bytes| f64::from(bf16::from_le_bytes(first(bytes)))),
        _ => return None,
    })
}

fn encoder(data_type: DataType) -> Option<Encode> {
    Some(match data_type {
        DataType::Double => |value, bytes| bytes.extend(value.to_le_bytes()),
        DataType::Float => |value, bytes| bytes.extend((value as f32).to_le_bytes()),
        DataType::Float16 => |value, bytes| bytes.extend(f16::from_f32(odd(value)).to_le_bytes()),
        DataType::Bfloat16 => |value, bytes| bytes.extend(bf16::from_f32(odd(value)).to_le_bytes()),
        _ => return None,
    })
}

/// Converts a float64 to float32, rounded to odd: an inexact result has an odd last bit. Rounding it to half precision
/// then equals rounding the float64 once, which is not true for two roundings to nearest. On CPUs that convert only
/// float32, the `half` crate rounds float64 by way of float32.
fn odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value || value.is_nan() {
        return nearest;
    }
    let is_too_large = f64::from(nearest).abs() > value.abs();
    f32::from_bits((nearest.to_bits() - u32::from(is_too_large)) | 1)
}

/// A writer that converts and counts the bytes written to it.
struct Sink<'o> {
    out: &'o mut dyn Write,
    convert: Option<(Decode, Encode)>,
    expected: u64,
    found: u64,
    /// The first bytes of an incomplete element.
    rest: Vec<u8>,
    buffer: Vec<u8>,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.found += bytes.len() as u64;
        if self.found > self.expected {
            return Err(IoError::other("more bytes than the tensor has"));
        }
        let Some(((size, decode), encode)) = self.convert else {
            self.out.write_all(bytes)?;
            return Ok(bytes.len());
        };
        let mut open = bytes;
        if !self.rest.is_empty() {
            let (head, tail) = open.split_at(open.len().min(size - self.rest.len()));
            self.rest.extend_from_slice(head);
            open = tail;
            if self.rest.len() < size {
                return Ok(bytes.len());
            }
            encode(decode(&self.rest), &mut self.buffer);
            self.rest.clear();
        }
        let mut elements = open.chunks_exact(size);
        for element in &mut elements {
            encode(decode(element), &mut self.buffer);
            if self.buffer.len() >= BUFFER {
                self.out.write_all(&self.buffer)?;
                self.buffer.clear();
            }
        }
        self.rest.extend_from_slice(elements.remainder());
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemoryWeight;
    use super::*;

    fn stored(from: &[f64], to: DataType) -> Vec<u8> {
        let dims = vec![from.len() as i64];
        let source = Arc::new(MemoryWeight::of_doubles(&dims, from));
        let streamed = Streamed { index: None, name: "w".to_owned(), data_type: to, dims, source };
        let mut bytes = Vec::new();
        assert_eq!(streamed.check(), Ok(from.len() as u64 * 2));
        assert!(streamed.write(&mut bytes).is_ok());
        bytes
    }

    #[test]
    fn half_precision_is_rounded_once() {
        // Just above the midpoint of two float16 numbers, by less than the precision of float32: rounding twice would
        // return 1.0.
        let value = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(f16::from_f32(value as f32), f16::from_f32(1.0));
        let expected = f16::from_bits(f16::from_f32(1.0).to_bits() + 1);
        assert_eq!(stored(&[value, -value], DataType::Float16), [expected, -expected].map(f16::to_le_bytes).concat());
        let value = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        let expected = bf16::from_bits(bf16::from_f32(1.0).to_bits() + 1);
        assert_eq!(stored(&[value], DataType::Bfloat16), expected.to_le_bytes());
        // The midpoint itself is rounded to the even neighbour, and numbers that are too large to infinity.
        let middle = 1.0 + 2f64.powi(-11);
        let expected = [f16::ONE, f16::INFINITY, f16::ZERO, f16::NEG_INFINITY].map(f16::to_le_bytes).concat();
        assert_eq!(stored(&[middle, 1e300, 1e-300, -7e4], DataType::Float16), expected);
    }

    #[test]
    fn elements_may_be_written_in_pieces() {
        #[derive(Debug)]
        struct Pieces(MemoryWeight);
        impl WeightSource for Pieces {
            fn data_type(&self) -> DataType {
                self.0.data_type()
            }
            fn dims(&self) -> &[i64] {
                self.0.dims()
            }
            fn origin(&self) -> String {
                "pieces".to_owned()
            }
            fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
                let mut whole = Vec::new();
                self.0.write(&mut whole)?;
                whole.chunks(7).try_for_each(|piece| out.write_all(piece))
            }
        }
        let source = Arc::new(Pieces(MemoryWeight::of_doubles(&[5], &[0.5, -1.0, 2.0, 3.5, 8.0])));
        let streamed =
            Streamed { index: None, name: "w".to_owned(), data_type: DataType::Float, dims: vec![5], source };
        let mut bytes = Vec::new();
        assert!(streamed.write(&mut bytes).is_ok());
        assert_eq!(bytes, [0.5f32, -1.0, 2.0, 3.5, 8.0].map(f32::to_le_bytes).concat());
    }
}
