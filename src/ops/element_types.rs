//! Which inputs and outputs of an operator may be in half precision, according to the operators' schemas.
//!
//! `scripts/element_types.py` writes the table `element_types.txt` from the schemas of the onnx package and of ONNX
//! Runtime. Operators that the table lacks keep the types that the file states.

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::onnx::DataType;

/// A formal input or output of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formal {
    /// The type variable; formals with the same variable have the same type. `None` if the schema does not allow
    /// float32.
    pub variable: Option<char>,
    /// Whether it may be float16 instead of float32.
    float16: bool,
    /// Whether it may be bfloat16 instead of float32.
    bfloat16: bool,
    /// How the last formal of a list repeats.
    repeats: Repeats,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeats {
    Once,
    /// Any number, all of the same type.
    Alike,
    /// Any number, each of its own type.
    Independent,
}

impl Formal {
    fn parse(token: &str) -> Self {
        let letter = token.chars().next().filter(|letter| *letter != '-');
        let repeats = match token.chars().last() {
            Some('*') => Repeats::Alike,
            Some('+') => Repeats::Independent,
            _ => Repeats::Once,
        };
        let flags = token.get(1..).unwrap_or_default();
        Self { variable: letter, float16: flags.contains('h'), bfloat16: flags.contains('b'), repeats }
    }

    /// Whether it may have this type instead of float32.
    pub fn takes(&self, dtype: DataType) -> bool {
        self.variable.is_some()
            && match dtype {
                DataType::Float16 => self.float16,
                DataType::Bfloat16 => self.bfloat16,
                other => other == DataType::Float,
            }
    }

    /// Whether its type is tied to the type of another formal.
    pub fn is_tied_to(&self, other: &Self) -> bool {
        self.variable.is_some()
            && self.variable == other.variable
            && self.repeats != Repeats::Independent
            && other.repeats != Repeats::Independent
    }
}

/// The inputs and outputs of an operator since one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElementTypes {
    since: i64,
    inputs: Vec<Formal>,
    outputs: Vec<Formal>,
}

impl ElementTypes {
    /// Returns the types of input `slot`.
    pub fn input(&self, slot: usize) -> Option<Formal> {
        formal(&self.inputs, slot)
    }

    /// Returns the types of output `slot`.
    pub fn output(&self, slot: usize) -> Option<Formal> {
        formal(&self.outputs, slot)
    }
}

fn formal(formals: &[Formal], slot: usize) -> Option<Formal> {
    let last = formals.last().filter(|last| last.repeats != Repeats::Once);
    formals.get(slot).or(last).copied()
}

/// The table by operator type; every entry holds the domain.
type Table = HashMap<&'static str, Vec<(&'static str, ElementTypes)>>;

fn parse(text: &'static str) -> Table {
    let mut table = Table::new();
    for line in text.lines() {
        let (left, right) = line.split_once('|').unwrap_or((line, ""));
        let mut words = left.split_whitespace();
        let (Some(domain), Some(name), Some(since)) = (words.next(), words.next(), words.next()) else { continue };
        let (inputs, outputs) =
            (words.map(Formal::parse).collect(), right.split_whitespace().map(Formal::parse).collect());
        let since = since.parse().unwrap_or(1);
        table.entry(name).or_default().push((domain, ElementTypes { since, inputs, outputs }));
    }
    table
}

/// Returns the element types of an operator at a version of its domain; `None` if the schemas have no such operator,
/// or allow float32 for none of its inputs and outputs.
pub fn element_types(domain: &str, op_type: &str, version: i64) -> Option<&'static ElementTypes> {
    static TABLE: OnceLock<Table> = OnceLock::new();
    let table = TABLE.get_or_init(|| parse(include_str!("element_types.txt")));
    let domain = if domain.is_empty() { "ai.onnx" } else { domain };
    let mut of_domain = table.get(op_type)?.iter().filter(|(own, _)| *own == domain).map(|(_, types)| types);
    of_domain.rfind(|types| types.since <= version)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn element_types_depend_on_the_version() {
        let conv = |version| element_types("", "Conv", version).unwrap().input(1).unwrap();
        assert!(conv(17).takes(DataType::Float16) && !conv(17).takes(DataType::Bfloat16));
        assert!(conv(22).takes(DataType::Bfloat16));
        let resize = element_types("ai.onnx", "Resize", 19).unwrap();
        let [data, scales] = [0, 2].map(|slot| resize.input(slot).unwrap());
        assert!(data.takes(DataType::Float16) && !scales.takes(DataType::Float16) && scales.takes(DataType::Float));
        assert!(!data.is_tied_to(&scales) && data.is_tied_to(&resize.output(0).unwrap()));
        assert_eq!(resize.input(3).unwrap().variable, None);
        assert_eq!(resize.input(4), None);
    }

    #[test]
    fn the_last_formal_of_a_list_repeats() {
        let concat = element_types("", "Concat", 13).unwrap();
        assert!(concat.input(7).unwrap().is_tied_to(&concat.output(0).unwrap()));
        assert_eq!(element_types("", "NoSuchOperator", 20), None);
        assert!(!element_types("", "Range", 11).unwrap().output(0).unwrap().takes(DataType::Float16));
    }
}
