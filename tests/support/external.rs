//! Models with external data.

use onnx_diffprune::onnx::{DataLocation, ModelProto, StringStringEntryProto};
use prost::Message as _;

/// Moves the initializers of a model into the file `name` beside it. Returns the bytes of both files.
pub(crate) fn externalised(model: &ModelProto, name: &str) -> (Vec<u8>, Vec<u8>) {
    let (mut model, mut data) = (model.clone(), Vec::new());
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        let mut bytes = tensor.raw_data.to_vec();
        bytes.extend(tensor.float_data.iter().flat_map(|value| value.to_le_bytes()));
        // Tensors without raw data are left in the model.
        if bytes.is_empty() {
            continue;
        }
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
        tensor.external_data = vec![
            entry("location", name.to_owned()),
            entry("offset", data.len().to_string()),
            entry("length", bytes.len().to_string()),
        ];
        tensor.data_location = DataLocation::External as i32;
        (tensor.raw_data, tensor.float_data) = (bytes::Bytes::new(), Vec::new());
        data.extend(bytes);
    }
    (model.encode_to_vec(), data)
}
