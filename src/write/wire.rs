//! The protobuf encoding: iteration over the fields of a message without decoding them.

use bytes::{Buf, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};

/// One field of a message.
pub(super) struct Field {
    /// Field number.
    pub(super) tag: u32,
    /// Key and payload as stored in the file.
    pub(super) whole: Bytes,
    /// The payload of a length-delimited field. Empty for other fields.
    pub(super) payload: Bytes,
}

/// Returns the fields of an encoded message in order.
///
/// The message was decoded before, so it is well-formed. An invalid field would end the list.
pub(super) fn fields(message: &Bytes) -> Vec<Field> {
    let mut rest = message.clone();
    let mut result = Vec::new();
    while rest.has_remaining() {
        let start = message.len() - rest.len();
        let Ok((tag, wire_type)) = decode_key(&mut rest) else {
            break;
        };
        let mut payload = Bytes::new();
        if wire_type == WireType::LengthDelimited {
            let Some(length) = decode_varint(&mut rest).ok().and_then(|length| usize::try_from(length).ok()) else {
                break;
            };
            if length > rest.len() {
                break;
            }
            payload = rest.split_to(length);
        } else if skip_field(wire_type, tag, &mut rest, DecodeContext::default()).is_err() {
            break;
        }
        let end = message.len() - rest.len();
        result.push(Field { tag, whole: message.slice(start..end), payload });
    }
    result
}

/// Encodes the key and length that precede a length-delimited payload.
pub(super) fn header(tag: u32, length: u64) -> Bytes {
    let mut bytes = Vec::with_capacity(12);
    encode_key(tag, WireType::LengthDelimited, &mut bytes);
    encode_varint(length, &mut bytes);
    bytes.into()
}

/// Encodes a length-delimited field.
pub(super) fn delimited(tag: u32, payload: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(payload.len() + 12);
    encode_key(tag, WireType::LengthDelimited, &mut bytes);
    encode_varint(payload.len() as u64, &mut bytes);
    bytes.extend_from_slice(payload);
    bytes.into()
}

/// Encodes a variable-length integer field.
pub(super) fn varint(tag: u32, value: i64) -> Bytes {
    let mut bytes = Vec::with_capacity(12);
    encode_key(tag, WireType::Varint, &mut bytes);
    encode_varint(value.cast_unsigned(), &mut bytes);
    bytes.into()
}

/// Returns the payload of the last length-delimited field `tag` as text. If a non-repeated field occurs several times,
/// its last value counts.
pub(super) fn text(message: &Bytes, tag: u32) -> Option<String> {
    let field = fields(message).into_iter().rfind(|field| field.tag == tag)?;
    String::from_utf8(field.payload.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_kind_of_field_is_returned_whole() {
        // Field 30, whose key takes two bytes, as a group that holds a number.
        let group = vec![0xf3, 0x01, 0x08, 5, 0xf4, 0x01];
        let parts: Vec<Vec<u8>> = vec![
            varint(3, -1).to_vec(),
            delimited(8, b"name").to_vec(),
            [[0x29].as_slice(), &[0; 8]].concat(),
            [[0x2d].as_slice(), &[0; 4]].concat(),
            group,
            delimited(9, b"").to_vec(),
        ];
        let message = Bytes::from(parts.concat());
        let found: Vec<Vec<u8>> = fields(&message).iter().map(|field| field.whole.to_vec()).collect();
        assert_eq!(found, parts);
        assert_eq!(text(&message, 8).unwrap(), "name");
    }

    #[test]
    fn a_broken_message_ends_the_list() {
        assert_eq!(fields(&Bytes::from_static(&[0x0a, 5, 1])).len(), 0);
        assert_eq!(fields(&Bytes::from_static(&[0x08, 1, 0x0a])).len(), 1);
    }
}
