//! Finds blocks by the names of nodes and weights.
//!
//! Exporters name nodes and weights after the modules of the program: `/down_blocks.0/resnets.1/conv1/Conv`,
//! `down_blocks.0.resnets.1.conv1.weight`. Both are paths in a tree of modules. The modules in a numbered list are the
//! blocks, unless the list only has single layers.

use std::collections::BTreeMap;

use super::measure::Layer;
use crate::analysis::Analysis;
use crate::graph::{Node, NodeId};

/// Metadata keys under which exporters store the modules of a node.
const SCOPES: [&str; 1] = ["pkg.torch.onnx.name_scopes"];

/// Blocks by name: their paths, and the block of every node whose name reveals it.
#[derive(Debug)]
pub(super) struct Blocks {
    /// The names of the blocks.
    pub(super) names: Vec<String>,
    /// The block of every node.
    pub(super) of_node: Vec<Option<usize>>,
}

/// Splits a path into its parts, without the last one, which is the operator or the role of a weight in its layer.
fn parts(path: &str) -> Vec<String> {
    let mut scopes: Vec<&str> = Vec::new();
    for scope in path.split('/').filter(|scope| !scope.is_empty()) {
        // Some exporters repeat the previous scope: `/down.1/down.1.0/conv/Conv`.
        if scopes.last().is_some_and(|last| scope.strip_prefix(last).is_some_and(|rest| rest.starts_with('.'))) {
            scopes.pop();
        }
        scopes.push(scope);
    }
    let mut parts: Vec<String> =
        scopes.iter().flat_map(|scope| scope.split('.')).filter(|part| !part.is_empty()).map(str::to_owned).collect();
    parts.pop();
    parts
}

/// Returns the modules in the exporter's metadata: the quoted parts of a list, each of which continues the previous
/// one.
fn scope(text: &str) -> Vec<String> {
    let quoted = |quote: char| -> Vec<&str> { text.split(quote).skip(1).step_by(2).collect() };
    let scopes = if text.contains('\'') { quoted('\'') } else { quoted('"') };
    // The last part is the operation itself.
    let modules = scopes.iter().rev().skip(1).find(|scope| !scope.is_empty());
    modules.map_or_else(Vec::new, |path| {
        path.split(['/', '.']).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    })
}

/// Returns the modules of a node, as far as its name reveals them.
fn path_of_node(node: &Node) -> Vec<String> {
    if node.proto.name.contains('/') {
        return parts(&node.proto.name);
    }
    let entry = |key: &&str| node.proto.metadata_props.iter().find(|entry| entry.key == *key);
    SCOPES.iter().find_map(entry).map_or_else(Vec::new, |entry| scope(&entry.value))
}

/// Returns the modules of a layer.
fn path_of_layer(analysis: &Analysis, layer: &Layer) -> Vec<String> {
    let node = &analysis.graph.nodes[layer.node];
    let own = path_of_node(node);
    if !own.is_empty() {
        return own;
    }
    // A transposed weight has lost its name. The bias that the next node adds still has its name.
    let readers = node.outputs.iter().flatten().map(|value| &analysis.graph.values[*value].consumers);
    let next = readers.filter(|readers| readers.len() == 1).flatten().map(|(reader, _)| *reader);
    std::iter::once(node.id).chain(next).find_map(|node| path_of_constants(analysis, node)).unwrap_or_default()
}

/// Returns the modules that the constants of a node belong to.
fn path_of_constants(analysis: &Analysis, node: NodeId) -> Option<Vec<String>> {
    let slots = 0..analysis.graph.nodes[node].inputs.len();
    let uses = slots.filter_map(|slot| analysis.coupling.weight_use(node, slot));
    let constants = uses.flat_map(|weight| std::iter::once(weight.value).chain(analysis.fold.sources(weight.value)));
    // Exporters share equal constants, such as untrained norms, under one of their names.
    let own = constants.map(|value| &analysis.graph.values[value]).filter(|value| value.consumers.len() == 1);
    let names = own.map(|value| value.name.as_str()).filter(|name| !name.contains("::"));
    names.map(parts).find(|path| !path.is_empty())
}

/// Returns the blocks if at least half of the layers have names with modules. Layers must be in the order of the graph.
pub(super) fn blocks(analysis: &Analysis, layers: &[Layer]) -> Option<Blocks> {
    let paths: Vec<(NodeId, Vec<String>)> = layers
        .iter()
        .map(|layer| (layer.node, path_of_layer(analysis, layer)))
        .filter(|(_, path)| !path.is_empty())
        .collect();
    if paths.len() * 2 < layers.len() {
        return None;
    }
    let mut prefixes: Vec<Vec<String>> = Vec::new();
    let all: Vec<&[String]> = paths.iter().map(|(_, path)| path.as_slice()).collect();
    divide(&all, (0, all.len()), &mut prefixes);
    if prefixes.len() < 3 {
        return None;
    }
    let at: BTreeMap<&[String], usize> =
        prefixes.iter().enumerate().map(|(at, prefix)| (prefix.as_slice(), at)).collect();
    let of = |path: &[String]| (0..=path.len()).rev().find_map(|length| at.get(&path[..length]).copied());
    let path = |node: &Node| match path_of_node(node) {
        path if path.is_empty() => path_of_constants(analysis, node.id).unwrap_or_default(),
        path => path,
    };
    let mut of_node: Vec<Option<usize>> = analysis.graph.nodes.iter().map(|node| of(&path(node))).collect();
    paths.iter().for_each(|(node, path)| of_node[*node] = of(path));
    let shared = (0..).take_while(|at| {
        let first = prefixes[0].get(*at);
        first.is_some() && prefixes.iter().all(|prefix| prefix.len() > at + 1 && prefix.get(*at) == first)
    });
    let shared = shared.count();
    let names = prefixes.iter().map(|prefix| prefix[shared..].join(".")).collect();
    Some(Blocks { names, of_node })
}

