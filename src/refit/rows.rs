//! The rows of a linear map: the elements of input and output that belong to one equation of a fit.

use rayon::prelude::*;

use crate::operator::linear::{IndexId, Linear, LinearAxis};

/// Number of rows that a core gathers at a time.
const ROWS: usize = 64;

/// By position and tap of a window, the index of the axis element under it. `None`: it is padding.
type Elements = Vec<Vec<Option<usize>>>;

/// The equations of a linear map at known sizes. Matrices are row-major.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    /// Sizes of the indices that number rows, in the order of the output's axes.
    row_sizes: Vec<usize>,
    /// By such an index: the stride in the input, if it is a plain axis there, and the stride in the output.
    row_steps: Vec<(usize, usize)>,
    windows: Vec<Slide>,
    /// Columns that the windows do not move: offset in the input, offset of the column.
    plain_columns: Vec<(usize, usize)>,
    /// Taps of the windows: the tap in each window, and the offset of the column.
    taps: Vec<(Vec<usize>, usize)>,
    /// Offsets in the output, by output.
    outputs: Vec<usize>,
    /// Offsets in input, weight and output, by group.
    groups: Vec<(usize, usize, usize)>,
    /// Offsets in the weight, by column.
    weight_columns: Vec<usize>,
    /// Offsets in the weight, by output.
    weight_outputs: Vec<usize>,
}

/// A sliding window along an axis of the input.
#[derive(Clone, Debug)]
struct Slide {
    /// The position of its index among the row indices.
    row: usize,
    /// The stride of the axis in the input.
    step: usize,
    elements: Vec<Vec<Option<usize>>>,
}

/// Returns the stride of every index among the axes of a tensor; windows have none.
fn steps(axes: &[LinearAxis], sizes: &[usize], dims: &[usize]) -> Vec<Option<usize>> {
    let mut steps = vec![None; sizes.len()];
    let mut step = 1;
    for (axis, dim) in axes.iter().zip(dims).rev() {
        if let LinearAxis::Indices(ids) = axis {
            let mut inner = step;
            for id in ids.iter().rev() {
                steps[*id] = Some(inner);
                inner *= sizes[*id];
            }
        }
        step *= dim;
    }
    steps
}

/// Returns the offsets of all combinations of indices. The last index changes fastest.
fn offsets(ids: &[IndexId], sizes: &[usize], steps: &[Option<usize>]) -> Vec<usize> {
    let mut all = vec![0];
    for id in ids {
        let step = steps[*id].unwrap_or(0);
        all = all.iter().flat_map(|offset| (0..sizes[*id]).map(move |at| offset + at * step)).collect();
    }
    all
}

