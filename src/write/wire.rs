//! The protobuf encoding: walking the fields of a message without decoding them.

use bytes::{Buf, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};

/// One field of a message.
pub(super) struct Field {
    /// Field number.
    pub(super) tag: u32,
    /// Key and payload as they stand in the file.
    pub(super) whole: Bytes,
    /// The payload of a length-delimited field; empty for others.
    pub(super) payload: Bytes,
}

/// The fields of an encoded message in order.
///
/// The message has been decoded before, so that it is well-formed; what is not ends the list.
pub(super) fn fields(message: &Bytes) -> Vec<Field> {
    let mut rest = message.clone();
    let mut result = Vec::new();
    while rest.has_remaining() {
        let start = message.len() - rest.len();
        let Ok((tag, wire_type)) = decode_key(&mut rest) else { break };
        let mut payload = Bytes::new();
        let length = match wire_type {
            WireType::Varint => {
                if decode_varint(&mut rest).is_err() {
                    break;
                }
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => {
                let Ok(length) = decode_varint(&mut rest) else { break };
                let Ok(length) = usize::try_from(length) else { break };
                if length > rest.len() {
                    break;
                }
                payload = rest.slice(..length);
                length
            }
            // ONNX never had groups, but a decoder accepts unknown fields of any kind, and they must survive.
            WireType::StartGroup => {
                if skip_field(wire_type, tag, &mut rest, DecodeContext::default()).is_err() {
                    break;
                }
                0
            }
            WireType::EndGroup => break,
        };
        if length > rest.len() {
            break;
        }
        rest.advance(length);
        let end = message.len() - rest.len();
        result.push(Field { tag, whole: message.slice(start..end), payload });
    }
    result
}

/// The key and length that precede a length-delimited payload.
pub(super) fn header(tag: u32, length: u64) -> Bytes {
    let mut bytes = Vec::with_capacity(12);
    encode_key(tag, WireType::LengthDelimited, &mut bytes);
    encode_varint(length, &mut bytes);
    bytes.into()
}

/// A length-delimited field.
pub(super) fn delimited(tag: u32, payload: &[u8]) -> Bytes {
    let mut bytes = header(tag, payload.len() as u64).to_vec();
    bytes.extend_from_slice(payload);
    bytes.into()
}

/// A variable-length integer field.
pub(super) fn varint(tag: u32, value: i64) -> Bytes {
    let mut bytes = Vec::with_capacity(12);
    encode_key(tag, WireType::Varint, &mut bytes);
    encode_varint(value.cast_unsigned(), &mut bytes);
    bytes.into()
}

/// The payload of the last length-delimited field `tag` as text; of a repeated scalar field, the last one counts.
pub(super) fn text(message: &Bytes, tag: u32) -> Option<String> {
    let field = fields(message).into_iter().rfind(|field| field.tag == tag)?;
    String::from_utf8(field.payload.to_vec()).ok()
}