/// Groups paths by their part at `depth`, in the order of first occurrence.
fn children<'p>(paths: &[&'p [String]], depth: usize) -> Vec<(Option<&'p str>, Vec<&'p [String]>)> {
    let mut children: Vec<(Option<&str>, Vec<&[String]>)> = Vec::new();
    for path in paths {
        let part = path.get(depth).map(String::as_str);
        match children.iter_mut().find(|(known, _)| *known == part) {
            Some((_, of)) => of.push(path),
            None => children.push((part, vec![path])),
        }
    }
    children
}

fn is_number(part: &Option<&str>) -> bool {
    part.is_some_and(|part| part.bytes().all(|letter| letter.is_ascii_digit()))
}

/// Returns `Some` if all paths of one module continue with numbers; the value is whether an element of the list has
/// several layers.
fn list(paths: &[&[String]], depth: usize) -> Option<bool> {
    let of = children(paths, depth);
    of.iter().all(|(part, _)| is_number(part)).then(|| of.iter().any(|(_, paths)| has_several(paths)))
}

fn has_several(paths: &[&[String]]) -> bool {
    paths.iter().any(|path| path != &paths[0])
}

/// Divides the paths that agree up to `depth` into blocks; `all` is the number of paths in the network.
fn divide(paths: &[&[String]], (depth, all): (usize, usize), blocks: &mut Vec<Vec<String>>) {
    let of = children(paths, depth);
    if !is_divided(paths, &of, (depth, all)) {
        blocks.push(paths[0][..depth].to_vec());
        return;
    }
    for (part, paths) in of {
        match part {
            Some(_) => divide(&paths, (depth + 1, all), blocks),
            None => blocks.push(paths[0][..depth].to_vec()),
        }
    }
}

fn is_divided(paths: &[&[String]], of: &[(Option<&str>, Vec<&[String]>)], (depth, all): (usize, usize)) -> bool {
    match of {
        _ if depth == 0 => true,
        _ if !has_several(paths) => false,
        // A module with layers in only one part is the same as that part.
        [(Some(_), _)] => true,
        _ if of.iter().all(|(part, _)| is_number(part)) => of.iter().any(|(_, paths)| has_several(paths)),
        _ => {
            let lists: Vec<bool> = of.iter().filter_map(|(_, paths)| list(paths, depth + 1)).collect();
            lists.contains(&true) && (lists.len() > 1 || paths.len() * 3 > all)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divided(names: &[&str]) -> Vec<String> {
        let paths: Vec<Vec<String>> = names.iter().map(|name| parts(name)).collect();
        let paths: Vec<&[String]> = paths.iter().map(Vec::as_slice).collect();
        let mut blocks = Vec::new();
        divide(&paths, (0, paths.len()), &mut blocks);
        blocks.iter().map(|block| block.join(".")).collect()
    }

    #[test]
    fn numbered_modules_of_several_layers_are_blocks() {
        let found = divided(&[
            "conv_in.weight",
            "time.0.weight",
            "time.2.weight",
            "down.0.resnets.0.conv1.weight",
            "down.0.resnets.0.conv2.weight",
            "down.0.resnets.1.conv1.weight",
            "down.0.resnets.1.conv2.weight",
            "down.0.shrink.0.conv.weight",
            "down.1.resnets.0.conv1.weight",
            "down.1.resnets.0.conv2.weight",
            "mid.first.conv1.weight",
            "mid.first.out.0.weight",
        ]);
        let expected = [
            "conv_in",
            "time",
            "down.0.resnets.0",
            "down.0.resnets.1",
            "down.0.shrink",
            "down.1.resnets.0",
            "mid.first",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_list_of_blocks_is_found_inside_a_wrapper() {
        let layers =
            |at: usize| ["attn.qkv", "attn.proj.0", "mlp.0", "mlp.2"].map(|of| format!("net.blocks.{at}.{of}.w"));
        let mut names: Vec<String> = (0..3).flat_map(layers).collect();
        names.insert(0, "net.embed.proj.w".to_owned());
        names.push("net.final.w".to_owned());
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let expected = ["net.embed", "net.blocks.0", "net.blocks.1", "net.blocks.2", "net.final"];
        assert_eq!(divided(&names), expected);
    }

    #[test]
    fn metadata_of_an_exporter_is_read() {
        assert_eq!(parts("/down.1/down.1.0/conv/Conv"), ["down", "1", "0", "conv"]);
        assert_eq!(scope("['', 'down.0', 'down.0.conv', 'conv2d_1']"), ["down", "0", "conv"]);
        assert!(scope("x").is_empty() && scope("").is_empty() && scope("['']").is_empty());
    }
}
