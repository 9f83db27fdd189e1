//! Operators that select parts of axes.

use onnx_diffprune::onnx::{attr_int, attr_ints, attr_string};

use super::around::{Around::Conv, Around::MatMul, Around::StaticConv, CHANNELS};
use super::{Fate::Kept, Fate::Removed, check};
use crate::support::builder::Builder;

/// The tests of this file.
pub(super) const ALL: &[fn()] = &[
    slices_remove_channels_of_their_span,
    splits_remove_channels_of_their_parts,
    gathers_with_constant_indices_remove_channels,
    gathered_slices_lose_channels_and_gathered_elements_keep_them,
    indices_are_expanded_along_channels,
    blocks_are_assigned,
    whole_values_are_assigned,
    indices_among_channels_keep_all_channels,
];

type Built = (String, Option<i64>);

/// Adds a Slice, by attributes or by inputs.
fn slice(n: &mut Builder, v: &str, start: i64, end: i64, axis: i64, step: i64) -> String {
    if n.opset < 10 {
        let ints = |name: &str, value: i64| attr_ints(name, &[value]);
        return n.op("Slice", &[v], &[ints("starts", start), ints("ends", end), ints("axes", axis)]);
    }
    let inputs = [start, end, axis, step].map(|value| n.ints(&[value]));
    n.op("Slice", &[v, &inputs[0], &inputs[1], &inputs[2], &inputs[3]], &[])
}

#[test]
fn slices_remove_channels_of_their_span() {
    check("halves", Conv, &[9, 10, 13], Removed, |n, v| {
        let (a, b) = (slice(n, v, 0, 6, 1, 1), slice(n, v, 6, i64::MAX, 1, 1));
        (n.op("Mul", &[&a, &b], &[]), Some(6))
    });
    check("halves from the end", Conv, &[10, 13], Removed, |n, v| {
        let (a, b) = (slice(n, v, 0, -6, -3, 1), slice(n, v, -6, i64::from(i32::MAX), 1, 1));
        (n.op("Mul", &[&a, &b], &[]), Some(6))
    });
    check("a part of the channels", Conv, &[13], Removed, |n, v| (slice(n, v, 2, 9, 1, 1), Some(7)));
    check("one channel", Conv, &[13], Removed, |n, v| {
        let (a, b) = (slice(n, v, 3, 4, 1, 1), slice(n, v, 4, 12, 1, 1));
        (n.op("Mul", &[&a, &b], &[]), Some(8))
    });
    check("no channel", Conv, &[13], Removed, |n, v| {
        let none = slice(n, v, 5, 5, 1, 1);
        (n.op("Concat", &[v, &none], &[attr_int("axis", 1)]), Some(CHANNELS))
    });
    check("parts that overlap", Conv, &[13], Removed, |n, v| {
        let (a, b) = (slice(n, v, 0, 10, 1, 1), slice(n, v, 2, 12, 1, 1));
        (n.op("Add", &[&a, &b], &[]), Some(10))
    });
    check("every second channel", Conv, &[10, 13], Removed, |n, v| (slice(n, v, 0, 12, 1, 2), Some(6)));
    check("every third, from the end", Conv, &[13], Removed, |n, v| (slice(n, v, -2, -100, 1, -3), Some(4)));
    check("backwards", Conv, &[13], Removed, |n, v| (slice(n, v, -1, i64::MIN, 1, -1), Some(CHANNELS)));
    check("pairs that are apart", Conv, &[13], Removed, |n, v| {
        let (even, odd) = (slice(n, v, 0, 12, 1, 2), slice(n, v, 1, i64::MAX, 1, 2));
        (n.op("Mul", &[&even, &odd], &[]), Some(6))
    });
    check("some channels of rows that are apart", StaticConv, &[13], Removed, |n, v| {
        let inputs = [[-1, 0], [-9, 99], [1, 2], [-2, 3]].map(|values| n.ints(&values));
        let some = n.op("Slice", &[v, &inputs[0], &inputs[1], &inputs[2], &inputs[3]], &[]);
        (n.op("Relu", &[&some], &[]), Some(4))
    });
    check("every second row", Conv, &[13], Removed, |n, v| (slice(n, v, 1, i64::MAX, 2, 2), Some(CHANNELS)));
}

