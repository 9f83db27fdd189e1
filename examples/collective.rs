//! Checks the operations of a collective on the ranks that `mpirun` starts. With an argument, one rank fails, to check
//! that this ends the others.
//!
//! ```text
//! cargo build --features mpi --example collective
//! mpirun -n 2 target/debug/examples/collective
//! mpirun -n 2 target/debug/examples/collective error|panic|kill|leave
//! ```
//!
//! Rank 0 prints what was checked. The exit code is 1 if a check fails.
#![allow(clippy::unwrap_used)]

use onnx_diffprune::collective::{Collective, open, parts};

/// More bytes than fit into one message, with values that depend on the rank.
const LONG: usize = (20 << 20) / size_of::<f32>() + 7;

/// The time after which a rank that waits for a failed one reports that it was not ended.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

fn values(rank: usize, length: usize) -> Vec<f32> {
    (0..length).map(|at| (((rank * 31 + at) % 1009) as f32 * 0.1).sin()).collect()
}

/// Returns the sum in the order of the ranks, which every rank must compute bit for bit.
fn sum(size: usize, length: usize) -> Vec<f32> {
    (1..size).fold(values(0, length), |mut sum, rank| {
        sum.iter_mut().zip(values(rank, length)).for_each(|(sum, value)| *sum += value);
        sum
    })
}

fn check(ranks: &dyn Collective) -> Result<(), Box<dyn std::error::Error>> {
    let (rank, size) = (ranks.rank(), ranks.size());
    for length in [0, 1, 1000, LONG] {
        let expected = sum(size, length);
        let mut found = values(rank, length);
        ranks.sum(&mut found)?;
        assert!(found == expected, "sum of {length}");
        // Compares the bits of all ranks, not only the value.
        let bits = ranks.gather(bytemuck::cast_slice(&found).to_vec())?;
        for (other, bits) in bits.iter().flatten().enumerate() {
            assert!(bits == bytemuck::cast_slice::<f32, u8>(&expected), "sum of {length} at rank {other}");
        }
        let parts = parts(length, size);
        let mut found = values(rank, length);
        ranks.reduce_scatter(&mut found, &parts)?;
        assert!(found[parts[rank].clone()] == expected[parts[rank].clone()], "reduce_scatter of {length}");
        ranks.all_gather(&mut found, &parts)?;
        assert!(found == expected, "all_gather of {length}");
        let mut bytes = vec![rank as u8; length * (rank + 1)];
        ranks.broadcast(&mut bytes, size - 1)?;
        assert!(bytes == vec![(size - 1) as u8; length * size], "broadcast of {length}");
        let gathered = ranks.gather(vec![rank as u8; length + rank])?;
        let all = (rank == 0).then(|| (0..size).map(|rank| vec![rank as u8; length + rank]).collect::<Vec<_>>());
        assert!(gathered == all, "gather of {length}");
    }
    let mut wide = [1.0 + rank as f64 * f64::EPSILON; 3];
    ranks.sum_f64(&mut wide)?;
    let expected = (1..size).fold(1.0, |sum, rank| sum + (1.0 + rank as f64 * f64::EPSILON));
    assert!(wide == [expected; 3], "sum_f64");
    // Uses another thread than the one that opened the collective.
    std::thread::scope(|scope| scope.spawn(|| ranks.barrier()).join().unwrap())?;
    let out_of_step = ranks.sum(&mut vec![0.0; 2 + rank]);
    assert!(size == 1 || out_of_step.unwrap_err().to_string().contains("out of step"), "lengths");
    Ok(())
}

fn main() {
    let ranks = match open() {
        Ok(ranks) => ranks,
        Err(error) => {
            eprintln!("error: {error}; {}", error.advice().unwrap_or_default());
            std::process::exit(error.exit_code().into())
        }
    };
    let last = ranks.rank() + 1 == ranks.size();
    match std::env::args().nth(1).as_deref() {
        None => {
            if let Err(error) = check(&*ranks) {
                eprintln!("error: rank {}: {error}", ranks.rank());
                ranks.abort(1);
            }
            if ranks.rank() == 0 {
                println!("{} ranks, {} of this machine: all operations agree", ranks.size(), ranks.local_size());
            }
        }
        Some("error") if last => {
            eprintln!("error: rank {} fails", ranks.rank());
            ranks.abort(3)
        }
        Some("panic") if last => panic!("rank {} panics", ranks.rank()),
        // Ends like a rank that is out of memory.
        #[cfg(unix)]
        Some("kill") if last => {
            let own = std::process::id().to_string();
            std::process::Command::new("kill").args(["-KILL", &own]).status().unwrap();
        }
        Some("leave") if last => std::process::exit(0),
        Some(_) => {
            std::thread::spawn(|| {
                std::thread::sleep(PATIENCE);
                eprintln!("this rank was not ended");
                std::process::exit(9)
            });
            if let Err(error) = ranks.barrier() {
                eprintln!("error: {error}");
                ranks.abort(1)
            }
        }
    }
}
