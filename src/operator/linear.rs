//! A node as a linear map of one input by a weight, which least squares can fit.
//!
//! An operator describes its node in these terms ([`crate::operator::Operator::linear`]): for every axis of input,
//! weight and output, the indices that the axis is a product of. An index that input and output share numbers *rows*.
//! One that input and weight share is summed over and numbers *columns*. One that weight and output share numbers
//! *outputs*. One that all three share numbers *groups*, each of which has its own matrix to fit.

use crate::graph::Node;
use crate::graph::facts::Facts;

use super::gradient::signed_shape;

/// An index: a position in [`Linear::sizes`].
pub type IndexId = usize;

/// An axis of the input, the weight or the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinearAxis {
    /// A product of indices, outermost first; none for an axis of size one.
    Indices(Vec<IndexId>),
    /// An axis of the input under a sliding window.
    Window {
        /// The index of the output position.
        position: IndexId,
        /// The index of the kernel element.
        tap: IndexId,
        /// For every position and kernel element, the element of the axis; `None` in the padding.
        elements: Vec<Vec<Option<usize>>>,
    },
}

/// A bias of a linear map: a vector over the outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearBias {
    /// The input slot of the node that holds a bias or may get one.
    pub slot: usize,
    /// The factor of the bias.
    pub scale: f64,
}

/// `Y = scale X W + bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// The input slot of X.
    pub input: usize,
    /// The input slot of W.
    pub weight: usize,
    /// The factor of the product.
    pub scale: f64,
    /// The bias that the operator itself adds; `None` if it can't add one.
    pub bias: Option<LinearBias>,
    /// The sizes of all indices.
    pub sizes: Vec<usize>,
    /// The axes of X.
    pub input_axes: Vec<LinearAxis>,
    /// The axes of W.
    pub weight_axes: Vec<LinearAxis>,
    /// The axes of Y.
    pub output_axes: Vec<LinearAxis>,
}

impl Linear {
    /// Describes a node that multiplies the constant at `weight`, with its axes named by the letters of an Einsum.
    /// `None` if a letter occurs in only one of the three, which no linear map of this form has, or if sizes don't
    /// fit.
    pub(crate) fn of_letters(
        (input, weight): (usize, usize),
        letters: [&[char]; 3],
        shapes: [&[i64]; 3],
    ) -> Option<Self> {
        let mut all: Vec<char> = Vec::new();
        let mut sizes: Vec<usize> = Vec::new();
        let mut axes: Vec<Vec<LinearAxis>> = Vec::new();
        for (letters, shape) in letters.iter().zip(shapes) {
            if letters.len() != shape.len() {
                return None;
            }
            let mut of = Vec::new();
            for (letter, size) in letters.iter().zip(shape) {
                let size = usize::try_from(*size).ok()?;
                let at = all.iter().position(|known| known == letter).unwrap_or_else(|| {
                    all.push(*letter);
                    sizes.push(size);
                    all.len() - 1
                });
                if sizes[at] != size {
                    return None;
                }
                of.push(LinearAxis::Indices(vec![at]));
            }
            axes.push(of);
        }
        let count = |letter: &char| letters.iter().filter(|of| of.contains(letter)).count();
        if all.iter().any(|letter| count(letter) < 2) {
            return None;
        }
        let output_axes = axes.pop()?;
        let weight_axes = axes.pop()?;
        let input_axes = axes.pop()?;
        Some(Self { input, weight, scale: 1.0, bias: None, sizes, input_axes, weight_axes, output_axes })
    }
}

/// What is known while a node describes itself.
pub struct LinearCx<'a> {
    pub(crate) node: &'a Node,
    pub(crate) facts: &'a Facts,
    /// Whether the value at an input slot is a constant.
    pub(crate) is_constant: &'a dyn Fn(usize) -> bool,
}

impl LinearCx<'_> {
    /// Whether the node has an input at `slot`.
    pub fn has(&self, slot: usize) -> bool {
        self.node.input(slot).is_some()
    }

    /// Returns the shape of input `slot`, if all sizes are known.
    pub fn shape(&self, slot: usize) -> Option<Vec<i64>> {
        signed_shape(self.facts.values[self.node.input(slot)?].as_ref()?.shape.as_deref()?)
    }

    /// Returns the shape of output 0, if all sizes are known.
    pub fn output_shape(&self) -> Option<Vec<i64>> {
        signed_shape(self.facts.values[self.node.output(0)?].as_ref()?.shape.as_deref()?)
    }

    /// Returns `(input, weight)` if exactly one of two inputs is a constant: the weight.
    pub fn weight_of(&self, a: usize, b: usize) -> Option<(usize, usize)> {
        match ((self.is_constant)(a), (self.is_constant)(b)) {
            (false, true) => Some((a, b)),
            (true, false) => Some((b, a)),
            _ => None,
        }
    }
}

/// Describes a convolution of `[N, C, input...]` by `[O, C / group, kernel...]` (or `[C, O / group, kernel...]`,
/// transposed). `elements` holds the elements under its windows by axis, position and kernel element.
pub(crate) fn of_windows(
    group: usize,
    [x, w, y]: [&[i64]; 3],
    is_transposed: bool,
    elements: Vec<Vec<Vec<Option<usize>>>>,
) -> Option<Linear> {
    let size = |value: &i64| usize::try_from(*value).ok();
    let (batch, channels, outputs) = (size(x.first()?)?, size(x.get(1)?)?, size(y.get(1)?)?);
    if group == 0 || !channels.is_multiple_of(group) || !outputs.is_multiple_of(group) {
        return None;
    }
    let (n, g, c, o) = (0, 1, 2, 3);
    let mut sizes = vec![batch, group, channels / group, outputs / group];
    let plain = |ids: &[IndexId]| LinearAxis::Indices(ids.to_vec());
    let mut input_axes = vec![plain(&[n]), plain(&[g, c])];
    let mut weight_axes = match is_transposed {
        false => vec![plain(&[g, o]), plain(&[c])],
        true => vec![plain(&[g, c]), plain(&[o])],
    };
    let mut output_axes = vec![plain(&[n]), plain(&[g, o])];
    for (axis, elements) in elements.into_iter().enumerate() {
        let (position, tap) = (sizes.len(), sizes.len() + 1);
        sizes.extend([size(y.get(axis + 2)?)?, size(w.get(axis + 2)?)?]);
        input_axes.push(LinearAxis::Window { position, tap, elements });
        weight_axes.push(plain(&[tap]));
        output_axes.push(plain(&[position]));
    }
    let bias = Some(LinearBias { slot: 2, scale: 1.0 });
    Some(Linear { input: 0, weight: 1, scale: 1.0, bias, sizes, input_axes, weight_axes, output_axes })
}
