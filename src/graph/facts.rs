//! What is known of all values.

use std::collections::BTreeMap;

use super::NodeId;
use super::dim::Dim;
use super::fact::Fact;
use super::sizes::{Sizes, sizes_for};

/// What inference knows of every value, by [`super::ValueId`].
#[derive(Clone, Debug)]
pub struct Facts {
    /// One entry per value; `None` where not even the element type is known.
    pub values: Vec<Option<Fact>>,
    /// Nodes whose operator is not registered or whose shapes could not be inferred, with the cause.
    pub gaps: Vec<(usize, String)>,
    /// Symbolic sizes of the network's inputs that its weights fix.
    pub fixed: BTreeMap<String, Fixed>,
    /// Symbolic sizes of the network's inputs that follow from others, in the order in which they are derived.
    pub ties: Vec<Tie>,
    pub(crate) fresh: usize,
    /// What nodes demand of symbolic sizes.
    pub(crate) equations: Vec<Equation>,
    /// Elements of large known values, see [`crate::graph::fact::KNOWN_TOTAL`].
    pub(crate) known_elements: usize,
}

/// A symbolic size that a weight fixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// The size.
    pub size: i64,
    /// The node that runs at this size only, as messages show it.
    pub node: String,
}

/// A symbolic size that another one decides, unless the user gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tie {
    /// The symbol.
    pub symbol: String,
    /// The size that it gets.
    pub size: Dim,
}

/// How two sizes are related that meet at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// They are equal.
    Equal,
    /// They are equal, or one of them is one.
    Broadcast,
    /// The first is not less than the second.
    Reaches,
}

/// What a node says of two sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equation {
    /// One size.
    pub a: Dim,
    /// The other.
    pub b: Dim,
    /// The node.
    pub node: NodeId,
    /// How they are related.
    pub relation: Relation,
}

/// A size at which a network can't run: two lengths that must be equal are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// The symbol whose size it is.
    pub symbol: String,
    /// The lengths that meet.
    pub lengths: (i64, i64),
    /// The number of whose multiples all were tried that work, if there is one.
    pub multiple: Option<i64>,
}

/// The largest factor between sizes that is tried: no network halves its sample more often.
const MOST_HALVED: i64 = 256;

/// Multiples of a number that are tried.
const TRIED: i64 = 8;

impl Equation {
    /// The lengths that meet at these sizes, if they may not.
    fn broken(&self, sizes: &Sizes) -> Option<(i64, i64)> {
        let (a, b) = (self.a.eval(sizes)?, self.b.eval(sizes)?);
        let fits = match self.relation {
            Relation::Equal => a == b,
            Relation::Broadcast => a == b || a == 1 || b == 1,
            // What is cut off where it does not reach is still something.
            Relation::Reaches => true,
        };
        (!fits).then_some((a, b))
    }

    /// Whether it holds a symbol, and none of which nothing is known.
    fn speaks_of(&self, symbol: &str) -> bool {
        let mut names = std::collections::BTreeSet::new();
        self.a.symbols(&mut names);
        self.b.symbols(&mut names);
        names.contains(symbol) && !names.iter().any(|name| name.starts_with('?'))
    }
}

impl Facts {
    /// The first of some sizes at which the network can't run, such as a height that it does not halve and double back.
    pub fn contradiction(&self, given: &Sizes) -> Option<Contradiction> {
        let sizes = sizes_for(self, given);
        for symbol in given.keys() {
            let own: Vec<&Equation> = self.equations.iter().filter(|equation| equation.speaks_of(symbol)).collect();
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
            let factors = std::iter::successors(Some(2), |factor| Some(2 * factor)).take_while(|it| *it <= MOST_HALVED);
            let multiple = factors.into_iter().find(|factor| (1..=TRIED).all(|times| works(factor * times)));
            return Some(Contradiction { symbol: symbol.clone(), lengths, multiple });
        }
        None
    }

    /// Nothing yet of `count` values.
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

    /// The sizes that weights fix.
    pub fn fixed_sizes(&self) -> Sizes {
        self.fixed.iter().map(|(name, fixed)| (name.clone(), fixed.size)).collect()
    }
}
