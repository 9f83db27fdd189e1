//! The text header of a `.npy` file: element type, order of the elements, shape.

use std::io::Read;

use crate::array::ElementType;

/// The magic bytes at the start of a `.npy` file.
pub(super) const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Maximum number of bytes of a header. NumPy itself accepts ten thousand.
const MOST_BYTES: u64 = 1 << 20;

/// The content of a header.
#[derive(Debug, PartialEq)]
pub(super) struct Header {
    /// The type of the elements.
    pub(super) element_type: ElementType,
    /// Whether elements are stored with the most significant byte first.
    pub(super) big_endian: bool,
    /// Whether the first axis varies fastest.
    pub(super) fortran_order: bool,
    /// The sizes of the axes.
    pub(super) dims: Vec<usize>,
}

impl Header {
    /// Reads the header at the start of a source; returns it with the number of bytes that it takes.
    pub(super) fn read(source: &mut dyn Read) -> Result<(Self, u64), String> {
        fn bytes<const N: usize>(source: &mut dyn Read) -> Result<[u8; N], String> {
            let mut bytes = [0; N];
            source.read_exact(&mut bytes).map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => "the file is truncated in the header".to_owned(),
                _ => error.to_string(),
            })?;
            Ok(bytes)
        }
        if bytes(source) != Ok(*MAGIC) {
            return Err("not a .npy array".to_owned());
        }
        let (length, preamble) = match bytes(source)? {
            [1, _] => (u64::from(u16::from_le_bytes(bytes(source)?)), 10),
            [2 | 3, _] => (u64::from(u32::from_le_bytes(bytes(source)?)), 12),
            [version, _] => return Err(format!("version {version} of the .npy format is not supported")),
        };
        if length > MOST_BYTES {
            return Err(format!("expected a header of at most {MOST_BYTES} bytes, found {length}"));
        }
        let mut text = String::new();
        let read = source.take(length).read_to_string(&mut text);
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => "the header is not valid UTF-8".to_owned(),
            _ => error.to_string(),
        })?;
        if text.len() as u64 != length {
            return Err("the file is truncated in the header".to_owned());
        }
        let text = text.as_str();
        let (element_type, big_endian) = element_type(quoted(field(text, "descr")?)?)?;
        let fortran_order = field(text, "fortran_order")?.starts_with("True");
        let dims = shape(field(text, "shape")?)?;
        Ok((Self { element_type, big_endian, fortran_order, dims }, preamble + length))
    }
}

/// Returns the text that follows `'key':` in the header's dictionary.
fn field<'a>(text: &'a str, key: &str) -> Result<&'a str, String> {
    [format!("'{key}'"), format!("\"{key}\"")]
        .iter()
        .find_map(|quoted| text.split_once(quoted.as_str()))
        .and_then(|(_, after)| after.trim_start().strip_prefix(':'))
        .map(str::trim_start)
        .ok_or_else(|| format!("the header has no {key:?}"))
}

/// Returns the content of the string literal at the start of `text`.
fn quoted(text: &str) -> Result<&str, String> {
    let mut parts = text.split(['\'', '"']);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(""), Some(content), Some(_)) => Ok(content),
        _ => Err("structured element types are not supported".to_owned()),
    }
}

/// Returns the sizes in the tuple at the start of `text`.
fn shape(text: &str) -> Result<Vec<usize>, String> {
    let inner = text.strip_prefix('(').and_then(|text| text.split_once(')')).ok_or("the shape is not a tuple")?.0;
    inner
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty())
        // Files written by Python 2 mark long integers with an L.
        .map(|size| size.trim_end_matches('L').parse().map_err(|_| format!("{size:?} is not a size")))
        .collect()
}

/// Parses a NumPy type string such as `<f4`; returns the element type, and whether it is big-endian.
fn element_type(descr: &str) -> Result<(ElementType, bool), String> {
    let (big_endian, code) = match descr.strip_prefix('>') {
        Some(code) => (true, code),
        None => (cfg!(target_endian = "big") && descr.starts_with('='), descr.trim_start_matches(['<', '|', '='])),
    };
    let element_type = match code {
        "f4" => ElementType::F32,
        "f8" => ElementType::F64,
        "f2" => ElementType::F16,
        "V2" | "bfloat16" => ElementType::BF16,
        "i8" => ElementType::I64,
        "i4" => ElementType::I32,
        "i2" => ElementType::I16,
        "i1" => ElementType::I8,
        "u1" => ElementType::U8,
        "u2" => ElementType::U16,
        "u4" => ElementType::U32,
        "u8" => ElementType::U64,
        "b1" => ElementType::Bool,
        _ => return Err(format!("element type {descr:?} is not supported")),
    };
    Ok((element_type, big_endian))
}

/// Returns a header for row-major, little-endian data, padded as the format requires.
pub(super) fn to_bytes(element_type: ElementType, dims: &[usize]) -> Vec<u8> {
    let descr = match element_type {
        ElementType::F32 => "<f4",
        ElementType::F64 => "<f8",
        ElementType::F16 => "<f2",
        ElementType::BF16 => "<V2",
        ElementType::I64 => "<i8",
        ElementType::I32 => "<i4",
        ElementType::I16 => "<i2",
        ElementType::I8 => "|i1",
        ElementType::U8 => "|u1",
        ElementType::U16 => "<u2",
        ElementType::U32 => "<u4",
        ElementType::U64 => "<u8",
        ElementType::Bool => "|b1",
    };
    // The comma after each size makes a one-element tuple a tuple.
    let shape: String = dims.iter().map(|dim| format!("{dim},")).collect();
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    // Magic, version and length take 10 bytes (12 from version 2 on), and the data must begin at a multiple of 64.
    let preamble = if text.len() < 65_000 { 10 } else { 12 };
    let padding = 63 - (preamble + text.len()) % 64;
    text.push_str(&" ".repeat(padding));
    text.push('\n');
    let mut bytes = MAGIC.to_vec();
    if preamble == 10 {
        bytes.extend([1, 0]);
        bytes.extend((text.len() as u16).to_le_bytes());
    } else {
        bytes.extend([2, 0]);
        bytes.extend((text.len() as u32).to_le_bytes());
    }
    bytes.extend(text.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_headers_are_parsed_and_aligned() {
        for dims in [vec![], vec![3], vec![2, 0, 5], vec![1; 200]] {
            let bytes = to_bytes(ElementType::F16, &dims);
            assert_eq!(bytes.len() % 64, 0);
            let (header, length) = Header::read(&mut bytes.as_slice()).unwrap();
            assert_eq!(
                header,
                Header { element_type: ElementType::F16, big_endian: false, fortran_order: false, dims }
            );
            assert_eq!(length, bytes.len() as u64);
        }
    }

    #[test]
    fn every_truncated_header_is_an_error() {
        let bytes = to_bytes(ElementType::F32, &[2, 3]);
        for length in 0..bytes.len() {
            assert!(Header::read(&mut &bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn unsupported_types_and_shapes_are_errors() {
        assert!(element_type("<c8").unwrap_err().contains("<c8"));
        assert!(quoted("[('a', '<f4')]").is_err());
        assert!(shape("(-1,)").is_err());
    }
}
