//! The windows of a convolution or pooling along its spatial axes.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::{InferCx, RuleError};

/// The attributes of a node with a sliding window, before the number of its axes is known.
#[derive(Clone, Debug)]
pub(in crate::ops) struct Spatial {
    kernel: Option<Vec<i64>>,
    strides: Option<Vec<i64>>,
    dilations: Option<Vec<i64>>,
    pads: Option<Vec<i64>>,
    pub(super) auto_pad: AutoPad,
    ceil: bool,
}

/// The source of the padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum AutoPad {
    /// The attribute `pads`.
    Explicit,
    /// There is no padding.
    Valid,
    /// The size of the output; the odd element is at the end.
    SameUpper,
    /// The size of the output; the odd element is at the beginning.
    SameLower,
}

impl AutoPad {
    /// Whether padding follows from the size of the output.
    pub(in crate::ops) fn is_same(self) -> bool {
        matches!(self, Self::SameUpper | Self::SameLower)
    }
}

impl Spatial {
    /// Reads the attributes of a node.
    pub(in crate::ops) fn parse(node: &Node) -> Self {
        let list = |name: &str| node.proto.ints(name).map(<[i64]>::to_vec);
        let auto_pad = match node.proto.string("auto_pad") {
            Some("VALID") => AutoPad::Valid,
            Some("SAME_UPPER") => AutoPad::SameUpper,
            Some(other) if other.starts_with("SAME") => AutoPad::SameLower,
            _ => AutoPad::Explicit,
        };
        Self {
            kernel: list("kernel_shape"),
            strides: list("strides"),
            dilations: list("dilations"),
            pads: list("pads"),
            auto_pad,
            ceil: node.int("ceil_mode", 0) != 0,
        }
    }

    /// Returns the window along `count` axes; `kernel` is its size if the node states none.
    ///
    /// # Errors
    /// An attribute has another number of entries.
    pub(in crate::ops) fn window(&self, kernel: &[Dim], count: usize) -> Result<Window, RuleError> {
        let list = |name: &str, values: &Option<Vec<i64>>, default: i64, len: usize| match values {
            None => Ok(vec![default; len]),
            Some(values) if values.len() == len => Ok(values.clone()),
            Some(values) => Err(RuleError::invalid(format!("{name} has {} entries, expected {len}", values.len()))),
        };
        let kernel: Vec<Dim> = match &self.kernel {
            Some(values) => values.iter().copied().map(Dim::from).collect(),
            None => kernel.to_vec(),
        };
        if kernel.len() != count {
            return Err(RuleError::invalid(format!("kernel_shape has {} entries, expected {count}", kernel.len())));
        }
        Ok(Window {
            kernel,
            strides: list("strides", &self.strides, 1, count)?,
            dilations: list("dilations", &self.dilations, 1, count)?,
            pads: list("pads", &self.pads, 0, 2 * count)?,
            auto_pad: self.auto_pad,
            ceil: self.ceil,
        })
    }
}

/// Kernel, stride, dilation and padding along the spatial axes of a convolution or pooling.
#[derive(Debug)]
pub(in crate::ops) struct Window {
    kernel: Vec<Dim>,
    pub(super) strides: Vec<i64>,
    pub(super) dilations: Vec<i64>,
    pub(super) pads: Vec<i64>,
    auto_pad: AutoPad,
    ceil: bool,
}

impl Window {
    /// Reads the attributes of a node with `count` spatial axes; `kernel` is the kernel size if the node states none.
    pub(in crate::ops) fn of(node: &Node, kernel: &[Dim], count: usize) -> Result<Self, RuleError> {
        Spatial::parse(node).window(kernel, count)
    }

    /// Computes the size of the output along an axis; `None` if it can't be expressed.
    pub(in crate::ops) fn output(&self, axis: usize, input: &Dim) -> Option<Dim> {
        let stride = Dim::from(self.strides[axis]);
        if self.auto_pad.is_same() {
            return input.ceil_div(&stride);
        }
        let one = Dim::from(1);
        let reach = &(&Dim::from(self.dilations[axis]) * &(&self.kernel[axis] - &one)) + &one;
        let pads = match self.auto_pad {
            AutoPad::Valid => 0,
            _ => self.pads[axis].saturating_add(self.pads[axis + self.strides.len()]),
        };
        let room = &(input + &Dim::from(pads)) - &reach;
        let steps = if self.ceil { room.ceil_div(&stride)? } else { room.floor_div(&stride)? };
        Some(&steps + &one)
    }

    /// Computes the sizes of the output along all axes; new symbols for those that can't be expressed.
    pub(in crate::ops) fn outputs(&self, cx: &mut InferCx<'_>, input: &[Dim]) -> Vec<Dim> {
        let of = |(axis, size)| self.output(axis, size).unwrap_or_else(|| cx.fresh());
        input.iter().enumerate().map(of).collect()
    }

