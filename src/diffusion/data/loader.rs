//! Batches of clean samples, read ahead by threads.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use ndarray::ArrayD;

use super::order::SampleOrder;
use super::source::SampleSource;
use crate::array::Array;
use crate::error::Error;
use crate::runtime::check_memory;

/// Default maximum number of reading threads.
const MOST_WORKERS: usize = 4;

/// The batches that a [`Loader`] reads.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderOptions {
    /// Number of samples in a batch.
    pub batch: usize,
    /// The position in the order of samples at which the first step of all ranks begins.
    pub start: u64,
    /// Number of samples in one step over all ranks.
    pub stride: u64,
    /// The position within a step at which the samples of this rank begin.
    pub offset: u64,
    /// Whether half of the samples are mirrored along their last axis, the width of images.
    pub flip: bool,
    /// The probability that the conditioning of a sample is dropped, all of its arrays together.
    pub drop_conditioning: f64,
    /// Number of reading threads. `None`: one per core, at most four. The batches do not depend on it.
    pub workers: Option<usize>,
    /// Maximum number of batches that are read ahead.
    pub ahead: usize,
}

impl LoaderOptions {
    /// Returns options for a single process, from the beginning, without flipping or dropping.
    pub fn new(batch: usize) -> Self {
        Self {
            batch,
            start: 0,
            stride: batch as u64,
            offset: 0,
            flip: false,
            drop_conditioning: 0.0,
            workers: None,
            ahead: 4,
        }
    }

    fn check(&self, source: &SampleSource, order: &SampleOrder) -> Result<(), Error> {
        let fail = |text: String| Err(Error::usage(text));
        let Self { batch, stride, offset, drop_conditioning, .. } = self;
        if *batch == 0 || self.ahead == 0 {
            return fail(format!(
                "expected at least one sample per batch and one batch ahead, found {batch} and {}",
                self.ahead
            ));
        }
        if offset.checked_add(*batch as u64).is_none_or(|end| end > *stride) {
            return fail(format!(
                "a batch of {batch} samples at offset {offset} does not fit into a step of {stride} samples"
            ));
        }
        if !(0.0..=1.0).contains(drop_conditioning) {
            return fail(format!(
                "expected a probability of dropping conditioning from 0 to 1, found {drop_conditioning}"
            ));
        }
        if self.flip && source.sizes().len() != 3 {
            let text = format!("can't flip samples of shape {:?}: expected [channels, height, width]", source.sizes());
            return fail(text);
        }
        let values = source
            .sizes()
            .iter()
            .fold((*batch as u64).saturating_mul(4), |bytes, size| bytes.saturating_mul(*size as u64));
        check_memory(values.saturating_mul(self.ahead as u64)).map_err(|text| {
            Error::unmet(format!("{} batches of {batch} samples can't be read ahead: {text}", self.ahead))
                .hint("use a smaller batch")
        })?;
        if order.count > source.len() || order.epoch_len() == 0 {
            return fail(format!("expected an order of 1 to {} samples, found {}", source.len(), order.epoch_len()));
        }
        Ok(())
    }
}

/// A batch of clean samples and the data that belongs to them.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The position of each sample in the order, counted over all epochs and ranks.
    pub positions: Vec<u64>,
    /// The number of each sample in the source. For an image that can't be read, the number of its replacement.
    pub numbers: Vec<usize>,
    /// The samples in the value range of the network, `[batch, sizes...]`.
    pub values: ArrayD<f32>,
    /// The rows of conditioning, by the names of the inputs. Rows of dropped samples hold empty conditioning
    /// ([`SampleSource::rows_with_dropped`]).
    pub conditioning: Vec<(String, Array)>,
    /// Whether the conditioning of each sample is dropped. For rows from elsewhere, [`super::replace_dropped`] drops
    /// it.
    pub dropped: Vec<bool>,
    /// Warnings about images that can't be read and were in no earlier batch of this loader.
    pub warnings: Vec<String>,
}

/// Reads batches ahead in threads while the caller computes on earlier ones.
///
/// Batches come in order and are bit for bit the same for any number of threads. Dropping the loader ends the threads.
#[derive(Debug)]
pub struct Loader {
    work: Arc<Work>,
    workers: Vec<JoinHandle<()>>,
    /// All images so far that can't be read, with the reasons.
    unreadable: BTreeMap<usize, String>,
}

/// A batch, and the unreadable images met while building it, with the reasons.
type Built = Result<(Batch, BTreeMap<usize, String>), Error>;

/// The state shared by the threads.
#[derive(Debug)]
struct Work {
    source: Arc<SampleSource>,
    order: SampleOrder,
    options: LoaderOptions,
    queue: Mutex<Queue>,
    /// Notified when a batch is taken, and at the end.
    room: Condvar,
    /// Notified when a batch is ready.
    filled: Condvar,
    /// Set when all threads are to end.
    is_ending: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    /// Number of batches that threads have begun.
    begun: u64,
    /// Number of batches that were taken.
    taken: u64,
    /// Batches that are ready and not yet taken, by number.
    ready: BTreeMap<u64, Built>,
}

