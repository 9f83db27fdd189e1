//! Tests of symbolic sizes.

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
fn expressions_that_grow_without_bound_are_replaced_by_a_digest() {
    let mut square = &Dim::symbol("a") + &Dim::symbol("b");
    let mut nested = Dim::symbol("a");
    for _ in 0..200 {
        square = &square * &square;
        nested = Dim::max(&nested, &(&nested + &Dim::symbol("b")));
        assert!(square.parts() <= MOST_PARTS && nested.parts() <= MOST_PARTS);
        assert!(square.to_string().len() < 20 * MOST_PARTS);
    }
    let bindings = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1)]);
    assert_eq!((square.eval(&bindings), nested.eval(&bindings)), (None, None));
    // The placeholder is equal to itself and to nothing else.
    let (twice, thrice) = (&square * &square, &(&square * &square) * &square);
    assert_eq!(twice, &square * &square);
    assert_ne!(twice, thrice);
    assert_eq!((&square - &square).as_const(), Some(0));
}

#[test]
fn long_divisions_with_a_remainder_end() {
    let (h, w) = (Dim::symbol("H"), Dim::symbol("W"));
    let power = (0..60).fold(Dim::from(1), |power, _| &power * &h);
    assert_eq!(power.div_exact(&(&h - &w)), None);
    let saturated = &(&h * &Dim::from(i64::MAX)) + &w;
    assert_eq!((&saturated * &saturated).div_exact(&(&h + &w)), None);
}

#[test]
fn sizes_print_like_arithmetic() {
    let d = &(&Dim::symbol("H") * &Dim::from(2)) - &Dim::from(1);
    assert_eq!(d.to_string(), "-1 + 2*H");
}
