//! The gradients of a sampled image, with respect to its pixels and to the sampling positions.
//!
//! The sample at a position `p` is the sum over the surrounding pixels, the taps, of `Π w(p) x`. Along each axis, the
//! taps are the integers next to `p`, and their weights are polynomials in the fractional part of `p`. A tap outside
//! the image is ignored, or replaced by another pixel.

use crate::graph::Node;
use crate::onnx::{DataType, attr_int, attr_string};
use crate::operator::{GradientCx, RuleError};

/// The interpolation between pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Nearest,
    Linear,
    Cubic,
}

/// What replaces pixels outside the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Padding {
    Zeros,
    Border,
    Reflection,
}

/// The attributes that determine the sample at a position.
#[derive(Clone, Debug)]
pub(super) struct Sampling {
    mode: Option<Mode>,
    padding: Option<Padding>,
    /// Whether -1 and 1 are the centres of the outermost pixels, not their outer edges.
    aligns_corners: bool,
}

/// The parameter of the cubic interpolation, fixed by ONNX.
const CUBIC: f64 = -0.75;

impl Mode {
    /// Returns the taps: the distance of each from the pixel below, and its weight as coefficients of 1, f, f² and f³,
    /// where `f` is the fractional part of the position.
    fn taps(self) -> Vec<(i64, [f64; 4])> {
        let a = CUBIC;
        match self {
            Self::Nearest => vec![(0, [1.0, 0.0, 0.0, 0.0])],
            Self::Linear => vec![(0, [1.0, -1.0, 0.0, 0.0]), (1, [0.0, 1.0, 0.0, 0.0])],
            Self::Cubic => vec![
                (-1, [0.0, a, -2.0 * a, a]),
                (0, [1.0, 0.0, -(a + 3.0), a + 2.0]),
                (1, [0.0, -a, 2.0 * a + 3.0, -(a + 2.0)]),
                (2, [0.0, 0.0, a, -a]),
            ],
        }
    }
}

/// A tap along one axis, for every position: `[N, 1, positions]`.
struct Tap {
    /// The index along the axis, int64.
    index: String,
    /// Its weight; zero where it is ignored.
    weight: String,
    /// The derivative of the weight with respect to the position in pixels.
    derivative: String,
}

/// The sizes of a sampling.
struct Sizes {
    /// The sizes of the image without batch and channels.
    image: Vec<i64>,
    batch: i64,
    channels: i64,
    /// The number of sampling positions in one image of the batch.
    positions: i64,
}

impl Sampling {
    pub(super) fn parse(node: &Node) -> Self {
        let text = |name: &str, default: &'static str| node.proto.string(name).unwrap_or(default).to_owned();
        Self {
            mode: match text("mode", "linear").as_str() {
                "linear" | "bilinear" => Some(Mode::Linear),
                "cubic" | "bicubic" => Some(Mode::Cubic),
                "nearest" => Some(Mode::Nearest),
                _ => None,
            },
            padding: match text("padding_mode", "zeros").as_str() {
                "zeros" => Some(Padding::Zeros),
                "border" => Some(Padding::Border),
                "reflection" => Some(Padding::Reflection),
                _ => None,
            },
            aligns_corners: node.int("align_corners", 0) != 0,
        }
    }