impl Loader {
    /// Starts reading batches of `source` in `order`.
    ///
    /// # Errors
    /// The options contradict each other, the source or the order, or the system can't start a thread.
    pub fn new(source: Arc<SampleSource>, order: SampleOrder, options: LoaderOptions) -> Result<Self, Error> {
        options.check(&source, &order)?;
        Self::start(source, order, options)
    }

    fn start(source: Arc<SampleSource>, order: SampleOrder, options: LoaderOptions) -> Result<Self, Error> {
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST_WORKERS));
        let count = options.workers.filter(|count| *count > 0).unwrap_or_else(cores).min(options.ahead);
        let work = Arc::new(Work {
            source,
            order,
            options,
            queue: Mutex::default(),
            room: Condvar::new(),
            filled: Condvar::new(),
            is_ending: AtomicBool::new(false),
        });
        // If a thread can't start, dropping the loader ends those that have started.
        let mut loader = Self { work: work.clone(), workers: Vec::new(), unreadable: BTreeMap::new() };
        for number in 0..count {
            let work = work.clone();
            let thread = std::thread::Builder::new().name(format!("samples-{number}"));
            let worker = thread.spawn(move || work.run()).map_err(|error| {
                Error::unmet(format!("can't start a thread for reading samples: {error}")).caused_by(error)
            })?;
            loader.workers.push(worker);
        }
        Ok(loader)
    }

    /// Returns the next batch. Waits until it is ready.
    ///
    /// # Errors
    /// Samples can't be read, more images are unreadable than may be skipped, or the reading thread panicked. Later
    /// calls continue with the following batch.
    #[expect(clippy::should_implement_trait, reason = "an iterator that never ends would hide the errors in an option")]
    pub fn next(&mut self) -> Result<Batch, Error> {
        let mut queue = self.work.queue();
        let built = loop {
            let at = queue.taken;
            if let Some(built) = queue.ready.remove(&at) {
                queue.taken += 1;
                break built;
            }
            queue = self.work.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        drop(queue);
        self.work.room.notify_all();
        let (mut batch, met) = built?;
        for (number, reason) in met {
            if self.unreadable.insert(number, reason.clone()).is_none() {
                batch.warnings.push(format!("skipped: {reason}"));
            }
        }
        // Counted in the order of batches, so that the batch at which a run fails does not depend on the threads.
        self.work.source.check_unreadable(&self.unreadable)?;
        Ok(batch)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        {
            // The lock ensures that no thread is between checking the flag and waiting.
            let _queue = self.work.queue();
            self.work.is_ending.store(true, Ordering::Relaxed);
        }
        self.work.room.notify_all();
        for worker in self.workers.drain(..) {
            // The thread itself catches panics.
            let _ = worker.join();
        }
    }
}

impl Work {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Relaxed)
    }

    /// Builds batches until the end.
    fn run(&self) {
        while let Some(number) = self.begin() {
            let built = catch_unwind(AssertUnwindSafe(|| self.build(number))).unwrap_or_else(|panic| {
                let said = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let said = said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                Err(Error::unmet(format!("reading a batch of {} failed: {said}", self.source.describe())))
            });
            self.queue().ready.insert(number, built);
            self.filled.notify_all();
        }
    }

    /// Waits for room in the queue and returns the number of the next batch to build. `None` at the end.
    fn begin(&self) -> Option<u64> {
        let mut queue = self.queue();
        while !self.is_ending() && queue.begun - queue.taken >= self.options.ahead as u64 {
            queue = self.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let number = queue.begun;
        queue.begun += 1;
        (!self.is_ending()).then_some(number)
    }

    fn build(&self, number: u64) -> Built {
        let Self { source, order, options, .. } = self;
        let first = number
            .checked_mul(options.stride)
            .and_then(|samples| samples.checked_add(options.start)?.checked_add(options.offset))
            .filter(|first| first.checked_add(options.batch as u64).is_some())
            .ok_or_else(|| Error::unmet(format!("the position of batch {number} does not fit into 64 bits")))?;
        let positions: Vec<u64> = (first..first + options.batch as u64).collect();
        let mut values = ArrayD::zeros([&[options.batch], source.sizes()].concat());
        let (mut numbers, mut met) = (Vec::with_capacity(options.batch), BTreeMap::new());
        for (position, mut row) in positions.iter().zip(values.outer_iter_mut()) {
            if self.is_ending() {
                return Err(Error::cancelled());
            }
            let row = row.as_slice_mut().unwrap_or_default();
            numbers.push(source.read_first(order.candidates(*position), row, &mut met)?);
            if options.flip && order.flips(*position) {
                let width = source.sizes().last().copied().unwrap_or(1);
                row.chunks_exact_mut(width).for_each(<[f32]>::reverse);
            }
        }
        let dropped: Vec<bool> =
            positions.iter().map(|position| order.drops(*position, options.drop_conditioning)).collect();
        let rows = |name: &String| Ok((name.clone(), source.rows_with_dropped(name, &numbers, &dropped)?));
        let conditioning = source.conditioning_names().iter().map(rows).collect::<Result<_, Error>>()?;
        let batch = Batch { positions, numbers, values, conditioning, dropped, warnings: Vec::new() };
        Ok((batch, met))
    }
}

#[cfg(test)]
mod tests;
