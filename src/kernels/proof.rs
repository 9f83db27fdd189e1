//! Operators for verification. They process values inside ONNX Runtime while it computes them, so that only a few
//! numbers are returned.
//!
//! [`KEPT`] extracts the kept part of a value of the original network and compares it with the value that the pruned
//! network computed. [`NOISE`] replaces a value by pairwise different numbers. [`ROUNDED`] changes a value by as much
//! as rounding may have done.

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::PrimitiveTensorElementType;
use ort::value::TensorElementType;

use super::operators::missing;

/// Extracts and compares the kept part of a value.
///
/// Inputs: the value; the value to compare with it; if anything was removed, a float32 mask that is broadcast to the
/// value.
///
/// Outputs: the kept elements in the shape of the second input (optional), or the second input itself if the number of
/// elements differs; and [`COUNTS`] float64 numbers, see [`Measured`], followed by the shapes of both inputs, see
/// [`sizes_of`].
pub(crate) const KEPT: &str = "Kept";

/// Generates numbers from 0.5 to 1.5. They depend on their position and on `seed`. The output has the shape of the
/// first input. Without a first input, the second input holds the shape.
pub(crate) const NOISE: &str = "Noise";

/// Copies the input and changes every element by up to `2^-23` of its value, depending on its position and on `seed`.
pub(crate) const ROUNDED: &str = "Rounded";

/// The operators. Each has a form for float32 and one for float64.
pub(crate) const OPERATORS: [&str; 3] = [KEPT, NOISE, ROUNDED];

/// The suffix of an operator's name for float64.
pub(crate) const DOUBLE: &str = "64";

/// The number of measurements that [`KEPT`] returns.
pub(crate) const COUNTS: usize = 6;

/// The measurements of [`KEPT`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Measured {
    /// The largest absolute difference of finite elements. Infinite where only one side is finite.
    pub(crate) absolute: f64,
    /// The minimum and the maximum of the finite expected elements. Infinite if there are none.
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
    /// The number of elements that are the same infinity, or NaN, on both sides.
    pub(crate) not_finite: f64,
    /// The number of kept elements, and of elements that were compared with them.
    pub(crate) expected: f64,
    pub(crate) found: f64,
}

impl Measured {
    /// The state before any comparison.
    const NOTHING: Self = Self {
        absolute: 0.0,
        lowest: f64::INFINITY,
        highest: f64::NEG_INFINITY,
        not_finite: 0.0,
        expected: 0.0,
        found: 0.0,
    };

    pub(crate) fn from_numbers(numbers: &[f64]) -> Option<Self> {
        let [absolute, lowest, highest, not_finite, expected, found] = *numbers.first_chunk()?;
        Some(Self { absolute, lowest, highest, not_finite, expected, found })
    }

    /// Adds the comparison of an expected element `a` with the element `b` that was found.
    fn add(&mut self, a: f64, b: f64) {
        let difference = (a - b).abs();
        if difference.is_finite() {
            self.lowest = if a < self.lowest { a } else { self.lowest };
            self.highest = if a > self.highest { a } else { self.highest };
            self.absolute = if difference > self.absolute { difference } else { self.absolute };
        } else if a == b || (a.is_nan() && b.is_nan()) {
            self.not_finite += 1.0;
        } else {
            self.absolute = f64::INFINITY;
        }
    }

    fn numbers(&self) -> [f64; COUNTS] {
        [self.absolute, self.lowest, self.highest, self.not_finite, self.expected, self.found]
    }
}

/// Returns the shapes of the expected value and of the value compared with it, from the output of [`KEPT`].
pub(crate) fn sizes_of(numbers: &[f64]) -> Option<(Vec<i64>, Vec<i64>)> {
    let (rank, sizes) = numbers.get(COUNTS..)?.split_first()?;
    let (expected, found) = sizes.split_at_checked(*rank as usize)?;
    let whole = |sizes: &[f64]| sizes.iter().map(|size| *size as i64).collect();
    Some((whole(expected), whole(found)))
}

/// The element type of a value.
pub(super) trait Element: PrimitiveTensorElementType + Copy + Send + Sync + std::fmt::Debug + 'static {
    const TYPE: TensorElementType;
    fn wide(self) -> f64;
    fn of(number: f64) -> Self;
}

impl Element for f32 {
    const TYPE: TensorElementType = TensorElementType::Float32;
    fn wide(self) -> f64 {
        f64::from(self)
    }
    fn of(number: f64) -> Self {
        number as f32
    }
}