fn joined(n: &mut Builder, parts: &[String]) -> Built {
    let first = n.op("Relu", &[&parts[0]], &[]);
    let mut inputs: Vec<&str> = parts.iter().map(String::as_str).collect();
    inputs[0] = &first;
    (n.op("Concat", &inputs, &[attr_int("axis", 1)]), Some(CHANNELS))
}

#[test]
fn splits_remove_channels_of_their_parts() {
    check("equal parts", Conv, &[9, 11, 13], Removed, |n, v| {
        let parts = n.ops("Split", &[v], &[attr_int("axis", 1)], 3);
        joined(n, &parts)
    });
    check("a number of parts", Conv, &[18], Removed, |n, v| {
        let parts = n.ops("Split", &[v], &[attr_int("axis", 1), attr_int("num_outputs", 2)], 2);
        joined(n, &parts)
    });
    check("named sizes, attribute", Conv, &[9, 11], Removed, |n, v| {
        let parts = n.ops("Split", &[v], &[attr_int("axis", 1), attr_ints("split", &[5, 7])], 2);
        joined(n, &parts)
    });
    check("named sizes, input", Conv, &[13, 18], Removed, |n, v| {
        let sizes = n.ints(&[5, 7]);
        let parts = n.ops("Split", &[v, &sizes], &[attr_int("axis", 1)], 2);
        joined(n, &parts)
    });
    check("parts of which one is kept", Conv, &[11, 13, 18], Removed, |n, v| {
        let x = slice(n, "x", 0, 4, 1, 1);
        let mut attributes = vec![attr_int("axis", 1)];
        attributes.extend((n.opset >= 18).then(|| attr_int("num_outputs", 3)));
        let mut parts = n.ops("Split", &[v], &attributes, 3);
        parts[1] = n.op("Add", &[&parts[1], &x], &[]);
        joined(n, &parts)
    });
    check("a gate", MatMul, &[13], Removed, |n, v| {
        let parts = n.ops("Split", &[v], &[attr_int("axis", -1)], 2);
        let gate = n.op("Sigmoid", &[&parts[1]], &[]);
        (n.op("Mul", &[&parts[0], &gate], &[]), Some(6))
    });
}

#[test]
fn gathers_with_constant_indices_remove_channels() {
    check("one channel", Conv, &[9, 11, 13], Removed, |n, v| {
        let (index, target) = (n.ints_of(&[-3], &[]), n.ints(&[0, 1, -1]));
        let one = n.op("Gather", &[v, &index], &[attr_int("axis", 1)]);
        let one = n.op("ReduceMax", &[&one], &[attr_int("keepdims", 1)]);
        let one = n.op("Reshape", &[&one, &target], &[]);
        (n.op("Mul", &[v, &one], &[]), Some(CHANNELS))
    });
    check("a permutation", Conv, &[9, 13], Removed, |n, v| {
        let indices = n.ints(&(0..CHANNELS).rev().collect::<Vec<_>>());
        (n.op("Gather", &[v, &indices], &[attr_int("axis", 1)]), Some(CHANNELS))
    });
    check("some, one of them twice", Conv, &[13], Removed, |n, v| {
        let indices = n.ints(&[1, -2, 5, 5]);
        (n.op("Gather", &[v, &indices], &[attr_int("axis", 1)]), Some(4))
    });
    check("a table of indices", Conv, &[13], Kept, |n, v| {
        let indices = n.ints_of(&(0..CHANNELS).collect::<Vec<_>>(), &[3, 4]);
        let v = n.op("Gather", &[v, &indices], &[attr_int("axis", 1)]);
        (n.op("ReduceMean", &[&v], &[attr_ints("axes", &[2])]), None)
    });
    check("rows", Conv, &[13], Removed, |n, v| {
        let indices = n.ints(&[0, 1]);
        (n.op("Gather", &[v, &indices], &[attr_int("axis", 2)]), Some(CHANNELS))
    });
    check("an embedding", Conv, &[9, 13], Removed, |n, v| {
        let (table, target) = (n.weight(&[10, CHANNELS]), n.ints(&[-1, CHANNELS, 1, 1]));
        let x = n.op("GlobalAveragePool", &["x"], &[]);
        let index = n.op("ArgMax", &[&x], &[attr_int("axis", 1), attr_int("keepdims", 0)]);
        let row = n.op("Gather", &[&table, &index], &[]);
        let row = n.op("Reshape", &[&row, &target], &[]);
        (n.op("Add", &[v, &row], &[]), Some(CHANNELS))
    });
}

