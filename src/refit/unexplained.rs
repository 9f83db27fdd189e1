//! The error that a fit could not correct if channels were removed, comparable between groups of channels.
//!
//! A layer that reads channels computes `W^T x`. If some of them are removed and the weights of the others are fitted
//! again, the remaining squared error is `tr(W_R^T S W_R)`. R are the removed channels. S is the covariance of their
//! residual after the best linear prediction from the kept channels, a Schur complement. The layer's Gauss-Newton weight
//! ([`super::sensitivity`]) converts the error to a change of the network's output, so that errors of different layers add
//! up.
//!
//! Channels are removed in a given order. If the covariance in the reverse order is factorised as `L L^T`, the Schur
//! complement of every tail is that tail of L times its transpose. One factorisation thus yields the errors of all cuts:
//! each channel adds the squared norm of its rows of `L^T W`.
//!
//! For layers with a window, every element is assumed to be predicted from the channels at its own position alone. Matrices
//! are then only as large as the number of channels.
//!
//! Channels that no layer reads, such as the dimensions of queries and keys, are counted as lost entirely where layers
//! produce them: each adds the variance that its column of `W` causes.

use std::collections::{BTreeMap, BTreeSet};

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use rand::SeedableRng;
use rand::seq::index;

use super::network::Network;
use super::rows::Rows;
use super::run::Lockstep;
use super::segment::{Changed, Execution};
use super::sensitivity::Sensitivity;
use super::solve::{System, factor};
use super::store::Store;
use super::{Probe, RefitOptions};
use crate::analysis::Analysis;
use crate::couple::group::{ChannelGroup, Member, Role};
use crate::error::Error;
use crate::graph::ValueId;
use crate::onnx::numbers::packed_numbers;
use crate::runtime::Runtime;

/// A channel group, and the order in which its channels would be removed.
#[derive(Clone, Copy, Debug)]
pub struct RemovalOrder<'a> {
    /// The group.
    pub group: &'a ChannelGroup,
    /// Positions of its channels in the order of removal.
    pub order: &'a [usize],
}