impl Element for f64 {
    const TYPE: TensorElementType = TensorElementType::Float64;
    fn wide(self) -> f64 {
        self
    }
    fn of(number: f64) -> Self {
        number
    }
}

/// One of [`OPERATORS`] for elements of type `T`.
pub(super) struct ProofOperator<T> {
    kind: &'static str,
    name: String,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> ProofOperator<T> {
    pub(super) fn new(kind: &'static str) -> Self {
        let name = if T::TYPE == TensorElementType::Float64 { format!("{kind}{DOUBLE}") } else { kind.to_owned() };
        Self { kind, name, element: std::marker::PhantomData }
    }
}

impl<T: Element> Operator for ProofOperator<T> {
    type Kernel<'attr> = ProofKernel<T>;

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let (required, optional) = (OperatorInput::required, OperatorInput::optional);
        match self.kind {
            KEPT => vec![required(T::TYPE), required(T::TYPE), optional(TensorElementType::Float32)],
            NOISE => vec![optional(T::TYPE), optional(TensorElementType::Int64)],
            _ => vec![required(T::TYPE)],
        }
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        let first = if self.kind == KEPT { OperatorOutput::optional } else { OperatorOutput::required };
        let mut outputs = vec![first(T::TYPE)];
        if self.kind == KEPT {
            outputs.push(OperatorOutput::required(TensorElementType::Float64));
        }
        outputs
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<ProofKernel<T>> {
        let seed = context.get::<i64>("seed").unwrap_or(0) as u64;
        Ok(ProofKernel { kind: self.kind, seed, element: std::marker::PhantomData })
    }
}

/// The kernel of a node.
pub(super) struct ProofKernel<T> {
    kind: &'static str,
    seed: u64,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Kernel for ProofKernel<T> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        if self.kind == NOISE {
            return self.noise(context);
        }
        let value = context.input(0)?.ok_or_else(|| missing("input", 0))?;
        let (dims, values) = value.try_extract_tensor::<T>()?;
        if self.kind == ROUNDED {
            let mut output = context.output(0, dims.to_vec())?.ok_or_else(|| missing("output", 0))?;
            let (_, output) = output.try_extract_tensor_mut::<T>()?;
            for (at, (new, old)) in output.iter_mut().zip(values).enumerate() {
                let share = share(self.seed, at);
                *new = T::of(old.wide() * (1.0 + (2.0 * share - 1.0) * f64::from(f32::EPSILON)));
            }
            return Ok(());
        }
        let found = context.input(1)?.ok_or_else(|| missing("input", 1))?;
        let (shape, found) = found.try_extract_tensor::<T>()?;
        let mask = if context.num_inputs()? > 2 { context.input(2)? } else { None };
        let mask = mask.as_ref().map(|mask| mask.try_extract_tensor::<f32>()).transpose()?;
        let mask = mask.as_ref().map(|(dims, mask)| (&***dims, *mask));
        let measured = match context.output(0, shape.to_vec())? {
            Some(mut kept) => take((dims, values), mask, found, kept.try_extract_tensor_mut::<T>()?.1),
            None if mask.is_none() && values.len() == found.len() => compare(values, found),
            None => take((dims, values), mask, found, &mut found.to_vec()),
        };
        let sizes = dims.iter().chain(shape.iter()).map(|size| *size as f64);
        let numbers: Vec<f64> =
            measured.numbers().into_iter().chain(std::iter::once(dims.len() as f64)).chain(sizes).collect();
        let mut output = context.output(1, [numbers.len()])?.ok_or_else(|| missing("output", 1))?;
        let (_, output) = output.try_extract_tensor_mut::<f64>()?;
        output.copy_from_slice(&numbers);
        Ok(())
    }
}

impl<T: Element> ProofKernel<T> {
    fn noise(&self, context: &ComputeContext) -> ort::Result<()> {
        let dims = match context.input(0)? {
            Some(value) => value.try_extract_tensor::<T>()?.0.to_vec(),
            None => {
                let sizes = context.input(1)?.ok_or_else(|| missing("input", 1))?;
                sizes.try_extract_tensor::<i64>()?.1.to_vec()
            }
        };
        let mut output = context.output(0, dims)?.ok_or_else(|| missing("output", 0))?;
        let (_, output) = output.try_extract_tensor_mut::<T>()?;
        output.iter_mut().enumerate().for_each(|(at, new)| *new = T::of(0.5 + share(self.seed, at)));
        Ok(())
    }
}

