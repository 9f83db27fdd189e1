//! The collective operations, implemented on a transport of bytes between ranks.

use std::fmt;
use std::ops::{AddAssign, Range};

use bytemuck::Pod;

use super::{Collective, parts};
use crate::error::Error;

/// The maximum number of bytes that a rank sends or receives at once. It is far below the limit of MPI's counts (2^31),
/// and it bounds the memory for the copies.
const BUCKET: usize = 16 << 20;

/// The maximum size in bytes of all ranks' values together for a sum in one message instead of two.
const SMALL: usize = 64 << 10;

/// Moves bytes between ranks. All ranks make the same calls in the same order. No message is longer than [`BUCKET`].
pub(super) trait Transport: Send + Sync + fmt::Debug {
    fn rank(&self) -> usize;

    fn size(&self) -> usize;

    fn local_rank(&self) -> usize;

    fn local_size(&self) -> usize;

    /// Sends the pieces of `sent`, of the lengths given, one to each rank. Receives the pieces for this rank in the
    /// order of the ranks.
    fn exchange(&self, sent: (&[u8], &[usize]), received: (&mut [u8], &[usize])) -> Result<(), Error>;

    /// Sends `sent` to all ranks. Receives the bytes of all ranks, of the lengths given, in the order of the ranks.
    fn collect(&self, sent: &[u8], received: (&mut [u8], &[usize])) -> Result<(), Error>;

    /// Copies the bytes of rank `root` to every rank.
    fn spread(&self, bytes: &mut [u8], root: usize) -> Result<(), Error>;

    fn abort(&self, code: u8) -> !;
}

/// The collective operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Sum,
    SumF64,
    ReduceScatter,
    AllGather,
    Broadcast,
    Gather,
    Barrier,
}

impl Operation {
    const ALL: [Self; 7] =
        [Self::Sum, Self::SumF64, Self::ReduceScatter, Self::AllGather, Self::Broadcast, Self::Gather, Self::Barrier];

    /// The name of the operation in messages.
    fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::SumF64 => "sum_f64",
            Self::ReduceScatter => "reduce_scatter",
            Self::AllGather => "all_gather",
            Self::Broadcast => "broadcast",
            Self::Gather => "gather",
            Self::Barrier => "barrier",
        }
    }
}

/// Checks that there is one part per rank, that the parts are in order and do not overlap, and that they are inside the
/// values.
pub(super) fn check_parts(parts: &[Range<usize>], size: usize, length: usize) -> Result<(), Error> {
    let mut end = 0;
    let are_apart = parts.iter().all(|part| {
        let fits = end <= part.start && part.start <= part.end && part.end <= length;
        end = part.end;
        fits
    });
    match parts.len() == size && are_apart {
        true => Ok(()),
        false => Err(Error::usage(format!(
            "parts: expected {size} ranges within {length} values, in order and not overlapping, found {parts:?}"
        ))),
    }
}

pub(super) fn check_root(root: usize, size: usize) -> Result<(), Error> {
    match root < size {
        true => Ok(()),
        false => Err(Error::usage(format!("root: expected a rank below {size}, found {root}"))),
    }
}

/// A [`Collective`] on top of a [`Transport`].
#[derive(Debug)]
pub(super) struct Ranks<T> {
    transport: T,
    bucket: usize,
}

impl<T: Transport> Ranks<T> {
    pub(super) fn new(transport: T) -> Self {
        Self::with_bucket(transport, BUCKET)
    }

    /// Creates ranks with another maximum length of messages, in bytes.
    pub(super) fn with_bucket(transport: T, bucket: usize) -> Self {
        Self { transport, bucket }
    }

