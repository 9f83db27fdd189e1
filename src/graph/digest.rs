//! Digests by which a plan identifies its input.

use std::borrow::Cow;
use std::sync::OnceLock;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// How a digest is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DigestKind {
    /// SHA-256, which uses one core. Plans of schema 1 use it.
    Sha256,
    /// BLAKE3, which uses all cores.
    #[default]
    Blake3,
}

impl DigestKind {
    /// Returns the common name of the algorithm.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "SHA-256",
            Self::Blake3 => "BLAKE3",
        }
    }

    /// Returns the digest of all parts in sequence, in hexadecimal.
    fn of<'b>(self, parts: impl Iterator<Item = &'b Bytes>) -> String {
        match self {
            Self::Sha256 => {
                let mut hash = Sha256::new();
                parts.for_each(|part| hash.update(part));
                hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
            }
            Self::Blake3 => {
                let mut hash = blake3::Hasher::new();
                parts.for_each(|part| _ = hash.update_rayon(part));
                hash.finalize().to_hex().as_str().to_owned()
            }
        }
    }
}

/// The digests of one input, each computed on first use.
#[derive(Debug, Default)]
pub(crate) struct Digests {
    sha256: OnceLock<String>,
    blake3: OnceLock<String>,
}

impl Digests {
    /// Returns the digest of a kind. Computes it from `parts` on first use.
    pub(crate) fn get<'b>(&self, kind: DigestKind, parts: impl Iterator<Item = &'b Bytes>) -> Cow<'_, str> {
        let known = match kind {
            DigestKind::Sha256 => &self.sha256,
            DigestKind::Blake3 => &self.blake3,
        };
        known.get_or_init(|| kind.of(parts)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_hashed_as_one_file() {
        let whole: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        for kind in [DigestKind::Sha256, DigestKind::Blake3] {
            let parts = [&whole[..5], &whole[5..777_777], &whole[777_777..]].map(Bytes::copy_from_slice);
            assert_eq!(kind.of(parts.iter()), kind.of([Bytes::copy_from_slice(&whole)].iter()), "{}", kind.name());
        }
        let abc = [Bytes::from_static(b"abc")];
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(DigestKind::Sha256.of(abc.iter()), sha256);
        let blake3 = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        assert_eq!(DigestKind::Blake3.of(abc.iter()), blake3);
    }
}