/// Returns a pseudo-random number from 0 to 1 for a position.
fn share(seed: u64, at: usize) -> f64 {
    // SplitMix64, whose outputs are all different.
    let mut bits = (at as u64).wrapping_add(seed << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x1234_5678);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^= bits >> 31;
    (bits >> 40) as f64 / (1u64 << 24) as f64
}

/// Copies the kept elements of a value into `kept` and compares them with `found`, which has the same size as `kept`.
/// If the number of kept elements differs from it, fills `kept` with `found`.
fn take<T: Element>(
    (dims, values): (&[i64], &[T]),
    mask: Option<(&[i64], &[f32])>,
    found: &[T],
    kept: &mut [T],
) -> Measured {
    let mut count = 0;
    each_piece(dims, values.len(), mask, &mut |start, length| {
        if let Some(kept) = kept.get_mut(count..count + length) {
            kept.copy_from_slice(&values[start..start + length]);
        }
        count += length;
    });
    if count == found.len() {
        return compare(kept, found);
    }
    kept.copy_from_slice(found);
    Measured { absolute: f64::INFINITY, expected: count as f64, found: found.len() as f64, ..Measured::NOTHING }
}

/// Compares numbers with the expected ones, of the same count.
fn compare<T: Element>(expected: &[T], found: &[T]) -> Measured {
    let count = found.len() as f64;
    let mut measured = Measured { expected: count, found: count, ..Measured::NOTHING };
    // Independent lanes, so that the operations can overlap.
    let (mut lowest, mut highest, mut absolute) =
        ([f64::INFINITY; LANES], [f64::NEG_INFINITY; LANES], [0.0_f64; LANES]);
    for (expected, found) in expected.chunks(LANES).zip(found.chunks(LANES)) {
        let difference = |at: usize| (expected[at].wide() - found[at].wide()).abs();
        if expected.len() < LANES || !(0..LANES).map(difference).sum::<f64>().is_finite() {
            expected.iter().zip(found).for_each(|(expected, found)| measured.add(expected.wide(), found.wide()));
            continue;
        }
        for at in 0..LANES {
            let (a, difference) = (expected[at].wide(), difference(at));
            lowest[at] = if a < lowest[at] { a } else { lowest[at] };
            highest[at] = if a > highest[at] { a } else { highest[at] };
            absolute[at] = if difference > absolute[at] { difference } else { absolute[at] };
        }
    }
    measured.lowest = lowest.into_iter().fold(measured.lowest, f64::min);
    measured.highest = highest.into_iter().fold(measured.highest, f64::max);
    measured.absolute = absolute.into_iter().fold(measured.absolute, f64::max);
    measured
}

/// Number of elements that are compared in parallel lanes.
const LANES: usize = 8;

