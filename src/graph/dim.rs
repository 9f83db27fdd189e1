//! Symbolic sizes: integer polynomials over the symbolic dimensions of a model.
//!
//! A [`Dim`] is the size of one axis, or one element of a shape computation. It is kept in a canonical form, so that
//! two expressions that are equal as polynomials compare equal: `H*W*20` from a shape chain matches `20*H*W` from a
//! product of sizes. What is no polynomial (a rounded division, a maximum) becomes an opaque [`Atom`] that is equal
//! only to the same expression.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

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
}

/// A polynomial with integer coefficients over [`Atom`]s, in canonical form.
///
/// Arithmetic saturates at the bounds of `i64`, so a hostile model can't make it panic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dim {
    /// Monomial (its factors, sorted) to coefficient; no coefficient is zero.
    terms: BTreeMap<Vec<Atom>, i64>,
}

impl Dim {
    /// A named symbolic dimension.
    pub fn symbol(name: &str) -> Self {
        Self::atom(Atom::Symbol(name.into()))
    }

    fn atom(atom: Atom) -> Self {
        Self { terms: BTreeMap::from([(vec![atom], 1)]) }
    }

    /// The value, where it does not depend on any symbol.
    pub fn as_const(&self) -> Option<i64> {
        match self.terms.len() {
            0 => Some(0),
            1 => self.terms.get(&Vec::new()).copied(),
            _ => None,
        }
    }

    /// The name of a size that is a symbol and no expression.
    pub fn as_symbol(&self) -> Option<String> {
        let mut names = std::collections::BTreeSet::new();
        self.symbols(&mut names);
        names.into_iter().next().filter(|name| *self == Self::symbol(name))
    }

    /// Whether this is the constant `value`.
    pub fn is(&self, value: i64) -> bool {
        self.as_const() == Some(value)
    }

    /// The quotient where `divisor` divides this polynomial without a remainder, else `None`.
    pub fn div_exact(&self, divisor: &Dim) -> Option<Dim> {
        let (factors, coefficient) = divisor.leading()?;
        let mut quotient = Dim::from(0);
        let mut rest = self.clone();
        // Polynomial long division; every step removes the leading term of what is left.
        while let Some((monomial, value)) = rest.leading() {
            let term = Dim::monomial(remove_factors(monomial, factors)?, exact(value, coefficient)?);
            rest = &rest - &(&term * divisor);
            quotient = &quotient + &term;
        }
        Some(quotient)
    }

    /// The leading term in graded lexicographic order, which products respect; `None` for zero.
    fn leading(&self) -> Option<(&Vec<Atom>, i64)> {
        let order = |monomial: &Vec<Atom>| (monomial.len(), std::cmp::Reverse(monomial.clone()));
        self.terms.iter().max_by_key(|(monomial, _)| order(monomial)).map(|(monomial, value)| (monomial, *value))
    }

    fn monomial(factors: Vec<Atom>, coefficient: i64) -> Self {
        let mut terms = BTreeMap::new();
        if coefficient != 0 {
            terms.insert(factors, coefficient);
        }
        Self { terms }
    }

    /// `self / divisor` rounded towards minus infinity; sizes and divisors of shape arithmetic are not negative.
    pub fn floor_div(&self, divisor: &Dim) -> Option<Dim> {
        if divisor.is(0) {
            return None;
        }
        if let (Some(a), Some(b)) = (self.as_const(), divisor.as_const()) {
            return Some(Dim::from(a.checked_div_euclid(b)?));
        }
        Some(self.div_exact(divisor).unwrap_or_else(|| Dim::atom(Atom::FloorDiv(self.into(), divisor.into()))))
    }

    /// `self / divisor` rounded up.
    pub fn ceil_div(&self, divisor: &Dim) -> Option<Dim> {
        (self + &(divisor - &Dim::from(1))).floor_div(divisor)
    }

    /// The remainder of [`Dim::floor_div`].
    pub fn modulo(&self, divisor: &Dim) -> Option<Dim> {
        if divisor.is(0) {
            return None;
        }
        if let (Some(a), Some(b)) = (self.as_const(), divisor.as_const()) {
            return Some(Dim::from(a.checked_rem_euclid(b)?));
        }
        if self.div_exact(divisor).is_some() {
            return Some(Dim::from(0));
        }
        Some(Dim::atom(Atom::Mod(self.into(), divisor.into())))
    }

    /// The larger of the two.
    pub fn max(&self, other: &Dim) -> Dim {
        match (self.as_const(), other.as_const()) {
            (Some(a), Some(b)) => Dim::from(a.max(b)),
            _ if self == other => self.clone(),
            _ => Dim::atom(Atom::Max(self.into(), other.into())),
        }
    }

    /// The smaller of the two.
    pub fn min(&self, other: &Dim) -> Dim {
        match (self.as_const(), other.as_const()) {
            (Some(a), Some(b)) => Dim::from(a.min(b)),
            _ if self == other => self.clone(),
            _ => Dim::atom(Atom::Min(self.into(), other.into())),
        }
    }

