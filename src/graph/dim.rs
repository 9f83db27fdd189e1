//! Symbolic sizes: integer polynomials over the symbolic dimensions of a model.
//!
//! A [`Dim`] is the size of one axis, or one element of a shape computation. It is kept in a canonical form, so that
//! two expressions that are equal as polynomials compare equal: `H*W*20` from a shape chain matches `20*H*W` from a
//! product of sizes. An expression that is no polynomial (a rounded division, a maximum) becomes an opaque [`Atom`]
//! that is equal only to the same expression.
//!
//! A file of a few nodes can square a sum of sizes many times. An expression of more than [`MOST_PARTS`] parts is
//! therefore replaced by a digest. The digest is equal only to that of the same expression and has no value.

mod division;
mod equation;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use sha2::{Digest, Sha256};

/// An indivisible factor of a [`Dim`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Atom {
    /// A named symbolic dimension, such as `batch`.
    Symbol(Arc<str>),
    /// A division rounded towards minus infinity.
    FloorDiv(Arc<Dim>, Arc<Dim>),
    /// The remainder that belongs to the floor division.
    Mod(Arc<Dim>, Arc<Dim>),
    /// The larger of two sizes.
    Max(Arc<Dim>, Arc<Dim>),
    /// The smaller of two sizes.
    Min(Arc<Dim>, Arc<Dim>),
    /// An expression that is too large to keep, as a digest.
    TooLarge([u8; 16]),
}

/// Maximum number of parts of an expression: its terms, their factors, and those of nested expressions. Real networks
/// need some hundred, for a sum of the tokens of all levels of a U-Net.
const MOST_PARTS: usize = 512;

/// Maximum number of products of terms when a product of two sums is expanded.
const MOST_PRODUCTS: usize = 256;

/// A map from monomials (sorted factors) to coefficients. No coefficient is zero.
type Terms = BTreeMap<Vec<Atom>, i64>;

/// A polynomial with integer coefficients over [`Atom`]s, in canonical form.
///
/// Arithmetic saturates at the bounds of `i64`, so a hostile model can't make it panic.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dim(Form);

/// The two forms of a size. Most sizes are numbers, and constants hold many of them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Form {
    Number(i64),
    /// Not a number: at least one term has a factor.
    Sum(Arc<Sum>),
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Sum {
    terms: Terms,
    /// Number of parts, for [`MOST_PARTS`].
    parts: usize,
}

/// A hasher that feeds its input to SHA-256.
struct Sha(Sha256);

impl Hasher for Sha {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

/// Returns the placeholder for an expression that is too large.
fn too_large(expression: impl Hash) -> Dim {
    let mut hasher = Sha(Sha256::new());
    expression.hash(&mut hasher);
    let mut digest = [0; 16];
    digest.iter_mut().zip(hasher.0.finalize()).for_each(|(into, byte)| *into = byte);
    Dim::atom(Atom::TooLarge(digest))
}

impl Atom {
    fn parts(&self) -> usize {
        match self {
            Atom::Symbol(_) | Atom::TooLarge(_) => 1,
            Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Max(a, b) | Atom::Min(a, b) => 1 + a.parts() + b.parts(),
        }
    }
}

impl Dim {
    /// A named symbolic dimension.
    pub fn symbol(name: &str) -> Self {
        Self::atom(Atom::Symbol(name.into()))
    }

    fn atom(atom: Atom) -> Self {
        Self::of_terms(BTreeMap::from([(vec![atom], 1)]))
    }

    fn of_terms(mut terms: Terms) -> Self {
        terms.retain(|_, coefficient| *coefficient != 0);
        let constant = terms.get(&Vec::new()).copied();
        match (terms.len(), constant) {
            (0, _) => return Self(Form::Number(0)),
            (1, Some(value)) => return Self(Form::Number(value)),
            _ => {}
        }
        let parts = terms.keys().map(|factors| 1 + factors.iter().map(Atom::parts).sum::<usize>()).sum();
        if parts > MOST_PARTS {
            return too_large(("sum", terms));
        }
        Self(Form::Sum(Arc::new(Sum { parts, terms })))
    }