impl Rows {
    /// Computes the rows. `input`, `weight` and `output` are shapes. `None`: the map has an index of a kind that a fit does
    /// not support.
    pub(super) fn new(linear: &Linear, input: &[usize], weight: &[usize], output: &[usize]) -> Option<Self> {
        let sizes = &linear.sizes;
        let of_input = steps(&linear.input_axes, sizes, input);
        let of_weight = steps(&linear.weight_axes, sizes, weight);
        let of_output = steps(&linear.output_axes, sizes, output);
        let mut is_window = vec![false; sizes.len()];
        let mut slides: Vec<(IndexId, IndexId, usize, &Elements)> = Vec::new();
        let mut step = 1;
        for (axis, dim) in linear.input_axes.iter().zip(input).rev() {
            if let LinearAxis::Window { position, tap, elements } = axis {
                (is_window[*position], is_window[*tap]) = (true, true);
                slides.push((*position, *tap, step, elements));
            }
            step *= dim;
        }
        let ids = |axes: &[LinearAxis]| -> Vec<IndexId> {
            axes.iter()
                .flat_map(|axis| match axis {
                    LinearAxis::Indices(ids) => ids.clone(),
                    LinearAxis::Window { .. } => Vec::new(),
                })
                .collect()
        };
        let in_input = |id: &IndexId| of_input[*id].is_some() || is_window[*id];
        let in_weight = |id: &IndexId| of_weight[*id].is_some();
        let in_output = |id: &IndexId| of_output[*id].is_some();
        let by_output = ids(&linear.output_axes);
        let by_weight = ids(&linear.weight_axes);
        let all = 0..sizes.len();
        if all.clone().any(|id| [in_input(&id), in_weight(&id), in_output(&id)].iter().filter(|is| **is).count() < 2) {
            return None;
        }
        let row_ids: Vec<IndexId> = by_output.iter().copied().filter(|id| !in_weight(id)).collect();
        let output_ids: Vec<IndexId> = by_weight.iter().copied().filter(|id| in_output(id) && !in_input(id)).collect();
        let group_ids: Vec<IndexId> = by_weight.iter().copied().filter(|id| in_output(id) && in_input(id)).collect();
        let column_ids: Vec<IndexId> = by_weight.iter().copied().filter(|id| !in_output(id)).collect();
        // The stride of every column index in the number of the column.
        let mut column_steps = vec![None; sizes.len()];
        let mut step = 1;
        for id in column_ids.iter().rev() {
            column_steps[*id] = Some(step);
            step *= sizes[*id];
        }
        let plain: Vec<IndexId> = column_ids.iter().copied().filter(|id| !is_window[*id]).collect();
        let plain_columns = offsets(&plain, sizes, &of_input).into_iter().zip(offsets(&plain, sizes, &column_steps));
        let mut taps = vec![(Vec::new(), 0)];
        for (_, tap, _, _) in &slides {
            let step = column_steps[*tap]?;
            let longer = |(places, offset): &(Vec<usize>, usize)| {
                let next = |at: usize| ([places.as_slice(), &[at]].concat(), offset + at * step);
                (0..sizes[*tap]).map(next).collect::<Vec<_>>()
            };
            taps = taps.iter().flat_map(longer).collect();
        }
        let windows = slides.iter().map(|(position, _, step, elements)| {
            let row = row_ids.iter().position(|id| id == position)?;
            Some(Slide { row, step: *step, elements: (*elements).clone() })
        });
        let groups = offsets(&group_ids, sizes, &of_input).into_iter().zip(offsets(&group_ids, sizes, &of_weight));
        let groups = groups.zip(offsets(&group_ids, sizes, &of_output)).map(|((x, w), y)| (x, w, y));
        Some(Self {
            row_sizes: row_ids.iter().map(|id| sizes[*id]).collect(),
            row_steps: row_ids.iter().map(|id| (of_input[*id].unwrap_or(0), of_output[*id].unwrap_or(0))).collect(),
            windows: windows.collect::<Option<Vec<_>>>()?,
            plain_columns: plain_columns.collect(),
            taps,
            outputs: offsets(&output_ids, sizes, &of_output),
            groups: groups.collect(),
            weight_columns: offsets(&column_ids, sizes, &of_weight),
            weight_outputs: offsets(&output_ids, sizes, &of_weight),
        })
    }

    /// Returns the number of rows.
    pub(super) fn count(&self) -> usize {
        self.row_sizes.iter().product()
    }

    /// Returns the sizes of the indices that number rows.
    pub(super) fn sizes(&self) -> &[usize] {
        &self.row_sizes
    }

    /// Returns the number of columns in one group.
    pub(super) fn columns(&self) -> usize {
        self.weight_columns.len()
    }

    /// Returns the number of outputs in one group.
    pub(super) fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// Returns the axis of an output of this shape along which output channels are numbered. `None`: it is not one axis.
    pub(super) fn output_axis(&self, shape: &[usize]) -> Option<usize> {
        let step = match self.outputs.as_slice() {
            [first, second, ..] => second - first,
            _ => return None,
        };
        let mut inner = 1;
        for (axis, size) in shape.iter().enumerate().rev() {
            if inner == step && *size != 1 {
                return (*size == self.outputs.len()).then_some(axis);
            }
            inner *= size;
        }
        None
    }

    /// Whether another layer reads a weight of the same layout.
    pub(super) fn has_weight_like(&self, other: &Self) -> bool {
        let groups = |rows: &Self| rows.groups.iter().map(|(_, weight, _)| *weight).collect::<Vec<_>>();
        self.weight_columns == other.weight_columns
            && self.weight_outputs == other.weight_outputs
            && groups(self) == groups(other)
    }

    /// Returns the number of groups.
    pub(super) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Computes the indices that number a row.
    fn digits(&self, row: usize, digits: &mut [usize]) {
        let mut rest = row;
        for (digit, size) in digits.iter_mut().zip(&self.row_sizes).rev() {
            *digit = rest % size;
            rest /= size;
        }
    }

