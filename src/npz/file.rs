//! A file of arrays. Headers are read first, so that sizes can be checked before anything is unpacked.

use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;

use super::NpzError;
use super::elements::{decode, to_row_major};
use super::header::{Header, MAGIC};
use super::stored::StoredArray;
use crate::array::{Array, ElementType, element_count};
use crate::files::{map, open};

/// Arrays of more bytes are not read whole, since a damaged header could otherwise request all memory.
const BYTE_LIMIT: u64 = 1 << 36;

/// Maximum number of bytes that one byte of an archive unpacks to: deflate encodes up to 258 bytes in two bits.
const DEFLATE_RATIO: u64 = 1032;

/// An open file with random access.
trait Source: Read + Seek + Send {}
impl<T: Read + Seek + Send> Source for T {}

/// The container of the arrays.
enum Form {
    /// A single array.
    Npy(Box<dyn Source>),
    /// An archive with one array per member.
    Npz(zip::ZipArchive<Box<dyn Source>>),
}

/// An array of the file, as its header describes it.
#[derive(Debug)]
pub struct Entry {
    name: String,
    /// The content of its header, or why it can't be read.
    claimed: Result<Claimed, String>,
    /// The offset in the file at which it begins. `None`: it is compressed.
    place: Option<u64>,
}

/// The content of an array's header.
#[derive(Debug)]
struct Claimed {
    header: Header,
    /// Number of bytes of the header.
    start: u64,
    /// Number of bytes of the elements.
    length: usize,
}

/// A file of arrays. Only the headers have been read.
pub struct ArrayFile {
    form: Form,
    entries: Vec<Entry>,
    /// The whole file, if it is memory-mapped.
    mapped: Option<Bytes>,
}

impl Entry {
    /// Returns the name of the array.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn claimed(&self) -> Result<&Claimed, NpzError> {
        let fail = |reason: &String| NpzError::Malformed { name: self.name.clone(), reason: reason.clone() };
        self.claimed.as_ref().map_err(fail)
    }

    /// Returns the sizes of the array.
    ///
    /// # Errors
    /// Fails if the header can't be read or contradicts the file.
    pub fn dims(&self) -> Result<&[usize], NpzError> {
        Ok(&self.claimed()?.header.dims)
    }

    /// Returns the type of the elements.
    ///
    /// # Errors
    /// Same as [`Entry::dims`].
    pub fn element_type(&self) -> Result<ElementType, NpzError> {
        Ok(self.claimed()?.header.element_type)
    }

    /// Returns the number of bytes of the elements.
    ///
    /// # Errors
    /// Same as [`Entry::dims`].
    pub fn byte_count(&self) -> Result<u64, NpzError> {
        Ok(self.claimed()?.length as u64)
    }
}

impl Claimed {
    /// Reads a header; `available` is the maximum number of bytes of header and elements together.
    fn read(source: &mut dyn Read, available: u64) -> Result<Self, String> {
        let (header, start) = Header::read(source)?;
        let count = element_count(&header.dims).ok_or("the number of elements overflows")?;
        let length = count.checked_mul(header.element_type.byte_count()).ok_or("the number of bytes overflows")?;
        let found = available.saturating_sub(start);
        if length as u64 > found {
            return Err(format!("shape {:?} needs {length} bytes, the file has at most {found}", header.dims));
        }
        Ok(Self { header, start, length })
    }

    /// Reads the elements, which follow the header.
    fn elements(&self, source: &mut dyn Read) -> Result<Array, String> {
        if self.length as u64 > BYTE_LIMIT {
            let (dims, length) = (&self.header.dims, self.length);
            return Err(format!("shape {dims:?} needs {length} bytes, more than the limit of {BYTE_LIMIT}"));
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(self.length).map_err(|_| format!("can't allocate {} bytes", self.length))?;
        source.take(self.length as u64).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        let Header { element_type, big_endian, fortran_order, dims } = &self.header;
        if bytes.len() < self.length {
            return Err(format!("shape {dims:?} needs {} bytes, the file has {}", self.length, bytes.len()));
        }
        let data = decode(*element_type, &bytes, *big_endian);
        drop(bytes);
        match *fortran_order && dims.len() > 1 {
            true => Ok(to_row_major(dims.clone(), &data)),
            false => Array::new(dims.clone(), data).map_err(|error| error.to_string()),
        }
    }
}

impl ArrayFile {
    /// Opens a `.npz` file, or a `.npy` file, whose array is named after the file without its extension.
    ///
    /// # Errors
    /// Fails if the file can't be read, is not a regular file, or has neither format.
    pub fn open(path: &Path) -> Result<Self, NpzError> {
        let (file, found) = open(path)?;
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Self::of(Box::new(std::io::BufReader::new(file)), found.len(), name)
    }

    /// Does the same as [`ArrayFile::open`], but maps the file into memory: [`ArrayFile::stored`] then returns
    /// uncompressed arrays without copying them.
    ///
    /// # Errors
    /// Same as [`ArrayFile::open`].
    pub fn map(path: &Path) -> Result<Self, NpzError> {
        let bytes = map(path)?;
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let file = Self::of(Box::new(Cursor::new(bytes.clone())), bytes.len() as u64, name)?;
        Ok(Self { mapped: Some(bytes), ..file })
    }