/// A layer that reads channels of groups, or produces those of groups that no layer reads.
#[derive(Debug)]
struct Layer<'a> {
    input: ValueId,
    weight: ValueId,
    output: String,
    scale: f64,
    rows: Rows,
    /// The groups that it reads, by number, with the member along an axis of its weight.
    read: Vec<(usize, &'a Member)>,
    /// The same for the groups that it produces.
    made: Vec<(usize, &'a Member)>,
}

/// Computes by group how much each of its channels adds to the network's squared error, by position of the channel. The
/// channel is removed after those before it in the order, and the layers that read it are fitted again. `None`: no layer
/// with a known error reads or produces the group. `progress` gets the number of layers done and of all layers; its error
/// ends the run.
///
/// # Errors
/// An operator has no gradient, a network does not run, data can't be generated, or `progress` returns an error.
pub fn unexplained(
    analysis: &Analysis,
    groups: &[RemovalOrder<'_>],
    probe: Probe<'_>,
    options: &RefitOptions,
    runtime: &Runtime,
    progress: &mut dyn FnMut(usize, usize) -> Result<(), Error>,
) -> Result<Vec<Option<Vec<f64>>>, Error> {
    let facts = analysis.facts_at(probe.sizes)?;
    let network = Network::new(&analysis.model, &analysis.graph, &analysis.operators, &facts)?;
    let layers = layers(analysis, &network, groups);
    let names: BTreeSet<String> = layers.iter().map(|layer| layer.output.clone()).collect();
    let names: Vec<String> = names.into_iter().collect();
    let total = layers.len();
    let sensitivity = Sensitivity::of(analysis, &names, &probe, options, runtime, &mut |_, _| progress(0, total))?;
    let RefitOptions { device, allow_fallback, threads, .. } = *options;
    let execution = Execution { runtime, device, allow_fallback, threads };
    let store = Store::new(probe.data.chunks(), options.memory / 2, None);
    let mut run = Lockstep::new(&network, execution, store);
    let mut found: Vec<Option<Vec<f64>>> = vec![None; groups.len()];
    for (at, layer) in layers.iter().enumerate() {
        progress(at, total)?;
        let sums = sums(&mut run, (at, layer), &probe, &sensitivity, options)?;
        if !sensitivity.knows(&layer.output) {
            continue;
        }
        let Some((dims, values)) = constant(&network, layer.weight)? else { continue };
        let matrices = matrices(&layer.rows, &values);
        let mut add = |group: usize, errors: Vec<f64>| {
            let all = found[group].get_or_insert_with(|| vec![0.0; errors.len()]);
            all.iter_mut().zip(errors).for_each(|(all, error)| *all += layer.scale * layer.scale * error);
        };
        for (group, member) in &layer.read {
            let of = columns_of(&layer.rows, member, &dims);
            if let Some(errors) = errors(&sums, &matrices, &of, groups[*group].order, options.ridge) {
                add(*group, errors);
            }
        }
        for (group, member) in &layer.made {
            add(*group, variances(&sums, &matrices, &outputs_of(&layer.rows, member, &dims)));
        }
    }
    progress(total, total)?;
    Ok(found)
}

/// Returns the layers that read or produce channels and have one matrix for all of them.
fn layers<'a>(analysis: &Analysis, network: &Network, groups: &[RemovalOrder<'a>]) -> Vec<Layer<'a>> {
    let by_role = |role: Role, counts: &dyn Fn(usize) -> bool| {
        let mut by_weight: BTreeMap<&str, Vec<(usize, &'a Member)>> = BTreeMap::new();
        for (number, going) in groups.iter().enumerate().filter(|(number, _)| counts(*number)) {
            for member in going.group.members.iter().filter(|member| member.role == role) {
                let value = analysis.coupling.uses[member.weight].value;
                let members = by_weight.entry(analysis.graph.values[value].name.as_str()).or_default();
                // Each use of a shared weight is a separate layer below.
                if !members.iter().any(|(other, known)| *other == number && known.axis == member.axis) {
                    members.push((number, member));
                }
            }
        }
        by_weight
    };
    let shrinks = |number: usize| groups[number].group.fixed.is_none();
    let read = by_role(Role::Consumer, &shrinks);
    let graph = network.graph();
    let layer = |node: &crate::graph::Node| {
        let linear = network.linear(node)?;
        let (input, weight) = (node.input(linear.input)?, node.input(linear.weight)?);
        let output = node.output(0)?;
        let rows = Rows::new(&linear, &network.shape(input)?, &network.shape(weight)?, &network.shape(output)?)?;
        let is_one = rows.groups() == 1 && rows.plain_columns() > 0;
        let output = graph.values[output].name.clone();
        let read = read.get(graph.values[weight].name.as_str()).cloned().unwrap_or_default();
        is_one.then_some(Layer { input, weight, output, scale: linear.scale, rows, read, made: Vec::new() })
    };
    let mut layers: Vec<Layer<'_>> = graph.nodes.iter().filter_map(layer).collect();
    let is_read: BTreeSet<usize> = layers.iter().flat_map(|layer| &layer.read).map(|(number, _)| *number).collect();
    let made = by_role(Role::Producer, &|number| shrinks(number) && !is_read.contains(&number));
    for layer in &mut layers {
        layer.made = made.get(graph.values[layer.weight].name.as_str()).cloned().unwrap_or_default();
    }
    layers.retain(|layer| !layer.read.is_empty() || !layer.made.is_empty());
    layers
}

