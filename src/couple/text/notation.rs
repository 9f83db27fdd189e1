//! Formatting of layouts over united, kept and divided spaces as text.

mod letters;

use std::collections::BTreeMap;

use crate::graph::dim::Dim;
use crate::operator::couple::layout::{Axis, Layout, Piece, SpaceId};
use crate::operator::couple::space::{Shrinks, Spaces};
use letters::Letters;

/// An input or output of a node.
pub(super) enum Operand {
    /// The input or output is omitted.
    Omitted,
    /// Its rank is not known.
    Unknown,
    /// Its axes.
    Axes(Layout),
}

impl Operand {
    /// Returns the operand for a value's layout, if there is a value.
    pub(super) fn of(value: Option<Option<Layout>>) -> Self {
        match value {
            None => Operand::Omitted,
            Some(None) => Operand::Unknown,
            Some(Some(layout)) => Operand::Axes(layout),
        }
    }

    fn axes(&self) -> &[Axis] {
        match self {
            Operand::Axes(layout) => &layout.axes,
            Operand::Omitted | Operand::Unknown => &[],
        }
    }
}

/// Formats a node whose rule left these spaces and layouts.
pub(super) fn write(mut spaces: Spaces, inputs: Vec<Operand>, outputs: Vec<Operand>) -> String {
    unite_digits(&mut spaces);
    let operands = || inputs.iter().chain(&outputs);
    let mut notation = Notation::new(&spaces, operands().map(Operand::axes));
    for axes in operands().map(Operand::axes) {
        axes.iter().flatten().filter_map(Piece::space).for_each(|space| notation.meet(space));
    }
    let mut list = |operands: &[Operand]| -> String {
        let texts: Vec<String> = operands.iter().map(|operand| notation.operand(operand)).collect();
        texts.join(", ")
    };
    let (inputs, outputs) = (list(&inputs), list(&outputs));
    format!("{inputs} -> {outputs}").trim_start().to_owned()
}

/// Unites the digits of spaces that are united and divided in the same way.
fn unite_digits(spaces: &mut Spaces) {
    let divisions: Vec<_> = spaces.divisions().cloned().collect();
    loop {
        let same = same_spaces(spaces);
        let mut first: BTreeMap<(SpaceId, &[usize], usize), SpaceId> = BTreeMap::new();
        let mut pairs = Vec::new();
        for division in &divisions {
            for (at, digit) in division.digits.iter().enumerate() {
                let Some(digit) = digit else { continue };
                let one = *first.entry((same[division.space], &division.sizes, at)).or_insert(*digit);
                if same[one] != same[*digit] {
                    pairs.push((one, *digit));
                }
            }
        }
        if pairs.is_empty() {
            return;
        }
        pairs.into_iter().for_each(|(a, b)| spaces.unite_spaces(a, b));
    }
}

/// Returns for every space the first one with the same indices.
fn same_spaces(spaces: &Spaces) -> Vec<SpaceId> {
    let classes = spaces.classes();
    let mut first: BTreeMap<&[u32], SpaceId> = BTreeMap::new();
    let of = |(id, space): (SpaceId, &crate::operator::couple::space::Space)| {
        *first.entry(&classes[space.start..space.start + space.len]).or_insert(id)
    };
    spaces.all().iter().enumerate().map(of).collect()
}

/// One way in which a space is a product.
struct Product {
    /// Sizes of the digits, outermost first.
    sizes: Vec<usize>,
    /// The space of every digit, if it has one.
    digits: Vec<Option<SpaceId>>,
    /// Whether different indices may be removed from every block.
    is_ragged: bool,
}

impl Product {
    /// Returns the position of the digit `(k / inner) % extent`.
    fn position(&self, inner: usize, extent: usize) -> Option<usize> {
        let mut rest = self.sizes.iter().product::<usize>();
        self.sizes.iter().position(|size| {
            rest /= size;
            rest == inner && *size == extent
        })
    }
}

struct Notation {
    /// For every space, the representative with the same indices.
    same: Vec<SpaceId>,
    products: BTreeMap<SpaceId, Vec<Product>>,
    letters: Letters,
}

