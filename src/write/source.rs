//! Sources for the elements of weights that differ from the original: memory, or a part of a file.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::{Error as IoError, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};

use crate::error::Error;
use crate::files::{map, open};
use crate::onnx::DataType;

/// Number of bytes that are read from a file at a time.
const CHUNK: usize = 1 << 20;

/// The elements of one tensor, provided on demand.
pub trait WeightSource: Debug + Send + Sync {
    /// Returns the type of the elements.
    fn data_type(&self) -> DataType;

    /// Returns the sizes of the tensor.
    fn dims(&self) -> &[i64];

    /// Returns the name of the source in messages, such as a path.
    fn origin(&self) -> String;

    /// Writes all elements to `out` in row-major order, little-endian, in chunks of any length. May be called again.
    ///
    /// # Errors
    /// `out` returns an error. Errors of the source are [`Error`]s within [`std::io::Error::other`].
    fn write(&self, out: &mut dyn Write) -> std::io::Result<()>;
}

/// A weight whose elements are in memory, or in a mapped file.
#[derive(Clone, Debug)]
pub struct MemoryWeight {
    data_type: DataType,
    dims: Vec<i64>,
    bytes: Bytes,
}

impl MemoryWeight {
    /// Creates a weight from elements of any type, as little-endian bytes in row-major order.
    pub fn new(data_type: DataType, dims: &[i64], bytes: Bytes) -> Self {
        Self { data_type, dims: dims.to_vec(), bytes }
    }

    /// Creates a float32 weight.
    pub fn of_floats(dims: &[i64], values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::new(DataType::Float, dims, bytes.into())
    }

    /// Creates a float64 weight.
    pub fn of_doubles(dims: &[i64], values: &[f64]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::new(DataType::Double, dims, bytes.into())
    }
}

impl WeightSource for MemoryWeight {
    fn data_type(&self) -> DataType {
        self.data_type
    }

    fn dims(&self) -> &[i64] {
        &self.dims
    }

    fn origin(&self) -> String {
        "memory".to_owned()
    }

    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(&self.bytes)
    }
}

/// A weight whose elements are a part of a file. They are read when they are written, so the file must not change
/// before.
#[derive(Clone, Debug)]
pub struct FileWeight {
    path: PathBuf,
    offset: u64,
    length: u64,
    data_type: DataType,
    dims: Vec<i64>,
}

impl FileWeight {
    /// Creates a weight from `length` bytes of a file at `offset`: little-endian elements in row-major order.
    pub fn new(path: &Path, offset: u64, length: u64, data_type: DataType, dims: &[i64]) -> Self {
        Self { path: path.to_owned(), offset, length, data_type, dims: dims.to_vec() }
    }
}

impl WeightSource for FileWeight {
    fn data_type(&self) -> DataType {
        self.data_type
    }

    fn dims(&self) -> &[i64] {
        &self.dims
    }

    fn origin(&self) -> String {
        self.path.display().to_string()
    }

    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let fail = |error: IoError| {
            IoError::other(Error::unreadable(&self.path, format!("can't be read: {error}")).caused_by(error))
        };
        let (mut file, _) = open(&self.path).map_err(fail)?;
        file.seek(SeekFrom::Start(self.offset)).map_err(fail)?;
        let mut left = self.length;
        let mut buffer = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        while left > 0 {
            let wanted = buffer.len().min(usize::try_from(left).unwrap_or(CHUNK));
            let count = file.read(&mut buffer[..wanted]).map_err(fail)?;
            if count == 0 {
                let (found, at) = (self.length - left, self.offset);
                let text =
                    format!("expected a weight of {} bytes at offset {at}, found only {found} bytes", self.length);
                return Err(IoError::other(Error::unreadable(&self.path, text)));
            }
            out.write_all(&buffer[..count])?;
            left -= count as u64;
        }
        Ok(())
    }
}

/// Returns the weights of a safetensors file by name. Reads only the header. Skips tensors of types that ONNX does not
/// have.
///
/// # Errors
/// The file can't be read or is not a safetensors file.
pub fn safetensors_weights(path: &Path) -> Result<BTreeMap<String, FileWeight>, Error> {
    let fail = |text: String| Error::unreadable(path, text);
    let bytes = map(path).map_err(|error| fail(format!("can't be read: {error}")).caused_by(error))?;
    let (header, metadata) = SafeTensors::read_metadata(&bytes)
        .map_err(|error| fail(format!("not a readable safetensors file: {error}")).caused_by(error))?;
    // The header is preceded by its length, in eight bytes.
    let data = header as u64 + 8;
    let weights = metadata.tensors().into_iter().filter_map(|(name, info)| {
        let dims: Option<Vec<i64>> = info.shape.iter().map(|size| i64::try_from(*size).ok()).collect();
        let (start, end) = info.data_offsets;
        let length = (end - start) as u64;
        Some((name, FileWeight::new(path, data + start as u64, length, data_type(info.dtype)?, &dims?)))
    });
    Ok(weights.collect())
}

fn data_type(dtype: Dtype) -> Option<DataType> {
    Some(match dtype {
        Dtype::BOOL => DataType::Bool,
        Dtype::U8 => DataType::Uint8,
        Dtype::I8 => DataType::Int8,
        Dtype::I16 => DataType::Int16,
        Dtype::U16 => DataType::Uint16,
        Dtype::F16 => DataType::Float16,
        Dtype::BF16 => DataType::Bfloat16,
        Dtype::I32 => DataType::Int32,
        Dtype::U32 => DataType::Uint32,
        Dtype::F32 => DataType::Float,
        Dtype::F64 => DataType::Double,
        Dtype::I64 => DataType::Int64,
        Dtype::U64 => DataType::Uint64,
        _ => return None,
    })
}