    /// Checks that all ranks make the same call. Returns the length that each rank passed.
    fn agree(&self, operation: Operation, length: usize, detail: u64) -> Result<Vec<usize>, Error> {
        let own = [operation as u64, length as u64, detail];
        let mut all = vec![[0_u64; 3]; self.size()];
        let lengths = vec![size_of_val(&own); self.size()];
        self.transport.collect(bytemuck::bytes_of(&own), (bytemuck::cast_slice_mut(&mut all), &lengths))?;
        let fail = |rank: usize, own: String, other: String| {
            Err(Error::unmet(format!("the ranks are out of step: rank 0 {own}, rank {rank} {other}")))
        };
        let name = |[operation, ..]: &[u64; 3]| {
            let known = Operation::ALL.iter().find(|known| **known as u64 == *operation);
            format!("calls {}", known.map_or("something else", |known| known.name()))
        };
        let is_each_its_own = matches!(operation, Operation::Broadcast | Operation::Gather);
        for (rank, other) in all.iter().enumerate().skip(1) {
            if other[0] != all[0][0] {
                return fail(rank, name(&all[0]), name(other));
            }
            if other[1] != all[0][1] && !is_each_its_own {
                let of = |found: &[u64; 3]| format!("{} of {} values", name(found), found[1]);
                return fail(rank, of(&all[0]), of(other));
            }
            if other[2] != all[0][2] {
                let text = format!("{} with different parts or another root", name(other));
                return fail(rank, name(&all[0]), text);
            }
        }
        all.iter()
            .map(|[_, length, _]| usize::try_from(*length))
            .collect::<Result<_, _>>()
            .map_err(|_| Error::unmet("a length from another rank exceeds the address space of this machine"))
    }

    /// Returns how many values of type `V` of each rank fit into one message.
    fn share<V>(&self) -> usize {
        (self.bucket / self.size() / size_of::<V>().max(1)).max(1)
    }

    fn reduce_scatter_of<V: Pod + AddAssign>(&self, values: &mut [V], parts: &[Range<usize>]) -> Result<(), Error> {
        let (rank, size) = (self.rank(), self.size());
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for bucket in buckets(parts, self.share::<V>()) {
            sent.clear();
            bucket.iter().for_each(|piece| sent.extend_from_slice(&values[piece.clone()]));
            let own = bucket[rank].clone();
            received.resize(own.len() * size, V::zeroed());
            self.transport.exchange(
                (bytemuck::cast_slice(&sent), &byte_lengths::<V>(&bucket)),
                (bytemuck::cast_slice_mut(&mut received), &vec![own.len() * size_of::<V>(); size]),
            )?;
            add_in_order(&mut values[own], &received);
        }
        Ok(())
    }

    fn all_gather_of<V: Pod>(&self, values: &mut [V], parts: &[Range<usize>]) -> Result<(), Error> {
        let rank = self.rank();
        let mut received = Vec::new();
        for bucket in buckets(parts, self.share::<V>()) {
            received.resize(bucket.iter().map(Range::len).sum(), V::zeroed());
            self.transport.collect(
                bytemuck::cast_slice(&values[bucket[rank].clone()]),
                (bytemuck::cast_slice_mut(&mut received), &byte_lengths::<V>(&bucket)),
            )?;
            let mut from = 0;
            for piece in bucket {
                let to = from + piece.len();
                values[piece].copy_from_slice(&received[from..to]);
                from = to;
            }
        }
        Ok(())
    }

    fn sum_of<V: Pod + AddAssign>(&self, values: &mut [V], operation: Operation) -> Result<(), Error> {
        self.agree(operation, values.len(), 0)?;
        let size = self.size();
        if size_of_val(values) * size <= SMALL.min(self.bucket) {
            let mut received = vec![V::zeroed(); values.len() * size];
            let lengths = vec![size_of_val(values); size];
            let own = bytemuck::cast_slice(values);
            self.transport.collect(own, (bytemuck::cast_slice_mut(&mut received), &lengths))?;
            add_in_order(values, &received);
            return Ok(());
        }
        let parts = parts(values.len(), size);
        self.reduce_scatter_of(values, &parts)?;
        self.all_gather_of(values, &parts)
    }
}

/// Iterates over pieces of at most `share` values of every part, until all parts are covered.
fn buckets(parts: &[Range<usize>], share: usize) -> impl Iterator<Item = Vec<Range<usize>>> {
    let longest = parts.iter().map(Range::len).max().unwrap_or(0);
    (0..longest).step_by(share).map(move |start| {
        let piece = |part: &Range<usize>| {
            let from = (part.start + start).min(part.end);
            from..from.saturating_add(share).min(part.end)
        };
        parts.iter().map(piece).collect()
    })
}

