//! Refits do not depend on memory or time, and leave out excluded layers.

use onnx_diffprune::refit::RefitOptions;
use regex::Regex;

use super::{half, half_with_a_sum, network, options, refitted};

#[test]
fn refits_are_reproducible_also_with_little_memory() {
    let pruned = half_with_a_sum();
    let bytes = |options: &RefitOptions| std::fs::read(refitted(&pruned, options).path).unwrap();
    let first = bytes(&options());
    assert!(first == bytes(&options()));
    // With two kilobytes per value and chunk, most values are written to a file. The matrices of 36 and 72 columns
    // still fit into memory.
    assert!(first == bytes(&RefitOptions { memory: 90_000, ..options() }));
    assert!(first != bytes(&RefitOptions { ridge: 1e-2, ..options() }));
    // Fewer rows fit into memory than there are: the fit differs, but the network is no worse.
    let outcome = refitted(&pruned, &RefitOptions { memory: 40_000, ..options() });
    assert!(outcome.after < outcome.before, "{} {}", outcome.before, outcome.after);
}

#[test]
fn excluded_layers_keep_their_weights() {
    let pruned = half(&network(false, |b, y| b.conv(y, 8, 4, 3, 1)));
    let exclude = Some(Regex::new("Conv_2").unwrap());
    let outcome = refitted(&pruned, &RefitOptions { exclude, ..options() });
    let reasons: Vec<_> = outcome.layers.iter().map(|layer| layer.reason.clone()).collect();
    assert!(matches!(reasons.as_slice(), [Some(reason)] if reason.contains("excluded")), "{reasons:?}");
    assert_eq!(outcome.before, outcome.after);
}
