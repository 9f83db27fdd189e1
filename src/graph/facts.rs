//! What inference knows of all values.

use std::collections::BTreeMap;

use super::NodeId;
use super::dim::Dim;
use super::fact::Fact;
use super::sizes::{Sizes, sizes_for};

/// The facts of every value, indexed by [`super::ValueId`].
#[derive(Clone, Debug)]
pub struct Facts {
    /// One entry per value. `None`: not even the element type is known.
    pub values: Vec<Option<Fact>>,
    /// Nodes whose operator is not registered or whose shapes could not be inferred, with the reason.
    pub gaps: Vec<(usize, String)>,
    /// Symbolic sizes of the network's inputs that its weights fix.
    pub fixed: BTreeMap<String, Fixed>,
    /// Symbolic sizes of the network's inputs that follow from other sizes, in the order in which they are derived.
    pub ties: Vec<Tie>,
    pub(crate) fresh: usize,
    /// The constraints of nodes on symbolic sizes.
    pub(crate) equations: Vec<Equation>,
    /// Number of elements in large known values, see [`crate::graph::fact::KNOWN_TOTAL`].
    pub(crate) known_elements: usize,
}

/// A symbolic size that a weight fixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// The size.
    pub size: i64,
    /// The node that requires this size, as messages show it.
    pub node: String,
}

/// A symbolic size that follows from another size, unless the user sets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tie {
    /// The symbol.
    pub symbol: String,
    /// The size that the symbol gets.
    pub size: Dim,
}

/// The relation of two sizes that meet at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// They are equal.
    Equal,
    /// They are equal, or one of them is one.
    Broadcast,
    /// The first is at least the second.
    Reaches,
}

/// A constraint of a node on two sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equation {
    /// One size.
    pub a: Dim,
    /// The other size.
    pub b: Dim,
    /// The node.
    pub node: NodeId,
    /// Their relation.
    pub relation: Relation,
}

/// A size at which a network can't run: two lengths must be equal but are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// The symbol with this size.
    pub symbol: String,
    /// The lengths that meet.
    pub lengths: (i64, i64),
    /// The number whose multiples work, if one is found: every tested multiple works.
    pub multiple: Option<i64>,
}

/// Maximum factor that is tested as [`Contradiction::multiple`]: no network divides the size of its sample by more.
const MAX_FACTOR: i64 = 256;

/// Number of multiples of a factor that are tested.
const TESTED_MULTIPLES: i64 = 8;

impl Equation {
    /// Returns the two lengths at these sizes, if they violate the relation.
    fn broken(&self, sizes: &Sizes) -> Option<(i64, i64)> {
        let (a, b) = (self.a.eval(sizes)?, self.b.eval(sizes)?);
        let fits = match self.relation {
            Relation::Equal => a == b,
            Relation::Broadcast => a == b || a == 1 || b == 1,
            // A slice that does not reach its end is still valid.
            Relation::Reaches => true,
        };
        (!fits).then_some((a, b))
    }

    /// Returns whether the equation contains `symbol`, and no symbol that inference made up (`?...`).
    fn mentions(&self, symbol: &str) -> bool {
        let mut names = std::collections::BTreeSet::new();
        self.a.symbols(&mut names);
        self.b.symbols(&mut names);
        names.contains(symbol) && !names.iter().any(|name| name.starts_with('?'))
    }
}

impl Facts {
    /// Returns the first given size at which the network can't run, such as a height that is not restored after being
    /// halved and doubled.
    pub fn contradiction(&self, given: &Sizes) -> Option<Contradiction> {
        let sizes = sizes_for(self, given);
        for symbol in given.keys() {
            let own: Vec<&Equation> = self.equations.iter().filter(|equation| equation.mentions(symbol)).collect();
            let Some(lengths) = own.iter().find_map(|equation| equation.broken(&sizes)) else { continue };
            let works = |size: i64| {
                let sizes = sizes_for(
                    self,
                    &Sizes::from_iter(
                        given.iter().map(|(name, own)| (name.clone(), if name == symbol { size } else { *own })),
                    ),
                );
                own.iter().all(|equation| equation.broken(&sizes).is_none())
            };
            let factors = std::iter::successors(Some(2), |factor| Some(2 * factor)).take_while(|it| *it <= MAX_FACTOR);
            let multiple = factors.into_iter().find(|factor| (1..=TESTED_MULTIPLES).all(|times| works(factor * times)));
            return Some(Contradiction { symbol: symbol.clone(), lengths, multiple });
        }
        None
    }

    /// Returns facts in which nothing is known of `count` values.
    pub(crate) fn unknown(count: usize) -> Self {
        Self {
            values: vec![None; count],
            gaps: Vec::new(),
            fixed: BTreeMap::new(),
            ties: Vec::new(),
            fresh: 0,
            equations: Vec::new(),
            known_elements: 0,
        }
    }

    /// Returns the sizes that weights fix.
    pub fn fixed_sizes(&self) -> Sizes {
        self.fixed.iter().map(|(name, fixed)| (name.clone(), fixed.size)).collect()
    }
}