    /// Computes the gradients with respect to the image and to the positions, if they are wanted.
    pub(super) fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (Some(mode), Some(padding)) = (self.mode, self.padding) else {
            return Err(RuleError::unsupported("this version does not know its mode or padding_mode"));
        };
        let (dy, x, y) = (cx.dy()?, cx.shape(0)?, cx.output_shape(0)?);
        let sizes = Sizes { image: x[2..].to_vec(), batch: x[0], channels: x[1], positions: y[2..].iter().product() };
        // Without interpolation, the positions only select pixels.
        let wants_positions = cx.wants(1) && mode != Mode::Nearest;
        if !cx.wants(0) && !wants_positions {
            return Ok(());
        }
        let dy = cx.reshape(&dy, &[sizes.batch, sizes.channels, sizes.positions]);
        let taps: Vec<Vec<Tap>> =
            (0..sizes.image.len()).map(|axis| self.taps(cx, (mode, padding), &sizes, axis)).collect();
        let image = (wants_positions).then(|| {
            let image = cx.input(0);
            cx.reshape(&image, &[sizes.batch, sizes.channels, sizes.image.iter().product()])
        });
        let mut dx = cx.wants(0).then(|| {
            let zero = cx.scalar(0.0);
            cx.expand(&zero, &[sizes.batch, sizes.channels, sizes.image.iter().product()])
        });
        let mut by_position: Vec<Vec<String>> = vec![Vec::new(); sizes.image.len()];
        for chosen in combinations(&taps) {
            let index = sizes.flat_index(cx, &chosen);
            if let Some(sum) = dx.take() {
                let weight = product(cx, chosen.iter().map(|tap| tap.weight.as_str()));
                let share = cx.mul(&dy, &weight);
                let attributes = vec![attr_int("axis", 2), attr_string("reduction", "add")];
                dx = Some(cx.op_with("ScatterElements", &[&sum, &index, &share], attributes));
            }
            if let Some(image) = &image {
                let pixel = cx.op_with("GatherElements", &[image, &index], vec![attr_int("axis", 2)]);
                let share = cx.mul(&pixel, &dy);
                let share = cx.reduce_sum(&share, &[1], true);
                for (axis, sums) in by_position.iter_mut().enumerate() {
                    let factor = |(at, tap): (usize, &&Tap)| {
                        if at == axis { tap.derivative.clone() } else { tap.weight.clone() }
                    };
                    let factors: Vec<String> = chosen.iter().enumerate().map(factor).collect();
                    let derivative = product(cx, factors.iter().map(String::as_str));
                    sums.push(cx.mul(&share, &derivative));
                }
            }
        }
        if let Some(dx) = dx {
            let dx = cx.reshape(&dx, &x);
            cx.add_gradient(0, dx);
        }
        if image.is_some() {
            let gradient = self.position_gradient(cx, &sizes, &by_position);
            let grid = cx.shape(1)?;
            let gradient = cx.reshape(&gradient, &grid);
            cx.add_gradient(1, gradient);
        }
        Ok(())
    }

    /// Computes the gradient with respect to the positions `[N, positions, axes]`, from the contribution of each tap
    /// along each axis.
    fn position_gradient(&self, cx: &mut GradientCx<'_>, sizes: &Sizes, by_axis: &[Vec<String>]) -> String {
        // The first coordinate of a position belongs to the last axis.
        let parts: Vec<String> = (0..by_axis.len())
            .rev()
            .map(|axis| {
                let terms: Vec<&str> = by_axis[axis].iter().map(String::as_str).collect();
                let sum = cx.op("Sum", &terms);
                let sum = cx.scaled(&sum, self.pixels_per_unit(sizes.image[axis]));
                cx.reshape(&sum, &[sizes.batch, sizes.positions, 1])
            })
            .collect();
        cx.concat(&parts, 2)
    }

    /// Returns the number of pixels along an axis of this size that correspond to a coordinate of one.
    fn pixels_per_unit(&self, size: i64) -> f64 {
        if self.aligns_corners { (size - 1) as f64 / 2.0 } else { size as f64 / 2.0 }
    }

    /// Returns the taps along an axis of the image.
    fn taps(&self, cx: &mut GradientCx<'_>, (mode, padding): (Mode, Padding), sizes: &Sizes, axis: usize) -> Vec<Tap> {
        let size = sizes.image[axis];
        let rank = sizes.image.len();
        let (grid, column) = (cx.input(1), (rank - 1 - axis) as i64);
        let positions = cx.reshape(&grid, &[sizes.batch, sizes.positions, rank as i64]);
        let position = cx.slice(&positions, 2, column, column + 1, 1);
        let position = cx.reshape(&position, &[sizes.batch, 1, sizes.positions]);
        // In pixels: -1 to 1 becomes 0 to size - 1, or -0.5 to size - 0.5; both have their centre at (size - 1) / 2.
        let scaled = cx.scaled(&position, self.pixels_per_unit(size));
        let middle = cx.scalar((size - 1) as f64 / 2.0);
        let position = cx.op("Add", &[&scaled, &middle]);
        let below = cx.op(if mode == Mode::Nearest { "Round" } else { "Floor" }, &[&position]);
        let share = cx.op("Sub", &[&position, &below]);
        let taps = mode.taps().into_iter().map(|(distance, coefficients)| {
            let distance = cx.scalar(distance as f64);
            let tap = cx.op("Add", &[&below, &distance]);
            let (index, counts) = self.inside(cx, padding, &tap, size);
            let [_, b, c, d] = coefficients;
            let (weight, derivative) =
                (polynomial(cx, &coefficients, &share), polynomial(cx, &[b, 2.0 * c, 3.0 * d, 0.0], &share));
            let counted = |cx: &mut GradientCx<'_>, value: String| match &counts {
                None => value,
                Some(counts) => cx.mul(&value, counts),
            };
            let (weight, derivative) = (counted(cx, weight), counted(cx, derivative));
            Tap {
                index: cx.op_with("Cast", &[&index], vec![attr_int("to", DataType::Int64 as i64)]),
                weight,
                derivative,
            }
        });
        taps.collect()
    }

    /// Returns the index of the pixel that replaces a tap, as an integer-valued float, and where the tap counts at
    /// all: 1 there, else 0.
    fn inside(&self, cx: &mut GradientCx<'_>, padding: Padding, tap: &str, size: i64) -> (String, Option<String>) {
        if padding == Padding::Reflection {
            // Reflected between the centres of the outermost pixels, or their outer edges.
            let (period, last) =
                if self.aligns_corners { (2 * (size - 1), 2 * (size - 1)) } else { (2 * size, 2 * size - 1) };
            let (period, last) = (cx.scalar(period.max(1) as f64), cx.scalar(last as f64));
            let periods = cx.op("Div", &[tap, &period]);
            let periods = cx.op("Floor", &[&periods]);
            let whole = cx.mul(&periods, &period);
            let forth = cx.op("Sub", &[tap, &whole]);
            let back = cx.op("Sub", &[&last, &forth]);
            return (cx.op("Min", &[&forth, &back]), None);
        }
        let (first, last) = (cx.scalar(0.0), cx.scalar((size - 1) as f64));
        let nearest = cx.op("Max", &[tap, &first]);
        let nearest = cx.op("Min", &[&nearest, &last]);
        if padding == Padding::Border {
            return (nearest, None);
        }
        let outside = cx.op("Sub", &[tap, &nearest]);
        let outside = cx.op("Abs", &[&outside]);
        let one = cx.scalar(1.0);
        let counts = cx.op("Sub", &[&one, &outside]);
        (nearest, Some(cx.op("Max", &[&counts, &first])))
    }
}

