//! Coupling of the channels of convolutions with groups.

use crate::operator::RuleError;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::Axis;
use crate::operator::couple::space::axis_size;

/// Couples the channels of a convolution in `group` groups and returns the axis of its output channels: the `rows` of
/// W, counted over all groups. Its `columns` are the input channels within a group.
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
                let digits = cx.digits(space, &[group, per_group], Some(1));
                cx.tie(&digits[1], columns);
            }
            None => cx.keep(columns, "reads channels that stay"),
        }
        return rows.clone();
    }
    let Some(row_groups) = depthwise_groups(cx, group, rows, columns, rows_per_group) else {
        return rows.clone();
    };
    match cx.single(x) {
        Some(space) => {
            let x_groups = cx.digits(space, &[group, per_group], Some(0)).swap_remove(0);
            cx.tie(&row_groups, &x_groups);
        }
        None => cx.keep(rows, "belongs to the groups of channels that stay"),
    }
    rows.clone()
}

/// The same of a transposed convolution: the `rows` of W are the input channels, counted over all groups; its `columns`
/// are the output channels within a group.
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
    if per_group > 1 && rows_per_group > 1 {
        keep_group_rows(cx, rows, rows_per_group);
        let out = cx.new_space(group.saturating_mul(per_group))?;
        let digits = cx.digits(out, &[group, per_group], Some(1));
        cx.tie(&digits[1], columns);
        return Ok(cx.whole(out));
    }
    let out = cx.new_space(group.saturating_mul(per_group))?;
    let row_groups = depthwise_groups(cx, group, rows, columns, rows_per_group);
    if let Some(row_groups) = row_groups {
        let out_groups = cx.digits(out, &[group, per_group], Some(0)).swap_remove(0);
        cx.tie(&row_groups, &out_groups);
    }
    Ok(cx.whole(out))
}

/// How many rows of W a group has, and how many columns.
fn group_sizes(group: usize, rows: &Axis, columns: &Axis) -> (usize, usize) {
    (axis_size(rows).unwrap_or(group) / group, axis_size(columns).unwrap_or(1))
}

/// Every group keeps its place and loses equally many rows, and the same columns as all others.
fn keep_group_rows(cx: &mut CoupleCx<'_>, rows: &Axis, rows_per_group: usize) {
    if let Some(rows) = cx.single(rows) {
        cx.equal_blocks(rows, rows_per_group);
    }
}

/// The groups of a depthwise convolution, which go as wholes; none where the rows never shrink.
fn depthwise_groups(
    cx: &mut CoupleCx<'_>,
    group: usize,
    rows: &Axis,
    columns: &Axis,
    rows_per_group: usize,
) -> Option<Axis> {
    cx.keep(columns, "is counted within the groups of a depthwise convolution");
    let rows = cx.single(rows)?;
    Some(cx.digits(rows, &[group, rows_per_group], Some(0)).swap_remove(0))
}
