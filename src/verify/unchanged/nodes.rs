//! Comparison of two nodes without their inputs: operators, attributes, bodies.

use crate::error::Error;
use crate::graph::model::Model;
use crate::onnx::attribute_proto::AttributeType;
use crate::onnx::{AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto};
use crate::operator::reference::KeptAxes;

use super::elements::{Comparison, difference};

/// A node and the model that contains its tensors.
pub(super) struct Form<'a> {
    pub(super) model: &'a Model,
    pub(super) node: &'a NodeProto,
}

/// Compares operators, outputs and attributes. Returns whether attributes that may name sizes differ, or a description of
/// a difference that is not allowed.
///
/// # Errors
/// A tensor can't be read.
pub(super) fn same_form(original: &Form<'_>, found: &Form<'_>) -> Result<Result<bool, String>, Error> {
    let plain = |domain: &str| if domain == "ai.onnx" { String::new() } else { domain.to_owned() };
    let op = |node: &NodeProto| (plain(&node.domain), node.op_type.clone(), node.overload.clone());
    if op(original.node) != op(found.node) {
        return Ok(Err(format!("expected operator {}, found {}", original.node.op_type, found.node.op_type)));
    }
    if named(&original.node.output) != named(&found.node.output) {
        return Ok(Err(format!("expected outputs {:?}, found {:?}", original.node.output, found.node.output)));
    }
    let mut is_edited = false;
    for attribute in &original.node.attribute {
        let name = &attribute.name;
        match found.node.attr(name) {
            Some(other) if same_attribute((original.model, attribute), (found.model, other))? => {}
            Some(other) if is_size(attribute) && attribute.r#type == other.r#type => is_edited = true,
            None if is_size(attribute) => is_edited = true,
            Some(_) => {
                return Ok(Err(format!(
                    "attribute {name} differs from the original's{}",
                    shown(attribute, found.node)
                )));
            }
            None => return Ok(Err(format!("attribute {name} is missing"))),
        }
    }
    for attribute in found.node.attribute.iter().filter(|new| original.node.attr(&new.name).is_none()) {
        // A scale that the original computes from a size by default.
        if !is_size(attribute) && attribute.r#type != AttributeType::Float as i32 {
            return Ok(Err(format!("attribute {} is new", attribute.name)));
        }
        is_edited = true;
    }
    Ok(Ok(is_edited))
}

/// Returns both numbers as text, if the attributes are numbers.
fn shown(attribute: &AttributeProto, found: &NodeProto) -> String {
    let numbers = attribute.f.zip(found.float(&attribute.name));
    numbers.map_or_else(String::new, |(expected, found)| format!(": expected {expected:e}, found {found:e}"))
}

/// Whether an attribute contains integers, which may be sizes.
fn is_size(attribute: &AttributeProto) -> bool {
    [AttributeType::Int as i32, AttributeType::Ints as i32].contains(&attribute.r#type)
}

fn named(names: &[String]) -> &[String] {
    let end = names.iter().rposition(|name| !name.is_empty()).map_or(0, |last| last + 1);
    &names[..end]
}

fn same_attribute(
    (model, a): (&Model, &AttributeProto),
    (other_model, b): (&Model, &AttributeProto),
) -> Result<bool, Error> {
    let bare = |attribute: &AttributeProto| AttributeProto {
        doc_string: String::new(),
        t: None,
        tensors: Vec::new(),
        sparse_tensor: None,
        sparse_tensors: Vec::new(),
        g: None,
        graphs: Vec::new(),
        // NaN is not equal to itself; floats are compared by their bits.
        f: None,
        floats: Vec::new(),
        ..attribute.clone()
    };
    let bits = |attribute: &AttributeProto| -> Vec<u32> {
        attribute.f.iter().chain(&attribute.floats).map(|number| number.to_bits()).collect()
    };
    if bits(a) != bits(b) || bare(a) != bare(b) {
        return Ok(false);
    }
    let tensors = |attribute: &AttributeProto| -> Vec<TensorProto> {
        attribute.t.iter().chain(&attribute.tensors).cloned().collect()
    };
    if !all_same::<TensorProto>(&tensors(a), &tensors(b), |a, b| same_tensor((model, a), (other_model, b)))? {
        return Ok(false);
    }
    let sparse = |attribute: &AttributeProto| -> Vec<SparseTensorProto> {
        attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors).cloned().collect()
    };
    if !all_same::<SparseTensorProto>(&sparse(a), &sparse(b), |a, b| same_sparse((model, a), (other_model, b)))? {
        return Ok(false);
    }
    let bodies = |attribute: &AttributeProto| -> Vec<GraphProto> {
        attribute.g.iter().chain(&attribute.graphs).cloned().collect()
    };
    all_same::<GraphProto>(&bodies(a), &bodies(b), |a, b| same_body((model, a), (other_model, b)))
}

fn all_same<T>(a: &[T], b: &[T], mut same: impl FnMut(&T, &T) -> Result<bool, Error>) -> Result<bool, Error> {
    if a.len() != b.len() {
        return Ok(false);
    }
    for (a, b) in a.iter().zip(b) {
        if !same(a, b)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn same_tensor((model, a): (&Model, &TensorProto), (other, b): (&Model, &TensorProto)) -> Result<bool, Error> {
    Ok(difference((model, a), &KeptAxes::new(), (other, b), false)? == Comparison::Same)
}

fn same_sparse(
    (model, a): (&Model, &SparseTensorProto),
    (other, b): (&Model, &SparseTensorProto),
) -> Result<bool, Error> {
    let parts = |sparse: &SparseTensorProto| -> Vec<TensorProto> {
        sparse.values.iter().chain(&sparse.indices).cloned().collect()
    };
    Ok(a.dims == b.dims && all_same::<TensorProto>(&parts(a), &parts(b), |a, b| same_tensor((model, a), (other, b)))?)
}

/// Whether two bodies of nodes are the same, with their nodes in the same order.
fn same_body((model, a): (&Model, &GraphProto), (other, b): (&Model, &GraphProto)) -> Result<bool, Error> {
    let infos = |graph: &GraphProto| -> Vec<String> {
        graph.input.iter().chain(&graph.output).map(|info| info.name.clone()).collect()
    };
    if infos(a) != infos(b) {
        return Ok(false);
    }
    let named = |a: &TensorProto, b: &TensorProto| Ok(a.name == b.name && same_tensor((model, a), (other, b))?);
    if !all_same(&a.initializer, &b.initializer, named)?
        || !all_same(&a.sparse_initializer, &b.sparse_initializer, |a, b| same_sparse((model, a), (other, b)))?
    {
        return Ok(false);
    }
    all_same(&a.node, &b.node, |a, b| {
        let forms = (Form { model, node: a }, Form { model: other, node: b });
        Ok(a.input == b.input && same_form(&forms.0, &forms.1)? == Ok(false))
    })
}