/// Sums the products of a layer's inputs over all chunks, weighted by the effect of an error at its output.
fn sums(
    run: &mut Lockstep<'_>,
    (at, layer): (usize, &Layer<'_>),
    probe: &Probe<'_>,
    sensitivity: &Sensitivity,
    options: &RefitOptions,
) -> Result<Mat<f64>, Error> {
    let columns = layer.rows.plain_columns();
    let mut sums = System::new(columns, 0, usize::MAX, &[true], u64::MAX);
    let mut segment = run.segment(&[layer.input], &Changed::default())?;
    let chunks = probe.data.chunks();
    let count = layer.rows.count();
    let chosen = options.rows.div_ceil(chunks.max(1)).clamp(1, count.max(1));
    for chunk in 0..chunks {
        let inputs = probe.data.inputs(chunk)?;
        if let Some(segment) = &mut segment {
            run.advance(segment, chunk, &inputs)?;
        }
        let input = run.value(layer.input, chunk, &inputs)?;
        let input = input.as_slice().ok_or_else(|| Error::unmet("an input that is not contiguous"))?;
        let seed = options.seed ^ ((at as u64) << 32) ^ chunk as u64;
        let mut rows = index::sample(&mut rand_pcg::Pcg64Mcg::seed_from_u64(seed), count, chosen).into_vec();
        rows.sort_unstable();
        let mut x = vec![0.0; rows.len() * columns];
        layer.rows.gather_middle(input, &rows, &mut x);
        let counts = probe.data.weight(chunk) * sensitivity.weight(&layer.output, probe.data.time(chunk));
        sums.add(0, &x, &[], counts * count as f64 / chosen as f64, Par::rayon(0));
    }
    run.clear(segment.as_ref().map_or(&[], |segment| &segment.nodes));
    Ok(sums.centred(Par::rayon(0)).into_products())
}

/// Sizes and elements of a constant.
type Constant = (Vec<usize>, Vec<f32>);

/// Returns the sizes and elements of a constant that is stored in the form in which it is read.
fn constant(network: &Network, value: ValueId) -> Result<Option<Constant>, Error> {
    let (model, graph) = (&network.lowered.model, network.graph());
    let Some(tensor) = graph.tensor(model, value) else { return Ok(None) };
    let dims: Vec<usize> = tensor.dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    let values = packed_numbers(tensor.element_type(), &model.tensor_bytes(tensor)?, dims.iter().product());
    Ok(values.map(|values| (dims, values)))
}

/// Returns, by tap of the window, the matrix of shape `[plain columns, outputs]`.
fn matrices(rows: &Rows, weight: &[f32]) -> Vec<Mat<f64>> {
    let places: Vec<usize> = rows.places(0).collect();
    let outputs = rows.outputs();
    let matrix = |columns: Vec<usize>| {
        Mat::from_fn(columns.len(), outputs, |row, output| f64::from(weight[places[columns[row] * outputs + output]]))
    };
    rows.columns_by_tap().map(matrix).collect()
}

/// Returns, by channel of a member, its columns.
fn columns_of(rows: &Rows, member: &Member, dims: &[usize]) -> Vec<Vec<usize>> {
    let step: usize = dims[member.axis + 1..].iter().product();
    let first = rows.columns_by_tap().next().unwrap_or_default();
    let mut by_index: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, column) in first.into_iter().enumerate() {
        by_index.entry(rows.weight_offset(column) / step % dims[member.axis]).or_default().push(number);
    }
    by_channel(member, &by_index)
}

/// Returns, by channel of a member, its outputs.
fn outputs_of(rows: &Rows, member: &Member, dims: &[usize]) -> Vec<Vec<usize>> {
    let step: usize = dims[member.axis + 1..].iter().product();
    let mut by_index: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, place) in rows.places(0).take(rows.outputs()).enumerate() {
        by_index.entry(place / step % dims[member.axis]).or_default().push(number);
    }
    by_channel(member, &by_index)
}

/// Returns, by channel of a member, the numbers listed for its indices.
fn by_channel(member: &Member, by_index: &BTreeMap<usize, Vec<usize>>) -> Vec<Vec<usize>> {
    let of = |indices: &Vec<u32>| {
        indices.iter().filter_map(|index| by_index.get(&(*index as usize))).flatten().copied().collect()
    };
    member.indices.iter().map(of).collect()
}

/// Returns the variance of the outputs of every channel, summed over the taps of a window.
fn variances(products: &Mat<f64>, matrices: &[Mat<f64>], outputs: &[Vec<usize>]) -> Vec<f64> {
    let size = products.nrows();
    let whole = Mat::from_fn(size, size, |row, column| products[(row.max(column), row.min(column))]);
    let mut of_output = vec![0.0; matrices.first().map_or(0, Mat::ncols)];
    for matrix in matrices {
        let mut image = Mat::<f64>::zeros(size, matrix.ncols());
        matmul(image.as_mut(), Accum::Replace, &whole, matrix, 1.0, Par::rayon(0));
        for (output, sum) in of_output.iter_mut().enumerate() {
            *sum += image.col(output).iter().zip(matrix.col(output).iter()).map(|(a, b)| a * b).sum::<f64>();
        }
    }
    outputs.iter().map(|outputs| outputs.iter().map(|output| of_output[*output]).sum()).collect()
}