    /// Returns the number of parts. A number has one.
    pub(crate) fn parts(&self) -> usize {
        match &self.0 {
            Form::Number(_) => 1,
            Form::Sum(sum) => sum.parts,
        }
    }

    /// Returns the terms. A number is the coefficient of the empty monomial.
    fn terms(&self) -> Terms {
        match &self.0 {
            Form::Number(0) => BTreeMap::new(),
            Form::Number(value) => BTreeMap::from([(Vec::new(), *value)]),
            Form::Sum(sum) => sum.terms.clone(),
        }
    }

    /// Returns the number of terms. A number has one.
    fn term_count(&self) -> usize {
        match &self.0 {
            Form::Number(_) => 1,
            Form::Sum(sum) => sum.terms.len(),
        }
    }

    /// Returns the value if it does not depend on any symbol.
    pub fn as_const(&self) -> Option<i64> {
        match self.0 {
            Form::Number(value) => Some(value),
            Form::Sum(_) => None,
        }
    }

    /// Returns the name if the size is a single symbol.
    pub fn as_symbol(&self) -> Option<String> {
        let Form::Sum(sum) = &self.0 else { return None };
        match sum.terms.first_key_value() {
            Some((factors, 1)) if sum.terms.len() == 1 => match factors.as_slice() {
                [Atom::Symbol(name)] => Some(name.to_string()),
                _ => None,
            },
            _ => None,
        }
    }

    /// Returns whether this is the constant `value`.
    pub fn is(&self, value: i64) -> bool {
        self.as_const() == Some(value)
    }

    fn monomial(factors: Vec<Atom>, coefficient: i64) -> Self {
        Self::of_terms(BTreeMap::from([(factors, coefficient)]))
    }

    /// Returns the larger of two sizes.
    pub fn max(&self, other: &Dim) -> Dim {
        match (self.as_const(), other.as_const()) {
            (Some(a), Some(b)) => Dim::from(a.max(b)),
            _ if self == other => self.clone(),
            _ => self.joined(other, "max", Atom::Max),
        }
    }

    /// Returns the smaller of two sizes.
    pub fn min(&self, other: &Dim) -> Dim {
        match (self.as_const(), other.as_const()) {
            (Some(a), Some(b)) => Dim::from(a.min(b)),
            _ if self == other => self.clone(),
            _ => self.joined(other, "min", Atom::Min),
        }
    }

    /// Combines two sizes into an expression that is no polynomial.
    fn joined(&self, other: &Dim, name: &str, atom: impl Fn(Arc<Dim>, Arc<Dim>) -> Atom) -> Dim {
        if self.parts() + other.parts() >= MOST_PARTS {
            return too_large((name, self, other));
        }
        Dim::atom(atom(self.into(), other.into()))
    }

    /// Evaluates the size with a number for every symbol. Returns `None` if a symbol has no number, on a division by
    /// zero, and for an expression that was too large to keep.
    pub fn eval(&self, bindings: &BTreeMap<String, i64>) -> Option<i64> {
        let sum = match &self.0 {
            Form::Number(value) => return Some(*value),
            Form::Sum(sum) => sum,
        };
        let mut total = 0i64;
        for (monomial, coefficient) in &sum.terms {
            let mut product = *coefficient;
            for atom in monomial {
                let value = match atom {
                    Atom::Symbol(name) => *bindings.get(name.as_ref())?,
                    Atom::FloorDiv(a, b) => a.eval(bindings)?.checked_div_euclid(b.eval(bindings)?)?,
                    Atom::Mod(a, b) => a.eval(bindings)?.checked_rem_euclid(b.eval(bindings)?)?,
                    Atom::Max(a, b) => a.eval(bindings)?.max(b.eval(bindings)?),
                    Atom::Min(a, b) => a.eval(bindings)?.min(b.eval(bindings)?),
                    Atom::TooLarge(_) => return None,
                };
                product = product.saturating_mul(value);
            }
            total = total.saturating_add(product);
        }
        Some(total)
    }

