//! The outline of a network in blocks, levels and skip connections, as a report shows it.

use std::collections::BTreeMap;

use onnx_diffprune::reports::{Outline, OutlineBlock};
use onnx_diffprune::{Cut, Model, Ratio, ScoreOptions};

use crate::support::files::decoded;
use crate::support::fixtures::{FIXTURES, fixture, runtime};

fn cut(model: &Model) -> Cut {
    let options = ScoreOptions { criterion: onnx_diffprune::CriterionOption::Magnitude, ..ScoreOptions::default() };
    // The runtime that is already open.
    runtime();
    let runtime = onnx_diffprune::Runtime::open(None).unwrap();
    model.analyse().unwrap().score(&options, &runtime).unwrap().cut(Ratio(0.4)).unwrap()
}

fn outlined(name: &str) -> (Cut, Outline) {
    let cut = cut(&Model::open(fixture(name)).unwrap());
    let outline = cut.outline();
    (cut, outline)
}

fn block<'a>(outline: &'a Outline, name: &str) -> &'a OutlineBlock {
    outline.blocks.iter().find(|block| block.name == name).unwrap_or_else(|| panic!("no block {name}"))
}

/// Asserts that the MACs of all blocks sum to those of the network, and that every channel group is in at most one
/// block.
fn adds_up(cut: &Cut, outline: &Outline) {
    let sum = |of: fn(&(f64, f64)) -> f64| {
        outline.blocks.iter().map(|block| of(&block.macs)).sum::<f64>() + of(&outline.other_macs)
    };
    let whole = |cost: &onnx_diffprune::reports::Cost| cost.macs + cost.attention_macs;
    for (found, expected) in [(sum(|macs| macs.0), whole(cut.before())), (sum(|macs| macs.1), whole(cut.after()))] {
        assert!((found - expected).abs() <= 1e-9 * expected, "{found} {expected}");
    }
    let mut places: Vec<usize> = outline.blocks.iter().flat_map(|block| block.groups.iter().copied()).collect();
    let count = places.len();
    places.sort_unstable();
    places.dedup();
    assert!(places.len() == count && places.last().is_none_or(|last| *last < cut.plan().groups.len()));
    assert!(count * 10 >= cut.plan().groups.len() * 9, "{count} of {} groups have a block", cut.plan().groups.len());
}

#[test]
fn operations_of_all_blocks_sum_to_those_of_the_network() {
    for name in FIXTURES {
        let (cut, outline) = outlined(name);
        adds_up(&cut, &outline);
        assert!(outline.is_named && outline.blocks.len() > 5, "{name}: {} blocks", outline.blocks.len());
    }
}

#[test]
fn a_u_net_has_levels_and_a_skip_connection_for_every_up_block() {
    let (cut, outline) = outlined("ddpm_fashion16.onnx");
    let sizes: Vec<&str> = outline.levels.iter().map(|level| level.size.as_str()).collect();
    assert_eq!(sizes, ["16×16", "8×8", "4×4", ""]);
    let name = |at: usize| outline.blocks[at].name.as_str();
    let skips: BTreeMap<&str, &str> = outline.skips.iter().map(|(from, to)| (name(*to), name(*from))).collect();
    let expected = [
        ("up_blocks.0.resnets.0", "down_blocks.2.resnets.1"),
        ("up_blocks.0.resnets.1", "down_blocks.2.resnets.0"),
        ("up_blocks.0.resnets.2", "down_blocks.1.downsamplers"),
        ("up_blocks.1.resnets.0", "down_blocks.1.attentions.1"),
        ("up_blocks.1.resnets.1", "down_blocks.1.attentions.0"),
        ("up_blocks.1.resnets.2", "down_blocks.0.downsamplers"),
        ("up_blocks.2.resnets.0", "down_blocks.0.resnets.1"),
        ("up_blocks.2.resnets.1", "down_blocks.0.resnets.0"),
        ("up_blocks.2.resnets.2", "conv_in"),
    ];
    assert_eq!(skips, BTreeMap::from(expected));
    assert_eq!(outline.skips.len(), expected.len());
    // The widths are those of the plan.
    let group = cut.plan().groups.iter().find(|group| group.name == "conv_in.weight").unwrap();
    assert_eq!(block(&outline, "conv_in").channels, (group.channels, group.kept.len()));
    assert!(group.kept.len() < group.channels);
    assert_eq!(block(&outline, "conv_out").channels, (1, 1));
}

#[test]
fn the_heads_of_a_transformer_agree_with_its_groups() {
    let (cut, outline) = outlined("dit_fashion16.onnx");
    let row: Vec<&OutlineBlock> = outline.blocks.iter().filter(|block| block.name.starts_with("blocks.")).collect();
    assert_eq!(row.len(), 6);
    assert!(outline.skips.is_empty(), "{:?}", outline.skips);
    for block in row {
        let (count, size) = block.heads.unwrap();
        let groups: Vec<usize> =
            block.groups.iter().copied().filter(|group| outline.head_groups.contains(group)).collect();
        assert_eq!((groups.len(), count.0, size.0 * count.0), (1, 4, 128));
        assert_eq!(cut.plan().groups[groups[0]].kept.len(), count.1);
        assert!(count.1 < count.0 && size.0 == size.1);
    }
}

/// Loads the network with meaningless names of nodes and values.
fn nameless(name: &str) -> Model {
    use onnx_protobuf::Message;
    let mut model = decoded(&fixture(name));
    let graph = model.graph.as_mut().unwrap();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut rename = |name: &mut String| {
        if !name.is_empty() {
            let next = format!("v{}", names.len());
            *name = names.entry(name.clone()).or_insert(next).clone();
        }
    };
    for (at, node) in graph.node.iter_mut().enumerate() {
        node.name = format!("node_{at}");
        node.metadata_props.clear();
        node.input.iter_mut().chain(&mut node.output).for_each(&mut rename);
    }
    graph.initializer.iter_mut().for_each(|tensor| rename(&mut tensor.name));
    graph.input.iter_mut().chain(&mut graph.output).for_each(|value| rename(&mut value.name));
    graph.value_info.clear();
    Model::from_bytes(fixture(name), model.write_to_bytes().unwrap()).unwrap()
}

#[test]
fn without_names_blocks_and_levels_follow_from_the_data_flow() {
    let (_, named) = outlined("ddpm_fashion16.onnx");
    let cut = cut(&nameless("ddpm_fashion16.onnx"));
    let outline = cut.outline();
    adds_up(&cut, &outline);
    assert!(!outline.is_named && outline.blocks[0].name.starts_with("layer"), "{}", outline.blocks[0].name);
    assert_eq!(outline.levels, named.levels);
    // Down and up again.
    let mut way: Vec<usize> = outline.blocks.iter().map(|block| block.level).filter(|level| *level < 3).collect();
    way.dedup();
    assert_eq!(way, [0, 1, 2, 1, 0]);
    assert!(outline.skips.len() >= 4, "{:?}", outline.skips);
}
