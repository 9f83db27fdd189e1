//! Division of polynomials of sizes.

use super::{Atom, Dim, Terms, equation};

/// Maximum number of steps of a long division, which needs one step per term of the quotient.
const MOST_STEPS: usize = 64;

impl Dim {
    /// Returns the quotient if `divisor` divides this polynomial without a remainder, else `None`.
    pub fn div_exact(&self, divisor: &Dim) -> Option<Dim> {
        if let (Some(a), Some(b)) = (self.as_const(), divisor.as_const()) {
            return exact(a, b).map(Dim::from);
        }
        let by = divisor.terms();
        let (factors, coefficient) = leading(&by)?;
        let mut quotient = Dim::from(0);
        let mut rest = self.clone();
        // Polynomial long division: every step removes the leading term of the rest.
        for _ in 0..MOST_STEPS {
            let terms = rest.terms();
            let Some((monomial, value)) = leading(&terms) else {
                return Some(quotient);
            };
            let term = Dim::monomial(remove_factors(monomial, factors)?, exact(value, coefficient)?);
            rest = &rest - &(&term * divisor);
            quotient = &quotient + &term;
        }
        rest.is(0).then_some(quotient)
    }

    /// Returns `self / divisor` rounded towards minus infinity. Sizes and divisors in shape arithmetic are not
    /// negative.
    pub fn floor_div(&self, divisor: &Dim) -> Option<Dim> {
        if divisor.is(0) {
            return None;
        }
        if let (Some(a), Some(b)) = (self.as_const(), divisor.as_const()) {
            return Some(Dim::from(a.checked_div_euclid(b)?));
        }
        if let Some(quotient) = self.div_exact(divisor) {
            return Some(quotient);
        }
        let (dividend, divisor) = equation::reduced(self, divisor);
        Some(dividend.joined(&divisor, "//", Atom::FloorDiv))
    }

    /// Returns `self / divisor` rounded up.
    pub fn ceil_div(&self, divisor: &Dim) -> Option<Dim> {
        (self + &(divisor - &Dim::from(1))).floor_div(divisor)
    }

    /// Returns the remainder of [`Dim::floor_div`].
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
        Some(self.joined(divisor, "%", Atom::Mod))
    }
}

/// Returns the leading term in graded lexicographic order, which products respect. Returns `None` for zero.
fn leading(terms: &Terms) -> Option<(&Vec<Atom>, i64)> {
    let order = |a: &Vec<Atom>, b: &Vec<Atom>| a.len().cmp(&b.len()).then_with(|| b.cmp(a));
    terms.iter().max_by(|(a, _), (b, _)| order(a, b)).map(|(monomial, value)| (monomial, *value))
}

fn exact(a: i64, b: i64) -> Option<i64> {
    (b != 0 && a.checked_rem(b)? == 0).then(|| a / b)
}

/// Removes the sorted multiset `factors` from the sorted multiset `from`. Returns `None` if `from` does not contain all
/// of them.
pub(super) fn remove_factors(from: &[Atom], factors: &[Atom]) -> Option<Vec<Atom>> {
    let mut rest = from.to_vec();
    for factor in factors {
        let at = rest.iter().position(|atom| atom == factor)?;
        rest.remove(at);
    }
    Some(rest)
}
