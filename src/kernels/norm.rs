//! Group, instance and layer norms, with or without SiLU: `y = f(scale (x - mean) / sqrt(variance + epsilon) + offset)`.

use super::activation::{sigmoid, silu};

/// The layout of the rows of a tensor, and the settings of the norm.
///
/// A tensor consists of rows of `row` elements that are normalised together. Element k of row r has the scale and
/// offset at index `(r mod groups) (row / inner) + k / inner`. A group norm of `[N, C, L]` has `row = C / groups L` and
/// `inner = L`. A layer norm has `groups = 1` and `inner = 1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct NormForm {
    pub(super) row: usize,
    pub(super) groups: usize,
    pub(super) inner: usize,
    pub(super) epsilon: f32,
    /// Whether the mean is subtracted. A root mean square norm does not.
    pub(super) is_centred: bool,
    pub(super) has_silu: bool,
}

/// Number of elements that are summed in single precision before their sum is added in double precision.
const BLOCK: usize = 512;
const LANES: usize = 16;

/// Sums `f` over a slice: in single precision within the lanes of a block, in double precision over blocks.
#[inline(always)]
fn sum_of(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut total = 0.0f64;
    for block in values.chunks(BLOCK) {
        let mut lanes = [0.0f32; LANES];
        let (whole, rest) = block.as_chunks::<LANES>();
        for part in whole {
            for (lane, value) in lanes.iter_mut().zip(part) {
                *lane += f(*value);
            }
        }
        total += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
        total += rest.iter().map(|value| f64::from(f(*value))).sum::<f64>();
    }
    total
}

/// Returns the sums of `g` and of `g x` over two slices of equal length.
#[inline(always)]
pub(super) fn sums_of_products(g: &[f32], x: &[f32]) -> (f64, f64) {
    let (mut first, mut second) = (0.0f64, 0.0f64);
    for (g, x) in g.chunks(BLOCK).zip(x.chunks(BLOCK)) {
        let (mut of_g, mut of_both) = ([0.0f32; LANES], [0.0f32; LANES]);
        let ((g, g_rest), (x, x_rest)) = (g.as_chunks::<LANES>(), x.as_chunks::<LANES>());
        for (g, x) in g.iter().zip(x) {
            for lane in 0..LANES {
                of_g[lane] += g[lane];
                of_both[lane] += g[lane] * x[lane];
            }
        }
        first += of_g.iter().chain(g_rest).map(|value| f64::from(*value)).sum::<f64>();
        second += of_both.iter().map(|value| f64::from(*value)).sum::<f64>();
        second += g_rest.iter().zip(x_rest).map(|(g, x)| f64::from(g * x)).sum::<f64>();
    }
    (first, second)
}

/// Returns the mean and `1 / sqrt(variance + epsilon)` of a row.
#[inline(always)]
fn moments(x: &[f32], form: &NormForm) -> (f32, f32) {
    let count = x.len().max(1) as f64;
    let mean = if form.is_centred { (sum_of(x, |x| x) / count) as f32 } else { 0.0 };
    let variance = sum_of(x, |x| (x - mean) * (x - mean)) / count;
    (mean, (1.0 / (variance + f64::from(form.epsilon)).sqrt()) as f32)
}

impl NormForm {
    /// Returns the number of scales, and of offsets, of a row.
    fn channels(&self) -> usize {
        self.row / self.inner
    }

    /// Returns the total number of scales, and of offsets.
    pub(super) fn parameters(&self) -> usize {
        self.groups * self.channels()
    }

    /// Returns the index of the first scale of row `r`.
    fn first(&self, r: usize) -> usize {
        (r % self.groups) * self.channels()
    }

    /// Returns whether a tensor of this many elements consists of whole rows and groups.
    pub(super) fn fits(&self, elements: usize) -> bool {
        let is_whole = |whole: usize, part: usize| part > 0 && whole.is_multiple_of(part);
        is_whole(self.row, self.inner) && is_whole(elements, self.row) && self.groups > 0
    }
}

/// Computes the norm of the rows in `x`, of which the first has index `first`.
#[inline(always)]
pub(super) fn forward(form: &NormForm, first: usize, x: &[f32], scale: &[f32], offset: &[f32], y: &mut [f32]) {
    for (at, (x, y)) in x.chunks_exact(form.row).zip(y.chunks_exact_mut(form.row)).enumerate() {
        let (mean, inverse) = moments(x, form);
        let from = form.first(first + at);
        let (scale, offset) = (&scale[from..][..form.channels()], &offset[from..][..form.channels()]);
        if form.inner == 1 {
            for ((y, x), (scale, offset)) in y.iter_mut().zip(x).zip(scale.iter().zip(offset)) {
                *y = (x - mean) * inverse * scale + offset;
            }
        } else {
            let spans = x.chunks_exact(form.inner).zip(y.chunks_exact_mut(form.inner));
            for ((x, y), (scale, offset)) in spans.zip(scale.iter().zip(offset)) {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = (x - mean) * inverse * scale + offset;
                }
            }
        }
        if form.has_silu {
            y.iter_mut().for_each(|y| *y = silu(*y));
        }
    }
}

