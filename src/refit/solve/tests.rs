#![allow(clippy::unwrap_used)]
use rand::{RngExt, SeedableRng};

use super::*;

/// Fits rows whose targets are a known map of the columns. Returns the distance of the solution from the map, and the
/// remaining fraction of the error.
fn distance(rows: usize, columns: usize, expected_rows: usize, has_bias: bool, memory: u64) -> (f64, f64) {
    let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(7);
    let mut draw = |count: usize| -> Vec<f32> { (0..count).map(|_| random.random_range(-1.0..1.0)).collect() };
    let (outputs, map) = (3, draw(columns * 3));
    let x = draw(rows * columns);
    let target = |row: &[f32], output: usize| -> f32 {
        let sum: f32 = row.iter().enumerate().map(|(at, value)| value * map[at * 3 + output]).sum();
        sum + if has_bias { 2.0 + output as f32 } else { 0.0 }
    };
    let r: Vec<f32> =
        x.chunks(columns).flat_map(|row| (0..outputs).map(|at| target(row, at)).collect::<Vec<_>>()).collect();
    let mut system = System::new(columns, outputs, expected_rows, &[has_bias], memory);
    for (x, r) in x.chunks(columns * rows / 2).zip(r.chunks(outputs * rows / 2)) {
        system.add(0, x, r, 0.5, Par::Seq);
    }
    let mut system = system.centred(Par::Seq);
    let solution = system.solve(1e-9, Par::Seq).unwrap();
    let change = &solution.change;
    let far = (0..columns * 3).map(|at| (change[(at / 3, at % 3)] - f64::from(map[at])).abs()).fold(0.0, f64::max);
    assert_eq!(system.bias(0, change).is_some(), has_bias);
    if let Some(bias) = system.bias(0, change) {
        assert!(bias.iter().enumerate().all(|(at, bias)| (bias - 2.0 - at as f64).abs() < 1e-4));
    }
    // Both ways of computing the remaining error agree.
    let again = system.after(change, Par::Seq);
    assert!((again - solution.after).abs() < 1e-6 * solution.before, "{again} {}", solution.after);
    (far, solution.after / solution.before)
}

#[test]
fn a_linear_map_is_recovered_with_and_without_a_bias() {
    for has_bias in [false, true] {
        // Also with more columns than a panel has.
        for (rows, columns) in [(200, 10), (800, 300)] {
            let (far, left) = distance(rows, columns, rows, has_bias, u64::MAX);
            assert!(far < 1e-3 && left < 1e-7, "{far} {left}");
        }
    }
}

#[test]
fn both_forms_have_the_same_solution() {
    // Announces fewer rows than it adds, or has too little memory: the form by rows solves what the other could.
    for (expected_rows, memory) in [(5, u64::MAX), (200, 700)] {
        let (far, left) = distance(200, 10, expected_rows, true, memory);
        assert!(far < 1e-3 && left < 1e-6, "{far} {left}");
    }
}

#[test]
fn fewer_rows_than_columns_are_fitted_exactly() {
    let (_, left) = distance(8, 40, 8, false, u64::MAX);
    assert!(left < 1e-7, "{left}");
}

#[test]
fn the_kept_rows_fit_into_the_memory() {
    assert_eq!(System::rows_held(100, 10, 80_000), None);
    for (columns, outputs, memory) in [(100, 10, 79_999), (16_000, 1_280, 750_000_000), (3, 1, 1)] {
        let rows = System::rows_held(columns, outputs, memory).unwrap();
        let bytes = |rows: usize| (8 * rows * rows + 4 * (columns + outputs) * rows) as u64;
        assert!(rows >= 1 && (bytes(rows) <= memory || rows == 1) && bytes(rows + 1) > memory, "{rows}");
    }
}

#[test]
fn each_use_has_its_own_means() {
    // Two uses of one map with different biases.
    let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(9);
    let mut system = System::new(2, 1, 1000, &[true, true], u64::MAX);
    for (number, bias) in [(0, 5.0), (1, -3.0)] {
        let x: Vec<f32> = (0..100).map(|_| random.random_range(-1.0..1.0)).collect();
        let r: Vec<f32> = x.chunks(2).map(|row| 2.0 * row[0] - row[1] + bias).collect();
        system.add(number, &x, &r, 1.0, Par::Seq);
    }
    let mut system = system.centred(Par::Seq);
    let solution = system.solve(0.0, Par::Seq).unwrap();
    assert!((solution.change[(0, 0)] - 2.0).abs() < 1e-4 && (solution.change[(1, 0)] + 1.0).abs() < 1e-4);
    let biases = [0, 1].map(|number| system.bias(number, &solution.change).unwrap()[0]);
    assert!((biases[0] - 5.0).abs() < 1e-4 && (biases[1] + 3.0).abs() < 1e-4, "{biases:?}");
}