#[test]
fn gathered_slices_lose_channels_and_gathered_elements_keep_them() {
    check("GatherND", StaticConv, &[11, 13, 18], Removed, |n, v| {
        let indices = n.ints_of(&[0, 1, -2], &[3, 1]);
        (n.op("GatherND", &[v, &indices], &[]), Some(CHANNELS))
    });
    check("GatherND within batches", StaticConv, &[13, 18], Removed, |n, v| {
        // Two pixels of each image: in one image the same pixel twice, in the other one counted from the end.
        let pixels = n.op("Transpose", &[v], &[attr_ints("perm", &[0, 2, 3, 1])]);
        let indices = n.ints_of(&[1, 2, 1, 2, 3, -1, 0, 4], &[2, 2, 2]);
        let taken = n.op("GatherND", &[&pixels, &indices], &[attr_int("batch_dims", 1)]);
        let taken = n.op("Transpose", &[&taken], &[attr_ints("perm", &[0, 2, 1])]);
        let shape = n.ints(&[2, -1, 2, 1]);
        (n.op("Reshape", &[&taken, &shape], &[]), Some(CHANNELS))
    });
    check("GatherElements", StaticConv, &[11, 13, 18], Removed, |n, v| {
        // Fewer columns than the image has.
        let indices = n.ints_of(&[0, 3, 3, -3, 2].repeat(2 * 12 * 4), &[2, 12, 5, 4]);
        (n.op("GatherElements", &[v, &indices], &[attr_int("axis", 2)]), Some(CHANNELS))
    });
    check("a depthwise kernel that ScatterND writes along the diagonal", StaticConv, &[16, 18], Removed, |n, v| {
        let places: Vec<i64> = (0..CHANNELS).flat_map(|channel| [channel, channel]).collect();
        let (shape, places) = (n.ints(&[CHANNELS, CHANNELS, 1, 1]), n.ints_of(&places, &[CHANNELS, 2]));
        let (zeros, updates) = (n.op("ConstantOfShape", &[&shape], &[]), n.weight(&[CHANNELS, 1, 1]));
        let kernel = n.op("ScatterND", &[&zeros, &places, &updates], &[]);
        (n.op("Conv", &[v, &kernel], &[]), Some(CHANNELS))
    });
    check("ScatterND along another diagonal", StaticConv, &[16], Kept, |n, v| {
        let places: Vec<i64> = (0..CHANNELS).flat_map(|channel| [channel, CHANNELS - 1 - channel]).collect();
        let (shape, places) = (n.ints(&[CHANNELS, CHANNELS, 1, 1]), n.ints_of(&places, &[CHANNELS, 2]));
        let (zeros, updates) = (n.op("ConstantOfShape", &[&shape], &[]), n.weight(&[CHANNELS, 1, 1]));
        let kernel = n.op("ScatterND", &[&zeros, &places, &updates], &[]);
        (n.op("Conv", &[v, &kernel], &[]), Some(CHANNELS))
    });
    for reduction in [None, Some("add")] {
        check("ScatterND", StaticConv, &[16, 18], Removed, |n, v| {
            let (first, places) = (n.ints_of(&[0], &[]), n.ints_of(&[0, 1, 1, 2], &[2, 2]));
            let (axis, shape) = (n.ints(&[1]), n.ints(&[1, 6, 1]));
            let v = n.op("Transpose", &[v], &[attr_ints("perm", &[0, 2, 3, 1])]);
            let row = n.op("Gather", &[&v, &first], &[attr_int("axis", 1)]);
            let pixel = n.op("Gather", &[&row, &first], &[attr_int("axis", 1)]);
            let pixel = n.op("Unsqueeze", &[&pixel, &axis], &[]);
            let update = n.op("Expand", &[&pixel, &shape], &[]);
            let reduction: Vec<_> = reduction.iter().map(|name| attr_string("reduction", name)).collect();
            let v = n.op("ScatterND", &[&v, &places, &update], &reduction);
            (n.op("Transpose", &[&v], &[attr_ints("perm", &[0, 3, 1, 2])]), Some(CHANNELS))
        });
    }
}

