//! Coupling of the channels of grouped convolutions.

use crate::operator::RuleError;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::Axis;
use crate::operator::couple::space::{Shrinks, axis_size};

/// Couples the channels of a convolution in `group` groups and returns the axis of its output channels: the `rows` of
/// W, over all groups. Its `columns` are the input channels within a group.
pub(in crate::ops) fn couple_groups(
    cx: &mut CoupleCx<'_>,
    group: usize,
    x: &Axis,
    rows: &Axis,
    columns: &Axis,
) -> Axis {
    if group == 1 {
        cx.tie(x, columns);
        return rows.clone();
    }
    let (rows_per_group, per_group) = group_sizes(group, rows, columns);
    if per_group > 1 && rows_per_group > 1 {
        keep_group_rows(cx, rows, rows_per_group);
        match cx.single(x) {
            Some(space) => {
                let digits = cx.digits(space, &[group, per_group], Shrinks::Only(1));
                cx.tie(&digits[1], columns);
            }
            None => cx.keep(columns, "the input channels of the convolution are all kept"),
        }
        return rows.clone();
    }
    match (cx.single(rows), cx.single(x)) {
        // One filter for the channels of each group: either whole groups are removed, or the same channels of every
        // group.
        (Some(_), Some(space)) if rows_per_group == 1 => {
            let digits = cx.digits(space, &[group, per_group], Shrinks::Preferably(0));
            cx.tie(rows, &digits[0]);
            cx.tie(&digits[1], columns);
        }
        // Several filters for the single channel of each group.
        (Some(row_space), Some(space)) => {
            let row_groups = cx.digits(row_space, &[group, rows_per_group], Shrinks::Only(0)).swap_remove(0);
            cx.tie(&row_groups, &cx.whole(space));
        }
        (_, None) if rows_per_group > 1 => keep_group_rows(cx, rows, rows_per_group),
        _ => {
            cx.keep(rows, "the groups of the convolution have input channels that are all kept");
            cx.keep(columns, "the input channels of the convolution are all kept");
            cx.keep(x, "the groups of the convolution have filters that are all kept");
        }
    }
    rows.clone()
}

/// The same for a transposed convolution: the `rows` of W are the input channels, over all groups; its `columns` are
/// the output channels within a group.
pub(in crate::ops) fn couple_transposed_groups(
    cx: &mut CoupleCx<'_>,
    group: usize,
    x: &Axis,
    rows: &Axis,
    columns: &Axis,
) -> Result<Axis, RuleError> {
    cx.tie(x, rows);
    if group == 1 {
        return Ok(columns.clone());
    }
    let (rows_per_group, per_group) = group_sizes(group, rows, columns);
    let out = cx.new_space(group.saturating_mul(per_group))?;
    if per_group > 1 && rows_per_group > 1 {
        keep_group_rows(cx, rows, rows_per_group);
        let digits = cx.digits(out, &[group, per_group], Shrinks::Only(1));
        cx.tie(&digits[1], columns);
    } else if rows_per_group == 1 {
        let digits = cx.digits(out, &[group, per_group], Shrinks::Preferably(0));
        cx.tie(rows, &digits[0]);
        cx.tie(&digits[1], columns);
    } else if let Some(row_space) = cx.single(rows) {
        let row_groups = cx.digits(row_space, &[group, rows_per_group], Shrinks::Only(0)).swap_remove(0);
        cx.tie(&row_groups, &cx.whole(out));
    } else {
        cx.keep(&cx.whole(out), "the groups of the convolution have input channels that are all kept");
    }
    Ok(cx.whole(out))
}

/// Returns the number of rows of W per group, and the number of columns.
fn group_sizes(group: usize, rows: &Axis, columns: &Axis) -> (usize, usize) {
    (axis_size(rows).unwrap_or(group) / group, axis_size(columns).unwrap_or(1))
}

/// Keeps every group; each loses equally many rows, and the same columns as all others.
fn keep_group_rows(cx: &mut CoupleCx<'_>, rows: &Axis, rows_per_group: usize) {
    if let Some(rows) = cx.single(rows) {
        cx.equal_blocks(rows, rows_per_group);
    }
}