/// Returns how much each channel adds to the error of a layer if it is removed after those before it in `order`. `columns`
/// has the columns of every channel. `None`: the products can't be factorised.
fn errors(
    products: &Mat<f64>,
    matrices: &[Mat<f64>],
    columns: &[Vec<usize>],
    order: &[usize],
    ridge: f64,
) -> Option<Vec<f64>> {
    let size = products.nrows();
    let going: Vec<usize> = order.iter().rev().flat_map(|channel| columns[*channel].iter().copied()).collect();
    let goes: BTreeSet<usize> = going.iter().copied().collect();
    let sorted: Vec<usize> = (0..size).filter(|column| !goes.contains(column)).chain(going).collect();
    let first = size - goes.len();
    let turned = Mat::from_fn(size, size, |row, column| {
        let (row, column) = (sorted[row], sorted[column]);
        products[(row.max(column), row.min(column))]
    });
    let lower = factor(turned, ridge)?;
    let mut of_column = vec![0.0; size];
    for matrix in matrices {
        let turned = Mat::from_fn(size, matrix.ncols(), |row, output| matrix[(sorted[row], output)]);
        let mut image = Mat::<f64>::zeros(size, matrix.ncols());
        matmul(image.as_mut(), Accum::Replace, lower.transpose(), &turned, 1.0, Par::rayon(0));
        for (row, column) in sorted.iter().enumerate().skip(first) {
            of_column[*column] += image.row(row).iter().map(|value| value * value).sum::<f64>();
        }
    }
    Some(columns.iter().map(|columns| columns.iter().map(|column| of_column[*column]).sum()).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Rows of three columns. The last is the sum of the others plus a small part of its own.
    fn products() -> Mat<f64> {
        let rows = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]];
        let own = [0.1, -0.1, 0.1, -0.1];
        let x = Mat::from_fn(4, 3, |row, column| match column {
            2 => rows[row][0] + rows[row][1] + own[row],
            _ => rows[row][column],
        });
        let mut products = Mat::zeros(3, 3);
        matmul(products.as_mut(), Accum::Replace, x.transpose(), &x, 1.0, Par::Seq);
        products
    }

    #[test]
    fn a_channel_that_others_predict_adds_little_error() {
        let weights = Mat::from_fn(3, 1, |_, _| 2.0);
        let columns = [vec![0], vec![1], vec![2]];
        let errors = errors(&products(), &[weights], &columns, &[2, 1, 0], 1e-12).unwrap();
        // Removing the last channel loses its own part: 4 x 0.1^2, times the square of the weight.
        assert!((errors[2] - 0.16).abs() < 1e-6, "{errors:?}");
        // The second one is then lost with all of the last that depends on it: 2 x (2 + 2)^2.
        assert!((errors[1] - 32.0).abs() < 1e-6, "{errors:?}");
    }

    #[test]
    fn the_errors_of_a_tail_sum_to_the_error_of_a_fit_without_it() {
        let weights = Mat::from_fn(3, 2, |row, output| [[1.0, -0.5], [0.3, 2.0], [-1.0, 0.7]][row][output]);
        let products = products();
        let columns = [vec![0], vec![1], vec![2]];
        let errors = errors(&products, std::slice::from_ref(&weights), &columns, &[1, 2, 0], 0.0).unwrap();
        // Without the channels 1 and 2, the best prediction of W^T x is a multiple of channel 0.
        let part = |a: usize, b: usize| products[(a, b)] - products[(a, 0)] * products[(0, b)] / products[(0, 0)];
        let of = |output: usize| -> f64 {
            let pairs = [(1, 1), (1, 2), (2, 1), (2, 2)];
            pairs.iter().map(|(a, b)| weights[(*a, output)] * part(*a, *b) * weights[(*b, output)]).sum()
        };
        assert!((errors[1] + errors[2] - of(0) - of(1)).abs() < 1e-9, "{errors:?}");
    }

    #[test]
    fn channels_that_no_layer_reads_are_lost_entirely() {
        let weights = Mat::from_fn(3, 2, |row, output| [[1.0, 0.0], [0.0, 0.0], [0.0, 3.0]][row][output]);
        let of = variances(&products(), &[weights], &[vec![0], vec![1], vec![0, 1]]);
        // Column 0 has squares that sum to 2, column 2 to 4 x (1 + 0.1^2), times nine.
        let expected = [2.0, 36.36, 38.36];
        assert!(of.iter().zip(expected).all(|(of, expected)| (of - expected).abs() < 1e-9), "{of:?}");
    }

    #[test]
    fn channels_of_another_group_predict_but_are_not_removed() {
        let weights = Mat::from_fn(3, 1, |_, _| 1.0);
        let errors = errors(&products(), &[weights], &[vec![2]], &[0], 1e-12).unwrap();
        assert_eq!(errors.len(), 1);
        assert!((errors[0] - 0.04).abs() < 1e-6, "{errors:?}");
    }
}