fn byte_lengths<V>(pieces: &[Range<usize>]) -> Vec<usize> {
    pieces.iter().map(|piece| piece.len() * size_of::<V>()).collect()
}

/// Adds the values received from all ranks, in the order of the ranks.
fn add_in_order<V: Pod + AddAssign>(sum: &mut [V], received: &[V]) {
    if sum.is_empty() {
        return;
    }
    let mut of_ranks = received.chunks_exact(sum.len());
    if let Some(first) = of_ranks.next() {
        sum.copy_from_slice(first);
    }
    for values in of_ranks {
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum += *value;
        }
    }
}

/// Returns a hash of the parts (FNV-1a, 64 bit).
fn digest(parts: &[Range<usize>]) -> u64 {
    let bounds = parts.iter().flat_map(|part| [part.start as u64, part.end as u64]);
    bounds
        .flat_map(u64::to_le_bytes)
        .fold(0xcbf2_9ce4_8422_2325, |digest, byte| (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl<T: Transport> Collective for Ranks<T> {
    fn rank(&self) -> usize {
        self.transport.rank()
    }

    fn size(&self) -> usize {
        self.transport.size()
    }

    fn local_rank(&self) -> usize {
        self.transport.local_rank()
    }

    fn local_size(&self) -> usize {
        self.transport.local_size()
    }

    fn sum(&self, values: &mut [f32]) -> Result<(), Error> {
        self.sum_of(values, Operation::Sum)
    }

    fn sum_f64(&self, values: &mut [f64]) -> Result<(), Error> {
        self.sum_of(values, Operation::SumF64)
    }

    fn reduce_scatter(&self, values: &mut [f32], parts: &[Range<usize>]) -> Result<(), Error> {
        check_parts(parts, self.size(), values.len())?;
        self.agree(Operation::ReduceScatter, values.len(), digest(parts))?;
        self.reduce_scatter_of(values, parts)
    }

    fn all_gather(&self, values: &mut [f32], parts: &[Range<usize>]) -> Result<(), Error> {
        check_parts(parts, self.size(), values.len())?;
        self.agree(Operation::AllGather, values.len(), digest(parts))?;
        self.all_gather_of(values, parts)
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, root: usize) -> Result<(), Error> {
        check_root(root, self.size())?;
        let lengths = self.agree(Operation::Broadcast, bytes.len(), root as u64)?;
        bytes.resize(lengths[root], 0);
        bytes.chunks_mut(self.bucket).try_for_each(|bucket| self.transport.spread(bucket, root))
    }

    fn gather(&self, bytes: Vec<u8>) -> Result<Option<Vec<Vec<u8>>>, Error> {
        let (rank, size) = (self.rank(), self.size());
        let lengths = self.agree(Operation::Gather, bytes.len(), 0)?;
        let whole: Vec<Range<usize>> = lengths.iter().map(|length| 0..*length).collect();
        let mut all: Vec<Vec<u8>> = vec![Vec::new(); size];
        let mut received = Vec::new();
        for bucket in buckets(&whole, self.share::<u8>()) {
            let mut sent_lengths = vec![0; size];
            sent_lengths[0] = bucket[rank].len();
            let received_lengths = if rank == 0 { byte_lengths::<u8>(&bucket) } else { vec![0; size] };
            received.resize(received_lengths.iter().sum(), 0);
            let sent = &bytes[bucket[rank].clone()];
            self.transport.exchange((sent, &sent_lengths), (&mut received, &received_lengths))?;
            let mut from = 0;
            for (all, length) in all.iter_mut().zip(received_lengths) {
                all.extend_from_slice(&received[from..from + length]);
                from += length;
            }
        }
        Ok((rank == 0).then_some(all))
    }

    fn barrier(&self) -> Result<(), Error> {
        self.agree(Operation::Barrier, 0, 0).map(drop)
    }

    fn abort(&self, code: u8) -> ! {
        self.transport.abort(code)
    }
}