/// Returns the column of each row with the largest mean of X, `[2, 1, 4, 1]`.
fn columns(n: &mut Builder) -> String {
    let mean = n.op("GlobalAveragePool", &["x"], &[]);
    let above = n.op("Sub", &["x", &mean], &[]);
    let first = n.ints_of(&[0], &[]);
    let channel = n.op("Gather", &[&above, &first], &[attr_int("axis", 1)]);
    let shape = n.ints(&[2, 1, 4, 6]);
    let channel = n.op("Reshape", &[&channel, &shape], &[]);
    n.op("ArgMax", &[&channel], &[attr_int("axis", 3)])
}

#[test]
fn indices_are_expanded_along_channels() {
    for repetition in ["Expand", "Tile"] {
        let repeated = |n: &mut Builder, columns: &str| {
            let sizes = if repetition == "Expand" { [2, CHANNELS, 4, 1] } else { [1, CHANNELS, 1, 1] };
            let sizes = n.ints(&sizes);
            n.op(repetition, &[columns, &sizes], &[])
        };
        check(&format!("GatherElements at {repetition}"), StaticConv, &[11, 16], Removed, |n, v| {
            let columns = columns(n);
            let indices = repeated(n, &columns);
            (n.op("GatherElements", &[v, &indices], &[attr_int("axis", 3)]), Some(CHANNELS))
        });
        for reduction in [None, Some("add")] {
            check(&format!("ScatterElements at {repetition}"), StaticConv, &[16, 18], Removed, |n, v| {
                let columns = columns(n);
                let (indices, first) = (repeated(n, &columns), slice(n, v, 0, 1, 3, 1));
                let attributes = reduction.map(|name| attr_string("reduction", name));
                let attributes: Vec<_> = attributes.into_iter().chain([attr_int("axis", 3)]).collect();
                (n.op("ScatterElements", &[v, &indices, &first], &attributes), Some(CHANNELS))
            });
        }
        // A second consumer keeps all indices.
        check(&format!("two consumers of {repetition}"), StaticConv, &[16], Kept, |n, v| {
            let columns = columns(n);
            let indices = repeated(n, &columns);
            let taken = n.op("GatherElements", &[v, &indices], &[attr_int("axis", 3)]);
            let (table, target) = (n.weight(&[6]), n.ints(&[2, CHANNELS, 4, 1]));
            let looked_up = n.op("Gather", &[&table, &indices], &[]);
            let looked_up = n.op("Reshape", &[&looked_up, &target], &[]);
            (n.op("Add", &[&taken, &looked_up], &[]), Some(CHANNELS))
        });
    }
    check("elements taken along the channels", StaticConv, &[13], Kept, |n, v| {
        let indices = n.ints_of(&[5, 3, 1, 0, 2, 7, 11, 4, 6, 8, 9, 10].repeat(48), &[2, 12, 4, 6]);
        (n.op("GatherElements", &[v, &indices], &[attr_int("axis", 1)]), Some(CHANNELS))
    });
}

/// Returns index tuples of every position of the batch, whose size is symbolic, and of these channels.
fn grid(n: &mut Builder, v: &str, channels: &[i64]) -> String {
    let (zero, one, first, last) = (n.ints_of(&[0], &[]), n.ints_of(&[1], &[]), n.ints(&[0]), n.ints(&[-1]));
    let shape = n.op("Shape", &[v], &[]);
    let batch = n.op("Gather", &[&shape, &zero], &[]);
    let rows = n.op("Range", &[&zero, &batch, &one], &[]);
    let rows = n.op("Unsqueeze", &[&rows, &last], &[]);
    let columns = n.ints(channels);
    let (batch, count) = (n.op("Gather", &[&shape, &first], &[]), n.ints(&[channels.len() as i64]));
    let sizes = n.op("Concat", &[&batch, &count], &[attr_int("axis", 0)]);
    let parts = [rows, columns].map(|part| {
        let part = n.op("Expand", &[&part, &sizes], &[]);
        n.op("Unsqueeze", &[&part, &last], &[])
    });
    n.op("Concat", &[&parts[0], &parts[1]], &[attr_int("axis", -1)])
}

