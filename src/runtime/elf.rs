//! The libraries that a shared library needs, read from its ELF file (the format of Linux).
//!
//! Loading a provider's library just to find out what is missing is not possible: ONNX Runtime must be the first to load
//! it. Layout: "System V Application Binary Interface", chapters "Object Files" and "Dynamic Linking".

use std::path::Path;

/// Size in bytes of the header of a 64-bit file.
const HEADER: usize = 64;
/// Size in bytes of a program header.
const PROGRAM_HEADER: usize = 56;
/// Program header type: a part of the file that is mapped.
const PT_LOAD: u32 = 1;
/// Program header type: the table for the dynamic linker.
const PT_DYNAMIC: u32 = 2;
/// Dynamic entry: name of a needed library, as an offset into the string table.
const DT_NEEDED: u64 = 1;
/// Dynamic entry: address of the string table.
const DT_STRTAB: u64 = 5;

/// Returns the names (such as `libcublas.so.12`) of the libraries that a library needs directly, in the file's order.
///
/// # Errors
/// The file can't be read or is not a 64-bit little-endian ELF file.
pub(super) fn needed(path: &Path) -> Result<Vec<String>, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    #[expect(unsafe_code, reason = "libraries of CUDA have gigabytes, of which a few pages are read")]
    // SAFETY: package managers replace libraries and do not write in place; a change meanwhile leads to wrong names.
    let bytes = unsafe { memmap2::Mmap::map(&file) }.map_err(|error| error.to_string())?;
    parse(&bytes).ok_or_else(|| "it is not a 64-bit little-endian ELF library, or a damaged one".to_owned())
}

fn parse(bytes: &[u8]) -> Option<Vec<String>> {
    if bytes.get(..6)? != b"\x7fELF\x02\x01" || bytes.len() < HEADER {
        return None;
    }
    let table = usize::try_from(u64_at(bytes, 32)?).ok()?;
    let count = usize::from(u16::from_le_bytes(bytes.get(56..58)?.try_into().ok()?));
    let mut loads = Vec::new();
    let mut dynamic = None;
    for index in 0..count {
        let at = table.checked_add(index * PROGRAM_HEADER)?;
        let header = bytes.get(at..at.checked_add(PROGRAM_HEADER)?)?;
        let kind = u32::from_le_bytes(header.get(..4)?.try_into().ok()?);
        let (offset, address, size) = (u64_at(header, 8)?, u64_at(header, 16)?, u64_at(header, 32)?);
        match kind {
            PT_LOAD => loads.push((offset, address, size)),
            PT_DYNAMIC => dynamic = Some((offset, size)),
            _ => {}
        }
    }
    // A library without a dynamic table needs no others.
    let Some((offset, size)) = dynamic else { return Some(Vec::new()) };
    let start = usize::try_from(offset).ok()?;
    let entries = bytes.get(start..start.checked_add(usize::try_from(size).ok()?)?)?;
    let entries: Vec<(u64, u64)> =
        entries.as_chunks::<16>().0.iter().filter_map(|entry| Some((u64_at(entry, 0)?, u64_at(entry, 8)?))).collect();
    let (_, strings) = *entries.iter().find(|(tag, _)| *tag == DT_STRTAB)?;
    let in_file = loads.iter().find_map(|(offset, address, size)| {
        let within = strings.checked_sub(*address)?;
        (within < *size).then(|| offset.checked_add(within))?
    })?;
    let strings = bytes.get(usize::try_from(in_file).ok()?..)?;
    entries
        .iter()
        .filter(|(tag, _)| *tag == DT_NEEDED)
        .map(|(_, at)| {
            let text = strings.get(usize::try_from(*at).ok()?..)?;
            let end = text.iter().position(|byte| *byte == 0)?;
            Some(String::from_utf8_lossy(&text[..end]).into_owned())
        })
        .collect()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(all(target_os = "linux", target_pointer_width = "64", target_endian = "little"))]
    #[test]
    fn this_program_needs_the_c_library() {
        let names = needed(&std::env::current_exe().unwrap()).unwrap();
        if names.is_empty() {
            eprintln!("skipped: statically linked");
            return;
        }
        assert!(names.iter().any(|name| name.starts_with("libc.so") || name.starts_with("libc.musl")), "{names:?}");
    }

    #[test]
    fn damaged_files_are_rejected() {
        for bytes in [b"".as_slice(), b"not a library", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01"] {
            assert_eq!(parse(bytes), None);
        }
        let whole = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for length in [HEADER, HEADER + 10, 200, 600] {
            // A truncated file must not cause a panic.
            let _ = parse(&whole[..length.min(whole.len())]);
        }
        let mut wild = whole;
        if wild.starts_with(b"\x7fELF") {
            wild[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
            assert_eq!(parse(&wild), None);
        }
    }
}