    /// Gathers the elements by which the weight of a group is multiplied, for these rows of the input. `out` is of shape
    /// `[rows, stride]` and is filled from column `first` on. Runs on all cores.
    pub(super) fn gather(
        &self,
        x: &[f32],
        group: usize,
        rows: &[usize],
        (out, stride, first): (&mut [f32], usize, usize),
    ) {
        let base = self.groups[group].0;
        // A position in the padding.
        const OUTSIDE: usize = usize::MAX;
        let gather = |(rows, out): (&[usize], &mut [f32])| {
            let mut digits = vec![0; self.row_sizes.len()];
            let mut places = vec![OUTSIDE; self.taps.len()];
            for (row, out) in rows.iter().zip(out.chunks_exact_mut(stride)) {
                self.digits(*row, &mut digits);
                let start = base + digits.iter().zip(&self.row_steps).map(|(at, (step, _))| at * step).sum::<usize>();
                for (place, (taps, _)) in places.iter_mut().zip(&self.taps) {
                    let mut offset = Some(start);
                    for (window, tap) in self.windows.iter().zip(taps) {
                        let element = window.elements[digits[window.row]][*tap];
                        offset = offset.zip(element).map(|(offset, element)| offset + element * window.step);
                    }
                    *place = offset.unwrap_or(OUTSIDE);
                }
                let out = &mut out[first..first + self.columns()];
                for (step, plain) in &self.plain_columns {
                    for (place, (_, column)) in places.iter().zip(&self.taps) {
                        out[column + plain] = if *place == OUTSIDE { 0.0 } else { x[place + step] };
                    }
                }
            }
        };
        rows.par_chunks(ROWS).zip(out.par_chunks_mut(ROWS * stride)).for_each(gather);
    }

    /// Returns the number of columns of one tap of the windows.
    pub(super) fn plain_columns(&self) -> usize {
        self.plain_columns.len()
    }

    /// Returns, by tap of the windows, the numbers of its columns.
    pub(super) fn columns_by_tap(&self) -> impl Iterator<Item = Vec<usize>> {
        let plain = |offset: &usize| self.plain_columns.iter().map(|(_, column)| offset + column).collect();
        self.taps.iter().map(move |(_, offset)| plain(offset))
    }

    /// Returns the offset of a column in the weight.
    pub(super) fn weight_offset(&self, column: usize) -> usize {
        self.weight_columns[column]
    }

    /// Gathers the elements under the middle tap of the windows for these rows of the first group, of shape
    /// `[rows, plain columns]`. Without windows, these are elements of the input itself.
    pub(super) fn gather_middle(&self, x: &[f32], rows: &[usize], out: &mut [f32]) {
        let middle = Self { taps: vec![(self.taps[self.taps.len() / 2].0.clone(), 0)], ..self.clone() };
        let numbers = (0..self.plain_columns.len()).map(|number| (self.plain_columns[number].0, number));
        let columns = self.plain_columns.len();
        let middle = Self { plain_columns: numbers.collect(), weight_columns: vec![0; columns], ..middle };
        middle.gather(x, 0, rows, (out, columns, 0));
    }

    /// Gathers these rows of the output of a group, of shape `[rows, outputs]`.
    pub(super) fn targets(&self, y: &[f32], group: usize, rows: &[usize], out: &mut [f32]) {
        let base = self.groups[group].2;
        let mut digits = vec![0; self.row_sizes.len()];
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(self.outputs.len().max(1))) {
            self.digits(*row, &mut digits);
            let start = base + digits.iter().zip(&self.row_steps).map(|(at, (_, step))| at * step).sum::<usize>();
            out.iter_mut().zip(&self.outputs).for_each(|(out, offset)| *out = y[start + offset]);
        }
    }

    /// Returns the offset in the weight of every element of the matrix `[columns, outputs]` of a group.
    pub(super) fn places(&self, group: usize) -> impl Iterator<Item = usize> {
        let base = self.groups[group].1;
        let of = move |column: &usize| {
            let start = base + column;
            self.weight_outputs.iter().map(move |output| start + output)
        };
        self.weight_columns.iter().flat_map(of)
    }
}

#[cfg(test)]
mod tests;