/// Computes `v[:, places] = 2 * v[:, places]`, as exporters write it.
#[test]
fn blocks_are_assigned() {
    let places: [&[i64]; 6] =
        [&[0, 1, 2, 3, 4, 5], &[-6, -5, -4, -3, -2, -1], &[3, 4, 5], &[0, 2, 4, 6, 8, 10], &[7, 1, 9, 0], &[4]];
    for places in places {
        for around in [Conv, StaticConv] {
            check(&format!("ScatterND at {places:?}, {around:?}"), around, &[13, 18], Removed, |n, v| {
                let (two, own) = (n.float(2.0), n.ints(places));
                let taken = n.op("Gather", &[v, &own], &[attr_int("axis", 1)]);
                let updates = n.op("Mul", &[&taken, &two], &[]);
                let indices = grid(n, v, places);
                (n.op("ScatterND", &[v, &indices, &updates], &[]), Some(CHANNELS))
            });
        }
        check(&format!("ScatterElements at {places:?}"), StaticConv, &[13], Removed, |n, v| {
            let own: Vec<i64> = places.iter().flat_map(|place| [*place; 24]).collect();
            let indices = n.ints_of(&own.repeat(2), &[2, places.len() as i64, 4, 6]);
            let updates = n.weight(&[2, places.len() as i64, 4, 6]);
            (n.op("ScatterElements", &[v, &indices, &updates], &[attr_int("axis", 1)]), Some(CHANNELS))
        });
    }
    check("ScatterND of a layer's channels", Conv, &[13], Removed, |n, v| {
        let w = n.weight(&[5, CHANNELS, 1, 1]);
        let updates = n.op("Conv", &[v, &w], &[]);
        let indices = grid(n, v, &[0, 3, 4, 5, 11]);
        (n.op("ScatterND", &[v, &indices, &updates], &[]), Some(CHANNELS))
    });
}

#[test]
fn whole_values_are_assigned() {
    check("ScatterND everywhere", StaticConv, &[13], Removed, |n, v| {
        let zeros = n.floats(&[0.0; 2 * CHANNELS as usize * 24], &[2, CHANNELS, 4, 6]);
        let indices = grid(n, v, &(0..CHANNELS).collect::<Vec<_>>());
        (n.op("ScatterND", &[&zeros, &indices, v], &[]), Some(CHANNELS))
    });
    check("rows are assigned", StaticConv, &[13], Removed, |n, v| {
        let (sizes, rows, step) = (n.ints(&[2, CHANNELS, 2, 6]), n.ints(&[1, 3]), n.float(0.5));
        let taken = n.op("Gather", &[v, &rows], &[attr_int("axis", 2)]);
        let updates = n.op("Mul", &[&taken, &step], &[]);
        let own: Vec<i64> = [[1; 6], [3; 6]].concat().repeat(2 * CHANNELS as usize);
        let indices = n.ints_of(&own, &[2, CHANNELS, 2, 6]);
        let updates = n.op("Reshape", &[&updates, &sizes], &[]);
        (n.op("ScatterElements", &[v, &indices, &updates], &[attr_int("axis", 2)]), Some(CHANNELS))
    });
}

#[test]
fn indices_among_channels_keep_all_channels() {
    check("TopK", MatMul, &[11, 13], Kept, |n, v| {
        let k = n.ints(&[5]);
        (n.ops("TopK", &[v, &k], &[], 2).swap_remove(0), Some(5))
    });
    check("ArgMax of channels", Conv, &[13], Kept, |n, v| {
        let places = n.op("ArgMax", &[v], &[attr_int("axis", 1)]);
        let places = n.op("Cast", &[&places], &[attr_int("to", 1)]);
        (n.op("Mul", &[v, &places], &[]), Some(CHANNELS))
    });
}
