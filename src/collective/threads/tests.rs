#![allow(clippy::unwrap_used)]

use std::ops::Range;

use super::super::{Alone, Collective, parts};
use super::Threads;
use crate::error::Error;

/// Returns the values of a rank, chosen such that no sum of them is exact.
fn values(rank: usize, length: usize) -> Vec<f32> {
    (0..length).map(|at| ((rank * 31 + at) as f32 * 0.1).sin()).collect()
}

/// Returns the sum of the values in the order of the ranks.
fn sum(size: usize, length: usize) -> Vec<f32> {
    (1..size).fold(values(0, length), |sum, rank| sum.iter().zip(values(rank, length)).map(|(a, b)| a + b).collect())
}

/// Returns the results of all `size` ranks, first with messages of a few bytes, then with the default length.
fn on_all<T: Send>(size: usize, work: impl Fn(&dyn Collective) -> Result<T, Error> + Sync) -> Vec<Vec<T>> {
    let all = |results: Vec<Result<T, Error>>| results.into_iter().map(Result::unwrap).collect();
    vec![all(Threads::run_with_bucket(size, 40, |ranks| work(&*ranks))), all(Threads::run(size, |ranks| work(&*ranks)))]
}

#[test]
fn sums_add_in_the_order_of_the_ranks() {
    for (size, length) in [(1, 3), (2, 0), (2, 1), (3, 100), (4, 3), (5, 40_000)] {
        let of_rank = |ranks: &dyn Collective| {
            let mut sum = values(ranks.rank(), length);
            ranks.sum(&mut sum)?;
            let mut wide: Vec<f64> = values(ranks.rank(), length).into_iter().map(f64::from).collect();
            ranks.sum_f64(&mut wide)?;
            Ok((sum, wide))
        };
        // Long sums skip the messages of 40 bytes: they would take a thousand rounds per thousand values.
        let runs = if length > 1000 { vec![on_all(size, of_rank).pop().unwrap()] } else { on_all(size, of_rank) };
        for (found, wide) in runs.into_iter().flatten() {
            assert_eq!(found, sum(size, length), "{length} values of {size}");
            for (wide, narrow) in wide.iter().zip(&found) {
                assert!((wide - f64::from(*narrow)).abs() < 1e-5, "{wide} {narrow}");
            }
        }
    }
}

#[test]
fn ranks_keep_their_parts_and_gather_those_of_all() {
    let uneven = |_: usize| vec![2..9, 9..9, 11..60];
    let even = |size: usize| parts(100, size);
    let choices: [&(dyn Fn(usize) -> Vec<Range<usize>> + Sync); 2] = [&uneven, &even];
    for of in choices {
        let parts = of(3);
        let of_rank = |ranks: &dyn Collective| {
            let mut scattered = values(ranks.rank(), 100);
            ranks.reduce_scatter(&mut scattered, &parts)?;
            let mut gathered = values(ranks.rank(), 100);
            ranks.all_gather(&mut gathered, &parts)?;
            Ok((scattered, gathered))
        };
        for run in on_all(3, of_rank) {
            for (rank, (scattered, gathered)) in run.into_iter().enumerate() {
                let mut expected = values(rank, 100);
                expected[parts[rank].clone()].copy_from_slice(&sum(3, 100)[parts[rank].clone()]);
                assert_eq!(scattered, expected);
                let mut expected = values(rank, 100);
                for (other, part) in parts.iter().enumerate() {
                    expected[part.clone()].copy_from_slice(&values(other, 100)[part.clone()]);
                }
                assert_eq!(gathered, expected);
            }
        }
    }
}

