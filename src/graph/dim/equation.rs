//! Equations between sizes, solved for one symbol.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::division::remove_factors;
use super::{Atom, Dim, Form, Sum, Terms};

/// Cancels the factors that all terms of the dividend and the divisor share. Sizes are positive, so this keeps the
/// quotient.
pub(super) fn reduced(dividend: &Dim, divisor: &Dim) -> (Dim, Dim) {
    let (a, b) = (dividend.terms(), divisor.terms());
    let both: Vec<(&Vec<Atom>, i64)> = a.iter().chain(&b).map(|(factors, value)| (factors, *value)).collect();
    let (factors, number) = common(&both);
    let number = i64::try_from(number).unwrap_or(1).max(1);
    (without(&a, &factors, number), without(&b, &factors, number))
}

/// Returns the factors that all monomials share, and the greatest common divisor of the coefficients.
fn common(terms: &[(&Vec<Atom>, i64)]) -> (Vec<Atom>, u64) {
    let mut factors = terms.first().map(|(factors, _)| (*factors).clone()).unwrap_or_default();
    let mut number = 0;
    for (other, value) in terms {
        let mut rest = (*other).clone();
        factors.retain(|factor| match rest.iter().position(|own| own == factor) {
            Some(at) => {
                rest.remove(at);
                true
            }
            None => false,
        });
        number = gcd(number, value.unsigned_abs());
    }
    (factors, number)
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Divides a polynomial by a monomial that divides each of its terms.
fn without(terms: &Terms, factors: &[Atom], number: i64) -> Dim {
    let divided = |(monomial, value): (&Vec<Atom>, &i64)| {
        let rest = remove_factors(monomial, factors).unwrap_or_else(|| monomial.clone());
        (rest, value / number)
    };
    Dim::of_terms(terms.iter().map(divided).collect())
}

impl Dim {
    /// Solves `self = other` for single symbols. Returns each symbol that can be isolated, with its value. A symbol in
    /// a rounded division is taken to be a multiple of the divisor, because networks are designed for sizes that divide
    /// evenly.
    pub fn solutions(&self, other: &Dim) -> Vec<(Arc<str>, Dim)> {
        let difference = self - other;
        let Form::Sum(sum) = &difference.0 else { return Vec::new() };
        let Sum { terms, .. } = sum.as_ref();
        // Sizes are positive, so a common factor can't make the difference zero.
        let all: Vec<(&Vec<Atom>, i64)> = terms.iter().map(|(factors, value)| (factors, *value)).collect();
        let (factors, _) = common(&all);
        let terms = without(terms, &factors, 1).terms();
        let mut solutions = Vec::new();
        for (monomial, coefficient) in &terms {
            let [atom] = monomial.as_slice() else { continue };
            let rest = Dim::of_terms(terms.iter().filter(|(other, _)| *other != monomial).map(owned).collect());
            // coefficient * atom + rest = 0
            let Some(value) = (&rest * &Dim::from(-1)).div_exact(&Dim::from(*coefficient)) else { continue };
            match atom {
                Atom::Symbol(name) if !contains(&rest, name) => solutions.push((name.clone(), value)),
                Atom::FloorDiv(dividend, divisor) => solutions.extend(undivided(dividend, divisor, &value)),
                _ => {}
            }
        }
        solutions
    }
}

fn owned((monomial, value): (&Vec<Atom>, &i64)) -> (Vec<Atom>, i64) {
    (monomial.clone(), *value)
}

fn contains(dim: &Dim, symbol: &str) -> bool {
    let mut names = std::collections::BTreeSet::new();
    dim.symbols(&mut names);
    names.contains(symbol)
}

/// Returns the size of a symbol for which `dividend // divisor` is `quotient` (all constants), preferably a multiple of
/// the divisor.
fn undivided(dividend: &Dim, divisor: &Dim, quotient: &Dim) -> Option<(Arc<str>, Dim)> {
    let (divisor, quotient) = (divisor.as_const().filter(|divisor| *divisor > 0)?, quotient.as_const()?);
    let terms = dividend.terms();
    let mut symbols = terms.keys().filter(|factors| !factors.is_empty());
    let (factors, None) = (symbols.next()?, symbols.next()) else { return None };
    let [Atom::Symbol(name)] = factors.as_slice() else { return None };
    let coefficient = *terms.get(factors)?;
    let at = |size: i64| dividend.eval(&BTreeMap::from([(name.to_string(), size)]));
    // coefficient * size + offset is in [divisor * quotient, divisor * (quotient + 1)).
    let offset = at(0)?;
    let lowest = divisor.checked_mul(quotient)?.checked_sub(offset)?.checked_div(coefficient)?;
    let multiple = lowest.checked_div_euclid(divisor)?.checked_mul(divisor)?;
    let candidates = [multiple, multiple.checked_add(divisor)?, lowest, lowest.checked_add(1)?];
    let fits = |size: &i64| at(*size).and_then(|value| value.checked_div_euclid(divisor)) == Some(quotient);
    candidates.into_iter().find(fits).map(|size| (name.clone(), Dim::from(size)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solved(a: &Dim, b: &Dim) -> Vec<(String, String)> {
        a.solutions(b).into_iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    fn is(name: &str, value: &str) -> Vec<(String, String)> {
        vec![(name.to_owned(), value.to_owned())]
    }

    #[test]
    fn a_symbol_is_isolated() {
        let (c, h) = (Dim::symbol("C"), Dim::symbol("H"));
        let n = Dim::from;
        assert_eq!(solved(&c, &n(4)), is("C", "4"));
        assert_eq!(solved(&n(9), &(&c + &n(5))), is("C", "4"));
        assert_eq!(solved(&(&c * &n(4)), &n(16)), is("C", "4"));
        // The other factors cancel.
        assert_eq!(solved(&(&(&c * &h) * &n(2)), &(&h * &n(640))), is("C", "320"));
        // Nothing determines how the product is divided between the two symbols.
        assert_eq!(solved(&(&c * &h), &n(640)), []);
        assert_eq!(solved(&(&c * &n(4)), &n(15)), []);
        assert_eq!(solved(&(&c * &c), &n(16)), []);
    }

    #[test]
    fn one_symbol_equals_another_or_an_expression() {
        let (b, f, t) = (Dim::symbol("B"), Dim::symbol("F"), Dim::symbol("T"));
        let mut both = solved(&b, &t);
        both.sort();
        assert_eq!(both, [is("B", "T"), is("T", "B")].concat());
        assert_eq!(solved(&(&b * &f), &t), is("T", "B*F"));
    }

    #[test]
    fn a_symbol_in_a_rounded_division_is_a_multiple_of_the_divisor() {
        let c = Dim::symbol("C");
        let n = Dim::from;
        let half = c.floor_div(&n(2)).unwrap();
        assert_eq!(solved(&half, &n(4)), is("C", "8"));
        assert_eq!(solved(&c.ceil_div(&n(3)).unwrap(), &n(5)), is("C", "15"));
        assert_eq!(solved(&(&half + &half), &n(8)), is("C", "8"));
    }

    #[test]
    fn divisions_cancel_common_factors() {
        let (c, h) = (Dim::symbol("C"), Dim::symbol("H"));
        let n = Dim::from;
        let quotient = (&(&c * &h) * &n(2)).floor_div(&(&h * &n(8))).unwrap();
        assert_eq!(Some(quotient), c.floor_div(&n(4)));
    }
}