    /// Computes the size of the output of a transposed convolution along an axis.
    pub(in crate::ops) fn transposed_output(&self, axis: usize, input: &Dim, output_padding: i64) -> Dim {
        let one = Dim::from(1);
        let stride = Dim::from(self.strides[axis]);
        let reach = &(&Dim::from(self.dilations[axis]) * &(&self.kernel[axis] - &one)) + &one;
        if self.auto_pad.is_same() {
            // If the kernel is shorter than the stride, ONNX Runtime uses a padding of zero, not a negative one.
            let missing = reach.as_const().map_or(0, |reach| (reach + output_padding - self.strides[axis]).min(0));
            return &(input * &stride) + &Dim::from(missing);
        }
        let pads = match self.auto_pad {
            AutoPad::Valid => 0,
            _ => self.pads[axis].saturating_add(self.pads[axis + self.strides.len()]),
        };
        &(&(&(input - &one) * &stride) + &reach) + &Dim::from(output_padding.saturating_sub(pads))
    }

    /// Lists the offsets of all positions in the window, the last axis fastest.
    pub(in crate::ops) fn taps(&self) -> Result<Vec<Vec<i64>>, RuleError> {
        let mut taps = vec![vec![]];
        for size in &self.kernel {
            let size = size.as_const().ok_or(RuleError::UnknownShape)?;
            let longer = |tap: &Vec<i64>| (0..size).map(|at| [tap.as_slice(), &[at]].concat()).collect::<Vec<_>>();
            taps = taps.iter().flat_map(longer).collect();
        }
        Ok(taps)
    }

    /// Returns the padding before and after an axis of `size` elements that has `count` windows.
    fn static_pads(&self, axis: usize, size: i64, count: i64) -> Result<(i64, i64), RuleError> {
        let kernel = self.kernel[axis].as_const().ok_or(RuleError::UnknownShape)?;
        if self.auto_pad.is_same() {
            let reach = self.dilations[axis] * (kernel - 1) + 1;
            let total = ((count - 1) * self.strides[axis] + reach - size).max(0);
            let less = total / 2;
            return Ok(if self.auto_pad == AutoPad::SameUpper { (less, total - less) } else { (total - less, less) });
        }
        match self.auto_pad {
            AutoPad::Valid => Ok((0, 0)),
            _ => Ok((self.pads[axis], self.pads[axis + self.strides.len()])),
        }
    }

    /// Returns, for each of the `count` windows along an axis of `size` elements, the element at `tap`; `None` in
    /// the padding.
    pub(in crate::ops) fn positions(
        &self,
        axis: usize,
        tap: i64,
        size: i64,
        count: i64,
    ) -> Result<Vec<Option<i64>>, RuleError> {
        let (before, _) = self.static_pads(axis, size, count)?;
        let at = |window: i64| window * self.strides[axis] + tap * self.dilations[axis] - before;
        Ok((0..count).map(at).map(|at| (0..size).contains(&at).then_some(at)).collect())
    }

    /// Sums every unit vector of an axis over each window: `[size, count]`, row-major.
    pub(in crate::ops) fn sum_rows(&self, axis: usize, size: i64, count: i64) -> Result<Vec<f32>, RuleError> {
        let kernel = self.kernel[axis].as_const().ok_or(RuleError::UnknownShape)?;
        let mut rows = vec![0.0; usize::try_from(size * count).unwrap_or(0)];
        for tap in 0..kernel {
            for (window, at) in self.positions(axis, tap, size, count)?.into_iter().enumerate() {
                if let Some(at) = at {
                    rows[(at * count) as usize + window] = 1.0;
                }
            }
        }
        Ok(rows)
    }

    /// Averages every unit vector of an axis over each window: `[size, count]`, row-major.
    pub(in crate::ops) fn average_rows(
        &self,
        axis: usize,
        size: i64,
        count: i64,
        counts_padding: bool,
    ) -> Result<Vec<f32>, RuleError> {
        let (before, after) = self.static_pads(axis, size, count)?;
        let kernel = self.kernel[axis].as_const().ok_or(RuleError::UnknownShape)?;
        let mut rows = vec![0.0; usize::try_from(size * count).unwrap_or(0)];
        for window in 0..count {
            let at = |tap: i64| window * self.strides[axis] + tap * self.dilations[axis] - before;
            let inside: Vec<i64> = (0..kernel).map(at).filter(|at| (0..size).contains(at)).collect();
            // Elements that a last window covers beyond the padding never count.
            let padded = (0..kernel).map(at).filter(|at| (-before..size + after).contains(at)).count();
            let divisor = if counts_padding { padded } else { inside.len() };
            for at in inside {
                rows[(at * count + window) as usize] = 1.0 / divisor as f32;
            }
        }
        Ok(rows)
    }

    /// Returns the number of elements of the kernel; sizes that are not static count as one.
    pub(in crate::ops) fn kernel_elements(&self) -> f64 {
        self.kernel.iter().map(|size| size.as_const().unwrap_or(1) as f64).product()
    }
}