#[test]
fn bytes_reach_all_ranks_or_the_first() {
    let text = |rank: usize| vec![u8::try_from(rank).unwrap(); rank * 50];
    let of_rank = |ranks: &dyn Collective| {
        let mut bytes = text(ranks.rank());
        ranks.broadcast(&mut bytes, 2)?;
        let mut nothing = text(ranks.rank());
        ranks.broadcast(&mut nothing, 0)?;
        ranks.barrier()?;
        Ok((bytes, nothing, ranks.gather(text(ranks.rank()))?))
    };
    for run in on_all(3, of_rank) {
        for (rank, (bytes, nothing, gathered)) in run.into_iter().enumerate() {
            assert_eq!(bytes, text(2));
            assert_eq!(nothing, text(0));
            assert_eq!(gathered, (rank == 0).then(|| (0..3).map(text).collect()));
        }
    }
}

#[test]
fn a_rank_that_fails_ends_the_others() {
    let failing = |how: &(dyn Fn(&dyn Collective) -> Result<(), Error> + Sync)| {
        let of_rank = |ranks: std::sync::Arc<dyn Collective>| {
            ranks.barrier()?;
            if ranks.rank() == 1 {
                how(&*ranks)?;
            }
            ranks.sum(&mut [1.0])
        };
        let messages = Threads::run(3, of_rank).into_iter().map(|result| result.unwrap_err().to_string());
        messages.collect::<Vec<String>>()
    };
    let errors = failing(&|_| Err(Error::unmet("no luck")));
    assert_eq!(errors[1], "no luck");
    for rank in [0, 2] {
        // The other of the two ranks may have failed first.
        assert!(errors[rank].ends_with(&format!("has ended; rank {rank} can't continue without it")), "{errors:?}");
    }
    let errors = failing(&|_| panic!("oh"));
    assert_eq!(errors[1], "rank 1 panicked: oh");
    assert!(errors[0].contains("has ended"), "{errors:?}");
    let errors = failing(&|ranks| ranks.abort(3));
    assert_eq!(errors[1], "rank 1 aborted with code 3");
    assert!(errors[2].contains("rank 1 aborted with code 3"), "{errors:?}");
}

#[test]
fn ranks_out_of_step_get_an_error() {
    let message = |work: &(dyn Fn(&dyn Collective) -> Result<(), Error> + Sync)| {
        let errors = Threads::run(2, |ranks| work(&*ranks));
        let errors: Vec<String> = errors.into_iter().map(|result| result.unwrap_err().to_string()).collect();
        assert_eq!(errors[0], errors[1]);
        errors[0].clone()
    };
    let found = message(&|ranks| ranks.sum(&mut vec![0.0; 3 + ranks.rank()]));
    assert_eq!(found, "the ranks are out of step: rank 0 calls sum of 3 values, rank 1 calls sum of 4 values");
    let found = message(&|ranks| if ranks.rank() == 0 { ranks.barrier() } else { ranks.sum(&mut []) });
    assert_eq!(found, "the ranks are out of step: rank 0 calls barrier, rank 1 calls sum");
    let found = message(&|ranks| ranks.broadcast(&mut Vec::new(), ranks.rank()));
    assert!(found.ends_with("rank 1 calls broadcast with different parts or another root"), "{found}");
}

#[test]
fn invalid_parts_and_roots_are_refused() {
    for (parts, length) in [(vec![], 2), (vec![0..2, 1..3], 3), (vec![0..2, 2..4], 3)] {
        for result in Threads::run(2, |ranks| ranks.all_gather(&mut vec![0.0; length], &parts)) {
            assert!(result.unwrap_err().to_string().starts_with("parts: expected 2 ranges"));
        }
    }
    assert!(Alone.broadcast(&mut Vec::new(), 1).is_err());
    assert_eq!(Alone.gather(vec![7]).unwrap(), Some(vec![vec![7]]));
}

#[test]
fn parts_are_of_equal_length_but_the_last() {
    assert_eq!(parts(10, 3), [0..4, 4..8, 8..10]);
    assert_eq!(parts(2, 4), [0..1, 1..2, 2..2, 2..2]);
    assert_eq!(parts(0, 2), [0..0, 0..0]);
}
