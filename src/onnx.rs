//! The types of the ONNX file format, generated from `proto/onnx.proto`, with typed access to attributes.

#[allow(missing_docs, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
mod generated;

pub mod builder;

pub(crate) mod floats;

pub mod names;

pub(crate) mod numbers;

pub(crate) mod order;

pub use generated::*;

pub use generated::tensor_proto::{DataLocation, DataType};

use attribute_proto::AttributeType;

/// Returns the name and version of this tool, which written files carry.
pub fn tool_name() -> String {
    format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
}

impl NodeProto {
    /// Returns the first non-empty output name, which identifies a node. Returns an empty string if there is none.
    pub fn first_output(&self) -> &str {
        self.output.iter().map(String::as_str).find(|name| !name.is_empty()).unwrap_or_default()
    }

    /// Returns the attribute with this name.
    pub fn attr(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|attribute| attribute.name == name)
    }

    /// Returns the attribute with this name if it has this type. Files of the first IR version store no types.
    fn attr_of(&self, name: &str, wanted: AttributeType) -> Option<&AttributeProto> {
        self.attr(name).filter(|found| [wanted as i32, AttributeType::Undefined as i32].contains(&found.r#type))
    }

    /// Returns an integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.attr_of(name, AttributeType::Int).map(|attribute| attribute.i.unwrap_or_default())
    }

    /// Returns a float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        self.attr_of(name, AttributeType::Float).map(|attribute| attribute.f.unwrap_or_default())
    }

    /// Returns an attribute that is a list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attr_of(name, AttributeType::Ints).map(|attribute| attribute.ints.as_slice())
    }

    /// Returns a string attribute, if it is valid UTF-8.
    pub fn string(&self, name: &str) -> Option<&str> {
        let found = self.attr_of(name, AttributeType::String)?;
        std::str::from_utf8(found.s.as_deref().unwrap_or_default()).ok()
    }

    /// Returns a tensor attribute.
    pub fn tensor(&self, name: &str) -> Option<&TensorProto> {
        self.attr(name).and_then(|attribute| attribute.t.as_ref())
    }
}

fn attribute(name: &str, r#type: AttributeType) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: r#type as i32, ..AttributeProto::default() }
}

/// Creates an integer attribute.
pub fn attr_int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, AttributeType::Int) }
}

/// Creates a float attribute.
pub fn attr_float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), ..attribute(name, AttributeType::Float) }
}

/// Creates an attribute that is a list of integers.
pub fn attr_ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, AttributeType::Ints) }
}

/// Creates a string attribute.
pub fn attr_string(name: &str, value: &str) -> AttributeProto {
    AttributeProto { s: Some(value.as_bytes().to_vec().into()), ..attribute(name, AttributeType::String) }
}

/// Creates a graph attribute.
pub fn attr_graph(name: &str, value: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(value), ..attribute(name, AttributeType::Graph) }
}

/// Creates a tensor attribute.
pub fn attr_tensor(name: &str, value: TensorProto) -> AttributeProto {
    AttributeProto { t: Some(value), ..attribute(name, AttributeType::Tensor) }
}

impl TensorProto {
    /// Creates a tensor from little-endian bytes.
    pub(crate) fn of_raw(name: &str, data_type: DataType, dims: &[i64], raw: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            data_type: data_type as i32,
            dims: dims.to_vec(),
            raw_data: raw.into(),
            ..Self::default()
        }
    }

    /// Creates an int64 tensor.
    pub fn of_ints(name: &str, values: &[i64], dims: &[i64]) -> Self {
        Self::of_raw(name, DataType::Int64, dims, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Creates an int32 tensor. Values out of range are clamped.
    pub fn of_int32s(name: &str, values: &[i64], dims: &[i64]) -> Self {
        let narrow = |value: &i64| *value.clamp(&i64::from(i32::MIN), &i64::from(i32::MAX)) as i32;
        Self::of_raw(name, DataType::Int32, dims, values.iter().flat_map(|value| narrow(value).to_le_bytes()).collect())
    }

    /// Creates a float32 tensor.
    pub fn of_floats(name: &str, values: &[f32], dims: &[i64]) -> Self {
        Self::of_raw(name, DataType::Float, dims, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Creates a tensor of booleans.
    pub fn of_bools(name: &str, values: &[bool], dims: &[i64]) -> Self {
        Self::of_raw(name, DataType::Bool, dims, values.iter().map(|value| u8::from(*value)).collect())
    }

    /// Returns the element type, or `Undefined` for a type that this version does not know.
    pub fn element_type(&self) -> DataType {
        DataType::try_from(self.data_type).unwrap_or(DataType::Undefined)
    }
}

impl DataType {
    /// Returns the size of one element in bytes. `None`: a string, an undefined type, or a type of less than a byte.
    pub fn byte_size(self) -> Option<usize> {
        Some(match self {
            Self::Uint8 | Self::Int8 | Self::Bool => 1,
            Self::Float8e4m3fn | Self::Float8e4m3fnuz | Self::Float8e5m2 | Self::Float8e5m2fnuz | Self::Float8e8m0 => 1,
            Self::Uint16 | Self::Int16 | Self::Float16 | Self::Bfloat16 => 2,
            Self::Float | Self::Int32 | Self::Uint32 => 4,
            Self::Int64 | Self::Double | Self::Uint64 | Self::Complex64 => 8,
            Self::Complex128 => 16,
            _ => return None,
        })
    }

    /// Returns the size of one element in bits. `None`: a string, an undefined type, or a type without a specified
    /// packing.
    pub fn bit_size(self) -> Option<u64> {
        match self {
            Self::Uint4 | Self::Int4 | Self::Float4e2m1 => Some(4),
            Self::Uint2 | Self::Int2 => Some(2),
            other => other.byte_size().map(|bytes| 8 * bytes as u64),
        }
    }

    /// Returns the name as the ONNX specification writes it, such as `float16`.
    pub fn spec_name(self) -> String {
        match self {
            Self::Float => "float32".to_owned(),
            Self::Double => "float64".to_owned(),
            other => other.as_str_name().to_ascii_lowercase(),
        }
    }
}