/// Calls `take` with the start and length of every contiguous piece of a value that its mask, broadcast to it, keeps.
fn each_piece(dims: &[i64], length: usize, mask: Option<(&[i64], &[f32])>, take: &mut dyn FnMut(usize, usize)) {
    let Some((mask_dims, mask)) = mask else { return take(0, length) };
    if length == 0 {
        return;
    }
    let dims: Vec<usize> = dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    let offset = dims.len().saturating_sub(mask_dims.len());
    // The strides of the mask along the axes of the value: zero where the mask is broadcast.
    let mut steps = vec![0; dims.len()];
    let mut stride = 1;
    for (axis, size) in mask_dims.iter().enumerate().rev() {
        let size = usize::try_from(*size).unwrap_or(1);
        if size > 1
            && let Some(step) = steps.get_mut(axis + offset)
        {
            *step = stride;
        }
        stride *= size.max(1);
    }
    let Some(last) = steps.iter().rposition(|step| *step > 0) else {
        if mask.first().is_none_or(|kept| *kept != 0.0) {
            take(0, length);
        }
        return;
    };
    let block: usize = dims[last + 1..].iter().product();
    let (row, step) = (dims[last], steps[last]);
    // The kept pieces of a row along the last axis on which the mask varies. They are equal for the same row of the
    // mask.
    let pieces = |start: usize| {
        // Fast path: most rows are kept or removed as a whole.
        if step == 1
            && let Some(of_row) = mask.get(start..start + row)
            && let Some(first) = of_row.first()
            && of_row.iter().fold(true, |same, kept| same & ((*kept != 0.0) == (*first != 0.0)))
        {
            return if *first == 0.0 { Vec::new() } else { vec![(0, row * block)] };
        }
        let mut pieces: Vec<(usize, usize)> = Vec::new();
        for index in 0..row {
            if mask.get(start + index * step).is_some_and(|kept| *kept == 0.0) {
                continue;
            }
            match pieces.last_mut() {
                Some((first, count)) if *first + *count == index * block => *count += block,
                _ => pieces.push((index * block, block)),
            }
        }
        pieces
    };
    let mut known: Vec<Option<Vec<(usize, usize)>>> = vec![None; mask.len() / row.max(1) + 1];
    let mut index = vec![0; last];
    let mut at = 0;
    for start in (0..length).step_by(row * block) {
        let of_row = match known.get_mut(at / row) {
            Some(known) if step == 1 => known.get_or_insert_with(|| pieces(at)),
            _ => &mut pieces(at),
        };
        for (first, count) in of_row {
            take(start + *first, *count);
        }
        for axis in (0..last).rev() {
            index[axis] += 1;
            at += steps[axis];
            if index[axis] < dims[axis] {
                break;
            }
            at -= steps[axis] * dims[axis];
            index[axis] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept_of(dims: &[i64], values: &[f32], mask: Option<(&[i64], &[f32])>, found: &[f32]) -> (Vec<f32>, Measured) {
        let mut kept = vec![0.0; found.len()];
        let measured = take((dims, values), mask, found, &mut kept);
        (kept, measured)
    }

    #[test]
    fn the_mask_is_broadcast_to_the_value() {
        let values: Vec<f32> = (0..12).map(|at| at as f32).collect();
        let (kept, measured) = kept_of(
            &[2, 3, 2],
            &values,
            Some((&[1, 3, 1], &[1.0, 0.0, 1.0])),
            &[0.0, 1.0, 4.0, 5.0, 6.0, 7.0, 10.0, 11.5],
        );
        assert_eq!(kept, [0.0, 1.0, 4.0, 5.0, 6.0, 7.0, 10.0, 11.0]);
        assert_eq!((measured.absolute, measured.lowest, measured.highest), (0.5, 0.0, 11.0));
        let (kept, _) = kept_of(&[2, 3], &values[..6], Some((&[3], &[0.0, 0.0, 1.0])), &[0.0, 0.0]);
        assert_eq!(kept, [2.0, 5.0], "a mask of fewer axes");
        let (kept, _) = kept_of(&[2, 2], &values[..4], Some((&[2, 2], &[1.0, 0.0, 0.0, 1.0])), &[0.0, 0.0]);
        assert_eq!(kept, [0.0, 3.0], "a mask of all axes");
        let (kept, measured) = kept_of(&[4], &values[..4], None, &[0.0, 1.0, 2.0, 3.0]);
        assert_eq!((kept.len(), measured.absolute), (4, 0.0));
    }

    #[test]
    fn other_element_counts_and_values_that_are_not_finite_are_reported() {
        let (kept, measured) = kept_of(&[3], &[1.0, 2.0, 3.0], Some((&[3], &[1.0, 0.0, 1.0])), &[7.0]);
        assert_eq!((kept, measured.expected, measured.found), (vec![7.0], 2.0, 1.0));
        assert_eq!(measured.absolute, f64::INFINITY);
        let (_, measured) = kept_of(&[3], &[f32::NAN, f32::INFINITY, 3.0], None, &[f32::NAN, f32::INFINITY, 3.0]);
        assert_eq!((measured.not_finite, measured.absolute, measured.lowest), (2.0, 0.0, 3.0));
        let (_, measured) = kept_of(&[1], &[f32::NAN], None, &[1.0]);
        assert_eq!(measured.absolute, f64::INFINITY);
    }

    #[test]
    fn noise_differs_from_position_to_position_and_is_never_small() {
        let shares: Vec<f64> = (0..1000).map(|at| share(3, at)).collect();
        assert!(shares.iter().all(|share| (0.0..1.0).contains(share)));
        let mut sorted = shares.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.dedup();
        assert_eq!(sorted.len(), 1000);
        assert!((shares.iter().sum::<f64>() / 1000.0 - 0.5).abs() < 0.05);
        assert_ne!(share(3, 5), share(4, 5));
    }
}