/// Computes the gradients of the rows in `x`, of which the first has index `first`. Overwrites `dx` and adds to
/// `dscale` and `doffset`.
///
/// With `n` the normalised row and `g` the gradient with respect to `scale n + offset`:
/// `dx = (scale g - mean(scale g) - n mean(scale g n)) / deviation`, `dscale = sum of g n`, `doffset = sum of g`.
#[inline(always)]
pub(super) fn gradient(
    form: &NormForm,
    first: usize,
    (x, dy): (&[f32], &[f32]),
    (scale, offset): (&[f32], &[f32]),
    dx: &mut [f32],
    (dscale, doffset): (&mut [f32], &mut [f32]),
) {
    let mut normalised = vec![0.0f32; form.row];
    let n = normalised.as_mut_slice();
    let rows = x.chunks_exact(form.row).zip(dy.chunks_exact(form.row)).zip(dx.chunks_exact_mut(form.row));
    for (at, ((x, dy), dx)) in rows.enumerate() {
        let (mean, inverse) = moments(x, form);
        for (n, x) in n.iter_mut().zip(x) {
            *n = (x - mean) * inverse;
        }
        let from = form.first(first + at);
        let channels = from..from + form.channels();
        let (scale, offset) = (&scale[channels.clone()], &offset[channels.clone()]);
        let (dscale, doffset) = (&mut dscale[channels.clone()], &mut doffset[channels]);
        // dx first holds g, then scale g, then the result.
        let (mut of_g, mut of_both);
        if form.inner == 1 {
            for (((g, dy), n), (scale, offset)) in dx.iter_mut().zip(dy).zip(&*n).zip(scale.iter().zip(offset)) {
                *g = dy * derivative(form, n * scale + offset);
            }
            for (((g, n), scale), (dscale, doffset)) in
                dx.iter_mut().zip(&*n).zip(scale).zip(dscale.iter_mut().zip(doffset.iter_mut()))
            {
                *dscale += *g * n;
                *doffset += *g;
                *g *= scale;
            }
            (of_g, of_both) = sums_of_products(dx, n);
        } else {
            (of_g, of_both) = (0.0, 0.0);
            let spans =
                dx.chunks_exact_mut(form.inner).zip(dy.chunks_exact(form.inner)).zip(n.chunks_exact(form.inner));
            let parameters = scale.iter().zip(offset).zip(dscale.iter_mut().zip(doffset.iter_mut()));
            for (((g, dy), n), ((scale, offset), (dscale, doffset))) in spans.zip(parameters) {
                for ((g, dy), n) in g.iter_mut().zip(dy).zip(n) {
                    *g = dy * derivative(form, n * scale + offset);
                }
                let (sum, with_n) = sums_of_products(g, n);
                *dscale += with_n as f32;
                *doffset += sum as f32;
                of_g += f64::from(*scale) * sum;
                of_both += f64::from(*scale) * with_n;
                g.iter_mut().for_each(|g| *g *= scale);
            }
        }
        if !form.is_centred {
            of_g = 0.0;
        }
        let count = form.row as f64;
        let (of_g, of_both) = ((of_g / count) as f32, (of_both / count) as f32);
        for (dx, n) in dx.iter_mut().zip(&*n) {
            *dx = (*dx - of_g - n * of_both) * inverse;
        }
    }
}