impl Notation {
    fn new<'l>(spaces: &Spaces, layouts: impl Iterator<Item = &'l [Axis]>) -> Self {
        let same = same_spaces(spaces);
        let mut products: BTreeMap<SpaceId, Vec<Product>> = BTreeMap::new();
        let mut kept = Vec::new();
        for division in spaces.divisions() {
            let of = products.entry(same[division.space]).or_default();
            if of.iter().all(|known| known.sizes != division.sizes) {
                let digits: Vec<_> = division.digits.iter().map(|digit| digit.map(|digit| same[digit])).collect();
                let is_ragged = division.is_ragged();
                of.push(Product { sizes: division.sizes.clone(), digits, is_ragged });
            }
            let stays = |at: &usize| match division.shrinks {
                Shrinks::Any | Shrinks::Preferably(_) => false,
                Shrinks::Only(only) => *at != only,
                Shrinks::Nothing => true,
            };
            let staying = (0..division.sizes.len()).filter(stays);
            kept.extend(staying.map(|at| (same[division.space], division.sizes.clone(), at)));
        }
        let mut undivided = |space: SpaceId, sizes: Vec<usize>| {
            let of = products.entry(same[space]).or_default();
            if of.iter().all(|known| known.sizes != sizes) {
                of.push(Product { digits: vec![None; sizes.len()], sizes, is_ragged: true });
            }
        };
        for demand in spaces.equal_blocks() {
            let len = spaces.all()[demand.space].len;
            if (2..len).contains(&demand.block) {
                let sizes = vec![len / demand.block, demand.block];
                undivided(demand.space, sizes.clone());
                kept.push((same[demand.space], sizes, 0));
            }
        }
        for axes in layouts {
            for (space, sizes) in side_by_side(spaces, axes) {
                undivided(space, sizes);
            }
        }
        let mut letters = Letters::new(spaces);
        for (space, sizes, at) in kept {
            let product = products[&space].iter().find(|product| product.sizes == sizes);
            match product.and_then(|product| product.digits[at]) {
                Some(digit) => letters.keep(digit),
                None => letters.keep_digit((space, sizes[at + 1..].iter().product(), sizes[at])),
            }
        }
        // A space that is kept keeps all its factors. A factor may be a product itself.
        for _ in 0..products.len() {
            for (space, product) in
                products.iter().flat_map(|(space, of)| of.iter().map(move |product| (space, product)))
            {
                if letters.is_kept(*space) {
                    product.digits.iter().flatten().for_each(|digit| letters.keep(*digit));
                }
            }
        }
        Self { same, products, letters }
    }

    /// Assigns letters to a space and its digits.
    fn meet(&mut self, space: SpaceId) {
        let space = self.same[space];
        for part in self.parts(space) {
            self.meet(part);
        }
        if !self.letters.meet(space) {
            return;
        }
        let digits: Vec<SpaceId> = self
            .products
            .get(&space)
            .into_iter()
            .flatten()
            .flat_map(|product| product.digits.iter().flatten().copied())
            .collect();
        for digit in digits {
            self.meet(digit);
        }
    }

    /// Returns the shorter spaces that are products and contained in a space, such as the queries in a joint
    /// projection.
    fn parts(&self, space: SpaceId) -> Vec<SpaceId> {
        let whole = self.letters.of(space);
        let place = |part: &SpaceId| {
            let part = self.letters.of(*part);
            (part.len() < whole.len()).then(|| whole.windows(part.len()).position(|window| window == part)).flatten()
        };
        let mut parts: Vec<(usize, SpaceId)> =
            self.products.keys().filter_map(|part| Some((place(part)?, *part))).collect();
        parts.sort_unstable();
        parts.into_iter().map(|(_, part)| part).collect()
    }

    /// Formats a space as a sum of letters and products. `is_axis`: it is a whole axis.
    fn sum(&mut self, space: SpaceId, is_axis: bool) -> String {
        let terms = self.letters.terms(space);
        let is_alone = terms.len() == 1;
        let mut texts = Vec::new();
        for term in &terms {
            let product = self.letters.unnamed_space(term, space).filter(|part| self.products.contains_key(part));
            texts.push(match product {
                Some(part) => self.space(part, false),
                None => self.letters.term(term, is_axis && is_alone),
            });
        }
        let text = texts.join("+");
        if is_alone || is_axis { text } else { format!("({text})") }
    }

    fn operand(&mut self, operand: &Operand) -> String {
        let layout = match operand {
            Operand::Omitted => return "-".to_owned(),
            Operand::Unknown => return "?".to_owned(),
            Operand::Axes(layout) => layout,
        };
        let mut text = String::new();
        for (at, axis) in layout.axes.iter().enumerate() {
            if at > 0 {
                let sides = (layout.axes[at - 1].last(), axis.first());
                text.push(if self.are_ragged(sides) { '|' } else { ' ' });
            }
            text += &self.axis(axis);
        }
        format!("[{text}]")
    }

    /// Returns whether two adjacent pieces are digits of one space that are not separated.
    fn are_ragged(&self, sides: (Option<&Piece>, Option<&Piece>)) -> bool {
        let (
            Some(Piece::Part { space, inner, extent }),
            Some(Piece::Part { space: other, inner: next_inner, extent: next_extent }),
        ) = sides
        else {
            return false;
        };
        if space != other || *inner != next_inner * next_extent {
            return false;
        }
        let has_both = |product: &&Product| {
            [(inner, extent), (next_inner, next_extent)].iter().all(|(i, e)| product.position(**i, **e).is_some())
        };
        let mut products = self.products.get(&self.same[*space]).into_iter().flatten();
        products.find(has_both).is_none_or(|product| product.is_ragged)
    }

    fn axis(&mut self, axis: &Axis) -> String {
        match axis.as_slice() {
            [] => "1".to_owned(),
            [Piece::Fixed(size)] if size.is(0) => "0".to_owned(),
            [Piece::Fixed(_)] => ".".to_owned(),
            [piece] => self.piece(piece, true),
            pieces => {
                let mut text = String::new();
                for (at, piece) in pieces.iter().enumerate() {
                    if at > 0 {
                        text.push(if self.are_ragged((pieces.get(at - 1), Some(piece))) { '|' } else { ' ' });
                    }
                    text += &match piece {
                        Piece::Fixed(size) => fixed(size),
                        piece => self.piece(piece, false),
                    };
                }
                format!("({text})")
            }
        }
    }

    /// Formats a piece that may shrink. `is_axis`: it is a whole axis.
    fn piece(&mut self, piece: &Piece, is_axis: bool) -> String {
        let Piece::Part { space, inner, extent } = piece else { return ".".to_owned() };
        let space = self.same[*space];
        if *extent == self.letters.len(space) {
            return self.space(space, is_axis);
        }
        let products = self.products.get(&space).into_iter().flatten();
        let mut digits = products.filter_map(|product| Some(product.digits[product.position(*inner, *extent)?]));
        match digits.next().flatten() {
            Some(digit) => self.space(digit, is_axis),
            None => self.letters.digit((space, *inner, *extent), is_axis),
        }
    }

    /// Formats a whole space: its letter, a sum of others, or products.
    fn space(&mut self, space: SpaceId, is_axis: bool) -> String {
        let products: Vec<(Vec<usize>, Vec<Option<SpaceId>>, bool)> = self
            .products
            .get(&space)
            .into_iter()
            .flatten()
            .map(|product| (product.sizes.clone(), product.digits.clone(), product.is_ragged))
            .collect();
        let mut ways = Vec::new();
        let is_named = self.letters.is_named(space);
        if products.is_empty() || is_named {
            let is_again = self.letters.is_written(space);
            let sum = self.sum(space, is_axis);
            if products.is_empty() || is_again {
                return sum;
            }
            ways.push(sum);
        }
        for (sizes, digits, is_ragged) in products {
            let mut factors = Vec::new();
            let mut inner: usize = sizes.iter().product();
            for (size, digit) in sizes.iter().zip(digits) {
                inner /= size;
                factors.push(match digit {
                    Some(digit) => self.space(digit, false),
                    None => self.letters.digit((space, inner, *size), false),
                });
            }
            ways.push(format!("({})", factors.join(if is_ragged { "|" } else { " " })));
        }
        ways.join("=")
    }
}

/// Formats a size within a product.
fn fixed(size: &Dim) -> String {
    size.as_const().map_or_else(|| ".".to_owned(), |size| size.to_string())
}

/// Returns the spaces whose digits are adjacent in a layout, with the sizes of these digits.
fn side_by_side(spaces: &Spaces, axes: &[Axis]) -> Vec<(SpaceId, Vec<usize>)> {
    let mut found: Vec<(SpaceId, Vec<usize>)> = Vec::new();
    let mut rest = 1;
    for piece in axes.iter().flatten() {
        let Piece::Part { space, inner, extent } = piece else { continue };
        let len = spaces.all()[*space].len;
        match found.last_mut() {
            Some((open, sizes)) if rest > 1 && open == space && inner * extent == rest => sizes.push(*extent),
            _ if inner * extent == len => found.push((*space, vec![*extent])),
            _ => continue,
        }
        rest = *inner;
    }
    found.retain(|(space, sizes)| sizes.len() > 1 && sizes.iter().product::<usize>() == spaces.all()[*space].len);
    found
}