    /// The value when every symbol is bound, `None` when one is not or a division by zero arises.
    pub fn eval(&self, bindings: &BTreeMap<String, i64>) -> Option<i64> {
        let mut sum = 0i64;
        for (monomial, coefficient) in &self.terms {
            let mut product = *coefficient;
            for atom in monomial {
                let value = match atom {
                    Atom::Symbol(name) => *bindings.get(name.as_ref())?,
                    Atom::FloorDiv(a, b) => a.eval(bindings)?.checked_div_euclid(b.eval(bindings)?)?,
                    Atom::Mod(a, b) => a.eval(bindings)?.checked_rem_euclid(b.eval(bindings)?)?,
                    Atom::Max(a, b) => a.eval(bindings)?.max(b.eval(bindings)?),
                    Atom::Min(a, b) => a.eval(bindings)?.min(b.eval(bindings)?),
                };
                product = product.saturating_mul(value);
            }
            sum = sum.saturating_add(product);
        }
        Some(sum)
    }

    /// Adds the names of all symbols in this expression to `names`.
    pub fn symbols(&self, names: &mut std::collections::BTreeSet<String>) {
        for atom in self.terms.keys().flatten() {
            match atom {
                Atom::Symbol(name) => {
                    names.insert(name.to_string());
                }
                Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Max(a, b) | Atom::Min(a, b) => {
                    a.symbols(names);
                    b.symbols(names);
                }
            }
        }
    }
}

fn exact(a: i64, b: i64) -> Option<i64> {
    (b != 0 && a % b == 0).then(|| a / b)
}

/// The sorted multiset `from` without the sorted multiset `factors`, where it contains all of them.
fn remove_factors(from: &[Atom], factors: &[Atom]) -> Option<Vec<Atom>> {
    let mut rest = from.to_vec();
    for factor in factors {
        let at = rest.iter().position(|atom| atom == factor)?;
        rest.remove(at);
    }
    Some(rest)
}

impl From<i64> for Dim {
    fn from(value: i64) -> Self {
        Dim::monomial(Vec::new(), value)
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
        let mut terms = self.terms.clone();
        for (monomial, coefficient) in &other.terms {
            let sum = terms.entry(monomial.clone()).or_insert(0);
            *sum = sum.saturating_add(*coefficient);
        }
        terms.retain(|_, coefficient| *coefficient != 0);
        Dim { terms }
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
        let mut terms: BTreeMap<Vec<Atom>, i64> = BTreeMap::new();
        for (a, x) in &self.terms {
            for (b, y) in &other.terms {
                let mut monomial = [a.as_slice(), b.as_slice()].concat();
                monomial.sort();
                let sum = terms.entry(monomial).or_insert(0);
                *sum = sum.saturating_add(x.saturating_mul(*y));
            }
        }
        terms.retain(|_, coefficient| *coefficient != 0);
        Dim { terms }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        for (i, (monomial, coefficient)) in self.terms.iter().enumerate() {
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
                }
            }
        }
        Ok(())
    }
}

/// The product of sizes: the number of elements of a shape.
pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
    dims.into_iter().fold(Dim::from(1), |product, dim| &product * dim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_polynomials_compare_equal() {
        let (h, w) = (Dim::symbol("H"), Dim::symbol("W"));
        let a = &(&h * &w) * &Dim::from(640);
        let b = &(&Dim::from(32) * &w) * &(&h * &Dim::from(20));
        assert_eq!(a, b);
        assert_eq!(a.div_exact(&Dim::from(32)), Some(&(&h * &w) * &Dim::from(20)));
        assert_eq!(a.div_exact(&(&h + &w)), None);
        assert_eq!((&(&h + &w) * &Dim::from(3)).div_exact(&(&h + &w)), Some(Dim::from(3)));
        let (a, b) = (&h + &Dim::from(1), &w + &Dim::from(1));
        assert_eq!((&(&a * &b) * &Dim::from(20)).div_exact(&b), Some(&a * &Dim::from(20)));
        assert_eq!((&(&a * &b) + &Dim::from(1)).div_exact(&b), None);
    }

    #[test]
    fn rounded_divisions_are_opaque_but_equal_to_themselves() {
        let h = Dim::symbol("H");
        let half = (&h - &Dim::from(1)).floor_div(&Dim::from(2));
        assert_eq!(half, (&h - &Dim::from(1)).floor_div(&Dim::from(2)));
        let bindings = BTreeMap::from([("H".to_owned(), 17)]);
        assert_eq!(half.and_then(|d| d.eval(&bindings)), Some(8));
    }

    #[test]
    fn extreme_values_do_not_panic() {
        let big = Dim::from(i64::MAX);
        assert_eq!((&big * &big).as_const(), Some(i64::MAX));
        assert_eq!(Dim::from(i64::MIN).floor_div(&Dim::from(-1)), None);
        assert_eq!(Dim::from(1).floor_div(&Dim::from(0)), None);
    }

    #[test]
    fn prints_like_arithmetic() {
        let d = &(&Dim::symbol("H") * &Dim::from(2)) - &Dim::from(1);
        assert_eq!(d.to_string(), "-1 + 2*H");
    }
}