    /// Adds the names of all symbols in this expression to `names`.
    pub fn symbols(&self, names: &mut std::collections::BTreeSet<String>) {
        let Form::Sum(sum) = &self.0 else { return };
        for atom in sum.terms.keys().flatten() {
            match atom {
                Atom::Symbol(name) => {
                    names.insert(name.to_string());
                }
                Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Max(a, b) | Atom::Min(a, b) => {
                    a.symbols(names);
                    b.symbols(names);
                }
                Atom::TooLarge(_) => {}
            }
        }
    }
}

impl From<i64> for Dim {
    fn from(value: i64) -> Self {
        Self(Form::Number(value))
    }
}

impl From<&Dim> for Arc<Dim> {
    fn from(value: &Dim) -> Self {
        Arc::new(value.clone())
    }
}

impl std::ops::Add for &Dim {
    type Output = Dim;
    fn add(self, other: &Dim) -> Dim {
        match (self.as_const(), other.as_const()) {
            (Some(a), Some(b)) => return Dim::from(a.saturating_add(b)),
            (Some(0), _) => return other.clone(),
            (_, Some(0)) => return self.clone(),
            _ => {}
        }
        let mut terms = self.terms();
        for (monomial, coefficient) in other.terms() {
            let sum = terms.entry(monomial).or_insert(0);
            *sum = sum.saturating_add(coefficient);
        }
        Dim::of_terms(terms)
    }
}

impl std::ops::Sub for &Dim {
    type Output = Dim;
    fn sub(self, other: &Dim) -> Dim {
        self + &(other * &Dim::from(-1))
    }
}

impl std::ops::Mul for &Dim {
    type Output = Dim;
    fn mul(self, other: &Dim) -> Dim {
        match (self.as_const(), other.as_const()) {
            (Some(a), Some(b)) => return Dim::from(a.saturating_mul(b)),
            (Some(0), _) | (_, Some(0)) => return Dim::from(0),
            (Some(1), _) => return other.clone(),
            (_, Some(1)) => return self.clone(),
            _ => {}
        }
        // Every term is multiplied with every other, so the parts of each operand are copied once per term of the
        // other.
        let (m, n) = (self.term_count(), other.term_count());
        if m * n > MOST_PRODUCTS && m > 1 && n > 1 || m * other.parts() + n * self.parts() > 2 * MOST_PARTS {
            let (a, b) = if self <= other { (self, other) } else { (other, self) };
            return too_large(("product", a, b));
        }
        let mut terms: Terms = BTreeMap::new();
        let right = other.terms();
        for (a, x) in self.terms() {
            for (b, y) in &right {
                let mut monomial = [a.as_slice(), b.as_slice()].concat();
                monomial.sort();
                let sum = terms.entry(monomial).or_insert(0);
                *sum = sum.saturating_add(x.saturating_mul(*y));
            }
        }
        Dim::of_terms(terms)
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dim({self})")
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = match &self.0 {
            Form::Number(value) => return write!(f, "{value}"),
            Form::Sum(sum) => sum,
        };
        for (i, (monomial, coefficient)) in sum.terms.iter().enumerate() {
            if i > 0 {
                f.write_str(if *coefficient < 0 { " - " } else { " + " })?;
            } else if *coefficient < 0 {
                f.write_str("-")?;
            }
            let magnitude = coefficient.unsigned_abs();
            if magnitude != 1 || monomial.is_empty() {
                write!(f, "{magnitude}")?;
            }
            for (j, atom) in monomial.iter().enumerate() {
                if j > 0 || magnitude != 1 {
                    f.write_str("*")?;
                }
                match atom {
                    Atom::Symbol(name) => f.write_str(name)?,
                    Atom::FloorDiv(a, b) => write!(f, "(({a})//({b}))")?,
                    Atom::Mod(a, b) => write!(f, "(({a})%({b}))")?,
                    Atom::Max(a, b) => write!(f, "max({a}, {b})")?,
                    Atom::Min(a, b) => write!(f, "min({a}, {b})")?,
                    Atom::TooLarge(digest) => write!(f, "(too large, {:02x}{:02x})", digest[0], digest[1])?,
                }
            }
        }
        Ok(())
    }
}

/// Multiplies sizes: the number of elements of a shape.
pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
    dims.into_iter().fold(Dim::from(1), |product, dim| &product * dim)
}

#[cfg(test)]
mod tests;