    /// Opens a file in memory; `name` is the name of the array if it is a `.npy` file.
    ///
    /// # Errors
    /// Same as [`ArrayFile::open`].
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self, NpzError> {
        let length = bytes.len() as u64;
        Self::of(Box::new(Cursor::new(bytes)), length, name.to_owned())
    }

    fn of(mut source: Box<dyn Source>, length: u64, name: String) -> Result<Self, NpzError> {
        let mut magic = Vec::new();
        source.by_ref().take(MAGIC.len() as u64).read_to_end(&mut magic)?;
        source.seek(SeekFrom::Start(0))?;
        if magic == MAGIC {
            let claimed = Claimed::read(&mut source, length);
            let entries = vec![Entry { name, claimed, place: Some(0) }];
            return Ok(Self { form: Form::Npy(source), entries, mapped: None });
        }
        let mut archive = zip::ZipArchive::new(source)?;
        let mut entries = Vec::new();
        for index in 0..archive.len() {
            let mut member = archive.by_index(index)?;
            let name = member.name().strip_suffix(".npy").unwrap_or(member.name()).to_owned();
            // Directory and header may both claim a wrong size. The number of packed bytes is a reliable limit.
            let (most, place) = match member.compression() {
                zip::CompressionMethod::Stored => (member.compressed_size(), Some(member.data_start())),
                _ => (member.compressed_size().saturating_mul(DEFLATE_RATIO), None),
            };
            let available = most.min(member.size());
            let claimed = Claimed::read(&mut member, available);
            entries.push(Entry { name, claimed, place });
        }
        Ok(Self { form: Form::Npz(archive), entries, mapped: None })
    }

    /// Returns the arrays, in the order in which they are stored.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Reads the array at a position among the entries.
    ///
    /// # Errors
    /// Fails if the array can't be read, or does not match its header.
    ///
    /// # Panics
    /// Panics if there is no such entry.
    pub fn read(&mut self, at: usize) -> Result<Array, NpzError> {
        let entry = &self.entries[at];
        let claimed = entry.claimed()?;
        let fail = |reason: String| NpzError::Malformed { name: entry.name.clone(), reason };
        match &mut self.form {
            Form::Npy(source) => {
                source.seek(SeekFrom::Start(claimed.start))?;
                claimed.elements(source).map_err(fail)
            }
            Form::Npz(archive) => {
                let mut member = archive.by_index(at)?;
                std::io::copy(&mut member.by_ref().take(claimed.start), &mut std::io::sink())?;
                let array = claimed.elements(&mut member).map_err(fail)?;
                // Reading to the end verifies the checksum of the member.
                match member.read(&mut [0])? {
                    0 => Ok(array),
                    _ => Err(fail(format!("more data than the {} bytes of its shape", claimed.length))),
                }
            }
        }
    }

    /// Returns the array at a position among the entries without copying it. `None`: the file is not mapped, or the
    /// array is compressed or in column-major order.
    fn in_place(&self, at: usize) -> Option<StoredArray> {
        let (bytes, entry) = (self.mapped.as_ref()?, self.entries.get(at)?);
        let Claimed { header, start, length } = entry.claimed.as_ref().ok()?;
        if header.fortran_order && header.dims.len() > 1 {
            return None;
        }
        let from = usize::try_from(entry.place?.checked_add(*start)?).ok()?;
        let to = from.checked_add(*length).filter(|to| *to <= bytes.len())?;
        StoredArray::new(header.dims.clone(), header.element_type, header.big_endian, bytes.slice(from..to))
    }

    /// Returns whether [`ArrayFile::stored`] returns the array at this position from the mapped file, without reading
    /// it.
    pub fn is_in_place(&self, at: usize) -> bool {
        self.in_place(at).is_some()
    }

    /// Returns the array at a position among the entries, for access to single rows. It refers to the mapped file if
    /// possible ([`ArrayFile::is_in_place`]), without verifying the checksum of an archive. Otherwise the array is read
    /// whole.
    ///
    /// # Errors
    /// Same as [`ArrayFile::read`].
    ///
    /// # Panics
    /// Panics if there is no such entry.
    pub fn stored(&mut self, at: usize) -> Result<StoredArray, NpzError> {
        match self.in_place(at) {
            Some(stored) => Ok(stored),
            None => Ok(StoredArray::from(&self.read(at)?)),
        }
    }

    /// Reads all arrays with their names.
    ///
    /// # Errors
    /// Same as [`ArrayFile::read`].
    pub fn read_all(&mut self) -> Result<Vec<(String, Array)>, NpzError> {
        (0..self.entries.len()).map(|at| Ok((self.entries[at].name.clone(), self.read(at)?))).collect()
    }
}

impl std::fmt::Debug for ArrayFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArrayFile").field("entries", &self.entries).finish_non_exhaustive()
    }
}