/// Returns the derivative of the function after scale and offset: SiLU or the identity.
#[inline(always)]
fn derivative(form: &NormForm, z: f32) -> f32 {
    if form.has_silu {
        let s = sigmoid(z);
        s * (1.0 + z * (1.0 - s))
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes the norm in double precision, written directly from the formula.
    fn exact(form: &NormForm, x: &[f64], scale: &[f64], offset: &[f64]) -> Vec<f64> {
        let mut y = Vec::new();
        for (r, x) in x.chunks(form.row).enumerate() {
            let mean = if form.is_centred { x.iter().sum::<f64>() / x.len() as f64 } else { 0.0 };
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
            for (k, x) in x.iter().enumerate() {
                let c = (r % form.groups) * (form.row / form.inner) + k / form.inner;
                let z = (x - mean) / (variance + f64::from(form.epsilon)).sqrt() * scale[c] + offset[c];
                y.push(if form.has_silu { z / (1.0 + (-z).exp()) } else { z });
            }
        }
        y
    }

    fn numbers(count: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 23) - 1.0
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn gradients_agree_with_centred_differences() {
        let forms = [
            // Of a tensor [3, 4, 7]: a group norm in two groups, an instance norm, a layer norm, a root mean square
            // norm.
            NormForm { row: 14, groups: 2, inner: 7, epsilon: 1e-5, is_centred: true, has_silu: true },
            NormForm { row: 7, groups: 4, inner: 7, epsilon: 1e-5, is_centred: true, has_silu: false },
            NormForm { row: 21, groups: 1, inner: 1, epsilon: 1e-5, is_centred: true, has_silu: false },
            NormForm { row: 21, groups: 1, inner: 1, epsilon: 1e-3, is_centred: false, has_silu: true },
        ];
        for form in forms {
            let count = 84;
            assert!(form.fits(count));
            let (x, dy) = (numbers(count, 1), numbers(count, 2));
            let (scale, offset) = (numbers(form.parameters(), 3), numbers(form.parameters(), 4));
            let single = |values: &[f64]| values.iter().map(|value| *value as f32).collect::<Vec<f32>>();
            let (x32, dy32, scale32, offset32) = (single(&x), single(&dy), single(&scale), single(&offset));
            let mut y = vec![0.0; count];
            forward(&form, 0, &x32, &scale32, &offset32, &mut y);
            for (found, wanted) in y.iter().zip(exact(&form, &x, &scale, &offset)) {
                assert!((f64::from(*found) - wanted).abs() < 1e-5, "{form:?}: {found} instead of {wanted}");
            }
            let (mut dx, mut dscale) = (vec![0.0; count], vec![0.0; form.parameters()]);
            let mut doffset = dscale.clone();
            // In two parts, as if by two tasks.
            let half = count / form.row / 2 * form.row;
            for (from, to) in [(0, half), (half, count)] {
                let sums = (dscale.as_mut_slice(), doffset.as_mut_slice());
                let parts = (&x32[from..to], &dy32[from..to]);
                gradient(&form, from / form.row, parts, (&scale32, &offset32), &mut dx[from..to], sums);
            }
            let loss = |x: &[f64], scale: &[f64], offset: &[f64]| -> f64 {
                exact(&form, x, scale, offset).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
            };
            let check = |found: &[f32], at_step: &dyn Fn(usize, f64) -> f64| {
                for (at, found) in found.iter().enumerate() {
                    let difference = (at_step(at, 1e-5) - at_step(at, -1e-5)) / 2e-5;
                    assert!((f64::from(*found) - difference).abs() < 2e-5, "{form:?}: {found}, {difference}");
                }
            };
            let moved = |values: &[f64], at: usize, step: f64| {
                let mut values = values.to_vec();
                values[at] += step;
                values
            };
            check(&dx, &|at, step| loss(&moved(&x, at, step), &scale, &offset));
            check(&dscale, &|at, step| loss(&x, &moved(&scale, at, step), &offset));
            check(&doffset, &|at, step| loss(&x, &scale, &moved(&offset, at, step)));
        }
    }

    #[test]
    fn the_gradient_is_orthogonal_to_constants_and_to_the_input() {
        for (row, inner) in [(256, 256), (512, 256), (1040, 8), (96, 1)] {
            let form = NormForm { row, groups: 4, inner, epsilon: 1e-6, is_centred: true, has_silu: false };
            let single =
                |count: usize, seed| numbers(count, seed).iter().map(|value| *value as f32).collect::<Vec<f32>>();
            let (x, dy) = (single(8 * row, 1), single(8 * row, 2));
            let (scale, offset) = (single(form.parameters(), 3), single(form.parameters(), 4));
            let (mut dx, mut sums) = (vec![0.0; 8 * row], vec![0.0; 2 * form.parameters()]);
            gradient(&form, 0, (&x, &dy), (&scale, &offset), &mut dx, sums.split_at_mut(form.parameters()));
            for (dx, x) in dx.chunks(row).zip(x.chunks(row)) {
                let (sum, along) = sums_of_products(dx, x);
                assert!(sum.abs() < 1e-3 && along.abs() < 1e-2, "{form:?}: {sum}, {along}");
            }
        }
    }

    #[test]
    fn long_sums_stay_precise() {
        let values = vec![0.1f32; 1_000_003];
        let exact = 1_000_003.0 * f64::from(0.1f32);
        assert!((sum_of(&values, |x| x) - exact).abs() < 1e-6 * exact);
        let (of_g, of_both) = sums_of_products(&values, &values);
        assert!((of_g - exact).abs() < 1e-6 * exact && (of_both - 0.1 * exact).abs() < 1e-6 * exact);
    }
}
