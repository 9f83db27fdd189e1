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

/// Threads that read, unless another number is asked for.
const MOST_WORKERS: usize = 4;

/// Which batches a [`Loader`] brings.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderOptions {
    /// Samples of a batch.
    pub batch: usize,
    /// The position in the order of samples at which the first step of all ranks begins.
    pub start: u64,
    /// Samples of one step over all ranks.
    pub stride: u64,
    /// The position in a step at which the samples of this rank begin.
    pub offset: u64,
    /// Whether half of the samples are mirrored along their last axis, the width of images.
    pub flip: bool,
    /// The probability with which a sample loses its conditioning, all arrays of it together.
    pub drop_conditioning: f64,
    /// Threads that read; `None` takes one per core, at most four. What they bring does not depend on their number.
    pub workers: Option<usize>,
    /// Batches that are read before they are asked for, at most.
    pub ahead: usize,
}

impl LoaderOptions {
    /// Batches for a single process from the beginning, neither flipped nor dropped.
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
            return fail(format!("expected batches of a sample or more, {batch} x {} are read ahead", self.ahead));
        }
        if offset.checked_add(*batch as u64).is_none_or(|end| end > *stride) {
            return fail(format!("expected a batch of {batch} at {offset} to lie in a step of {stride} samples"));
        }
        if !(0.0..=1.0).contains(drop_conditioning) {
            return fail(format!("expected a probability to drop conditioning, found {drop_conditioning}"));
        }
        if self.flip && source.sizes().len() != 3 {
            let text = format!("samples of {:?} can't be flipped, only [channels, height, width]", source.sizes());
            return fail(text);
        }
        let values = source
            .sizes()
            .iter()
            .fold((*batch as u64).saturating_mul(4), |bytes, size| bytes.saturating_mul(*size as u64));
        check_memory(values.saturating_mul(self.ahead as u64)).map_err(|text| {
            Error::unmet(format!("{} batches of {batch} samples can't be read ahead: {text}", self.ahead))
        })?;
        if order.count > source.len() || order.epoch_len() == 0 {
            return fail(format!("expected an order of 1 to {} samples, found {}", source.len(), order.epoch_len()));
        }
        Ok(())
    }
}

/// A batch of clean samples with what belongs to them.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The position of each sample in the order: its number over all epochs and ranks.
    pub positions: Vec<u64>,
    /// The number of each sample in the source; of an image that could not be read, the number of the one in its place.
    pub numbers: Vec<usize>,
    /// The samples in the values of the network, `[batch, sizes...]`.
    pub values: ArrayD<f32>,
    /// The rows of conditioning by the names of the inputs; those of dropped samples stand for none
    /// ([`SampleSource::rows_with_dropped`]).
    pub conditioning: Vec<(String, Array)>,
    /// Whether the conditioning of each sample is dropped; [`super::replace_dropped`] does it for rows from elsewhere.
    pub dropped: Vec<bool>,
    /// Images that can't be read and are not in an earlier batch of this loader, in words.
    pub warnings: Vec<String>,
}

/// Reads the coming batches in threads, while those that were brought are computed on.
///
/// Batches come in order, and bit for bit the same for any number of threads. The threads end when it is dropped.
#[derive(Debug)]
pub struct Loader {
    work: Arc<Work>,
    workers: Vec<JoinHandle<()>>,
    /// All images so far that can't be read, and why.
    unreadable: BTreeMap<usize, String>,
}

/// A batch, and the images met for it that can't be read.
type Built = Result<(Batch, BTreeMap<usize, String>), Error>;

/// What the threads share.
#[derive(Debug)]
struct Work {
    source: Arc<SampleSource>,
    order: SampleOrder,
    options: LoaderOptions,
    queue: Mutex<Queue>,
    /// Told when a batch was taken, or all is to end.
    room: Condvar,
    /// Told when a batch is there.
    filled: Condvar,
    /// Set when all is to end.
    is_ending: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    /// Batches that threads have begun.
    begun: u64,
    /// Batches that were taken.
    taken: u64,
    /// Batches that are there and not taken.
    ready: BTreeMap<u64, Built>,
}

impl Loader {
    /// Starts to read batches of `source` in `order`.
    ///
    /// # Errors
    /// Options that contradict each other, the source or the order; the system gives no threads.
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
        // Those that have started end with it if one can't start.
        let mut loader = Self { work: work.clone(), workers: Vec::new(), unreadable: BTreeMap::new() };
        for number in 0..count {
            let work = work.clone();
            let thread = std::thread::Builder::new().name(format!("samples-{number}"));
            let worker = thread.spawn(move || work.run()).map_err(|error| {
                Error::unmet(format!("no thread for reading samples could be started: {error}")).caused_by(error)
            })?;
            loader.workers.push(worker);
        }
        Ok(loader)
    }

    /// The next batch, waited for if it is not there yet.
    ///
    /// # Errors
    /// Samples that can't be read, or more images than may be skipped; a panic of the thread that read it. Later calls
    /// go on with the batch after it.
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
        // Counted in the order of the batches, so that it does not depend on the threads where a run ends.
        self.work.source.check_unreadable(&self.unreadable)?;
        Ok(batch)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        {
            // Under the lock, so that no thread is between looking and waiting.
            let _queue = self.work.queue();
            self.work.is_ending.store(true, Ordering::Relaxed);
        }
        self.work.room.notify_all();
        for worker in self.workers.drain(..) {
            // Panics were caught in it.
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

    /// Builds batches until all is to end.
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

    /// The number of a batch that this thread is to build, once there is room for it.
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
            .ok_or_else(|| Error::unmet(format!("the position of batch {number} is beyond what can be counted")))?;
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