impl Sizes {
    /// Computes the flat index of a pixel in its image, for every channel and position: `[N, C, positions]`, int64.
    fn flat_index(&self, cx: &mut GradientCx<'_>, taps: &[&Tap]) -> String {
        let mut index: Option<String> = None;
        for (axis, tap) in taps.iter().enumerate() {
            let stride: i64 = self.image[axis + 1..].iter().product();
            let stride = cx.ints(&[stride]);
            let part = cx.mul(&tap.index, &stride);
            index = Some(match index {
                None => part,
                Some(sum) => cx.op("Add", &[&sum, &part]),
            });
        }
        cx.expand(&index.unwrap_or_default(), &[self.batch, self.channels, self.positions])
    }
}

/// Lists every combination of one tap per axis.
fn combinations(taps: &[Vec<Tap>]) -> Vec<Vec<&Tap>> {
    let mut chosen: Vec<Vec<&Tap>> = vec![Vec::new()];
    for of_axis in taps {
        let mut longer = Vec::with_capacity(chosen.len() * of_axis.len());
        for before in chosen {
            longer.extend(of_axis.iter().map(|tap| [&before[..], &[tap]].concat()));
        }
        chosen = longer;
    }
    chosen
}

fn product<'n>(cx: &mut GradientCx<'_>, mut factors: impl Iterator<Item = &'n str>) -> String {
    let first = factors.next().unwrap_or_default().to_owned();
    factors.fold(first, |product, factor| cx.mul(&product, factor))
}

/// Evaluates a polynomial of degree at most three by Horner's rule.
fn polynomial(cx: &mut GradientCx<'_>, coefficients: &[f64; 4], at: &str) -> String {
    let degree = coefficients.iter().rposition(|factor| *factor != 0.0).unwrap_or(0);
    let highest = cx.scalar(coefficients[degree]);
    if degree == 0 {
        // Of the shape of the positions.
        let zero = cx.scalar(0.0);
        let zeros = cx.mul(at, &zero);
        return cx.op("Add", &[&zeros, &highest]);
    }
    coefficients[..degree].iter().rev().fold(highest, |sum, factor| {
        let product = cx.mul(&sum, at);
        if *factor == 0.0 {
            return product;
        }
        let factor = cx.scalar(*factor);
        cx.op("Add", &[&product, &factor])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(coefficients: [f64; 4], at: f64) -> f64 {
        coefficients.iter().rev().fold(0.0, |sum, factor| sum * at + factor)
    }

    #[test]
    fn weights_add_up_to_one_and_select_the_pixel_at_its_position() {
        for mode in [Mode::Nearest, Mode::Linear, Mode::Cubic] {
            for share in [0.0, 0.2, 0.5, 0.9] {
                let sum: f64 = mode.taps().iter().map(|(_, weights)| value(*weights, share)).sum();
                assert!((sum - 1.0).abs() < 1e-12, "{mode:?} at {share}");
            }
            // At the position of a pixel, only that pixel counts.
            let at_pixel =
                |(distance, weights): &(i64, [f64; 4])| value(*weights, 0.0) == f64::from(*distance as i32 == 0);
            assert!(mode.taps().iter().all(at_pixel), "{mode:?}");
        }
        // Keys 1981: halfway between pixels, 5/8 of the sum of the two nearest less 1/8 of that of the outer two, at a
        // = -0.5; here a = -0.75.
        let middle: Vec<f64> = Mode::Cubic.taps().iter().map(|(_, weights)| value(*weights, 0.5)).collect();
        assert_eq!(middle, [-0.09375, 0.59375, 0.59375, -0.09375]);
    }
}
