//! The clean samples of a run: training samples, which threads read ahead, and held-out samples for evaluations.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use ndarray::{ArrayD, Axis, Slice};

use super::super::network::Denoising;
use super::FinetuneSettings;
use crate::array::Array;
use crate::diffusion::{
    Batch, Conditioning, Loader, LoaderOptions, Ranges, SampleOrder, SampleSource, Samples, SourceOptions,
    replace_dropped,
};
use crate::error::Error;
use crate::finetune::trainer::{CleanBatch, CleanSamples};

/// The source of a run's samples.
pub(super) struct RunSamples {
    source: Arc<SampleSource>,
    order: SampleOrder,
    held_out: Option<Samples>,
}

impl RunSamples {
    /// Opens the data, and reads the held-out samples.
    ///
    /// # Errors
    /// Fails if data can't be read or does not fit the network.
    pub(super) fn open(network: Denoising<'_>, settings: &FinetuneSettings) -> Result<Self, Error> {
        let ranges = Ranges { data: settings.data_range, sample: settings.network.process.sample_range };
        let dims = network.sample_dims(1)?;
        let name = network.roles().sample.name.as_str();
        let inputs = Some(network.roles().conditioning_ports().map(|port| port.name.clone()).collect());
        let options = SourceOptions { inputs, empty: settings.empty.clone(), ..SourceOptions::default() };
        let open = |path: &Path| SampleSource::open(path, (name, &dims), &ranges, &options);
        let source = Arc::new(open(&settings.data)?);
        if source.image(0).is_none() && source.len() < 2 && settings.held_out.is_none() && settings.held_out_count > 0 {
            let text = format!(
                "expected at least 2 samples, one to train on and one to hold out, found {}",
                source.describe()
            );
            return Err(Error::usage(text).hint("add data, or use --eval-samples 0"));
        }
        let order = SampleOrder::new(settings.seed, source.len());
        if let Some(path) = &settings.held_out {
            let count = Samples::available(path, name)?.min(settings.held_out_count);
            let held_out = match count {
                0 => None,
                count => Some(Samples::load(path, (name, &dims), &ranges, count, settings.seed)?),
            };
            return Ok(Self { source, order, held_out });
        }
        let count = settings.held_out_count.min(source.len() / 5);
        if count == 0 {
            return Ok(Self { source, order, held_out: None });
        }
        let order = order.holding_out(count);
        let held_out = Some(set_aside(&source, &order.held_out_numbers())?);
        Ok(Self { source, order, held_out })
    }

    /// Describes the source of the samples, in words.
    pub(super) fn describe(&self) -> String {
        self.source.describe()
    }

    /// Returns the number of training samples.
    pub(super) fn training_count(&self) -> usize {
        self.order.epoch_len()
    }

    /// Returns the held-out samples, renumbered, with their conditioning: that stored with the samples in the data, or
    /// else that of `conditioning`.
    ///
    /// # Errors
    /// Fails if conditioning can't be read.
    pub(super) fn judged(
        &self,
        network: Denoising<'_>,
        conditioning: &Conditioning,
        names: &[String],
        seed: u64,
    ) -> Result<Option<(Samples, Conditioning)>, Error> {
        let Some(held_out) = &self.held_out else { return Ok(None) };
        let beside = if self.order.held_out > 0 { self.source.conditioning_names() } else { &[] };
        let mut given = Vec::new();
        for name in names {
            if beside.contains(name) {
                given.push((name.clone(), self.source.rows(name, &held_out.numbers)?));
            } else if conditioning.is_given(name) {
                given.push((name.clone(), conditioning.rows(name, &held_out.numbers)?));
            }
        }
        let batch = network.roles().fixed_batch().unwrap_or(1);
        let of_judge = Conditioning::new(network.known, network.roles(), Some(&given), (network.sizes(), batch), seed)?;
        let numbers = (0..held_out.len()).collect();
        Ok(Some((Samples { numbers, total: Some(held_out.len()), ..held_out.clone() }, of_judge)))
    }

    /// Returns the training samples of a rank from step `step` on, for one run of the graph at a time.
    ///
    /// # Errors
    /// Fails if options do not fit the data.
    pub(super) fn training<'a>(
        &self,
        settings: &FinetuneSettings,
        conditioning: &'a Conditioning,
        names: Vec<String>,
        (micro_batch, step): (usize, u64),
    ) -> Result<TrainingSamples<'a>, Error> {
        let ranks = settings.ranks.size();
        let batch = settings.batch / ranks;
        let options = LoaderOptions {
            start: step * settings.batch as u64,
            stride: settings.batch as u64,
            offset: (settings.ranks.rank() * batch) as u64,
            flip: settings.flip,
            drop_conditioning: settings.drop_conditioning,
            ..LoaderOptions::new(batch)
        };
        let loader = Loader::new(self.source.clone(), self.order, options)?;
        let empty = settings.empty.clone();
        Ok(TrainingSamples {
            loader,
            conditioning,
            names,
            empty,
            micro_batch,
            runs: VecDeque::new(),
            warnings: Vec::new(),
        })
    }
}

/// Reads the samples with these numbers.
fn set_aside(source: &SampleSource, numbers: &[usize]) -> Result<Samples, Error> {
    let dims = [&[numbers.len()], source.sizes()].concat();
    let mut values = ArrayD::zeros(dims);
    let mut buffer = vec![0.0; source.sizes().iter().product()];
    for (mut row, number) in values.axis_iter_mut(Axis(0)).zip(numbers) {
        source.read(*number, &mut buffer)?;
        row.iter_mut().zip(&buffer).for_each(|(out, value)| *out = *value);
    }
    let text = format!("{} of {}", numbers.len(), source.describe());
    Ok(Samples { values, numbers: numbers.to_vec(), total: Some(source.len()), source: text })
}

/// Training samples, for one run of the graph at a time.
pub(super) struct TrainingSamples<'a> {
    loader: Loader,
    conditioning: &'a Conditioning,
    names: Vec<String>,
    empty: Vec<(String, Array)>,
    micro_batch: usize,
    runs: VecDeque<CleanBatch>,
    /// Messages about samples that could not be read, until the caller takes them.
    pub(super) warnings: Vec<String>,
}

impl TrainingSamples<'_> {
    /// Splits a batch into runs.
    fn divide(&mut self, batch: &Batch) -> Result<(), Error> {
        for start in (0..batch.numbers.len()).step_by(self.micro_batch) {
            let places: Vec<usize> = (start..(start + self.micro_batch).min(batch.numbers.len())).collect();
            let part = Slice::from(start..start + places.len());
            let numbers: Vec<usize> = places.iter().map(|place| batch.numbers[*place]).collect();
            let dropped: Vec<bool> = places.iter().map(|place| batch.dropped[*place]).collect();
            let mut conditioning = Vec::with_capacity(self.names.len());
            for name in &self.names {
                let rows = match batch.conditioning.iter().find(|(given, _)| given == name) {
                    Some((_, rows)) => rows.rows(&places),
                    None => {
                        let mut rows = self.conditioning.rows(name, &numbers)?;
                        if rows.dims.first() == Some(&numbers.len()) {
                            let empty = self.empty.iter().find(|(given, _)| given == name).map(|(_, row)| row);
                            replace_dropped(name, &mut rows, &dropped, empty);
                        }
                        rows
                    }
                };
                conditioning.push((name.clone(), rows));
            }
            self.runs.push_back(CleanBatch {
                positions: places.iter().map(|place| batch.positions[*place]).collect(),
                values: batch.values.slice_axis(Axis(0), part).to_owned(),
                conditioning,
            });
        }
        Ok(())
    }
}

impl CleanSamples for TrainingSamples<'_> {
    fn next(&mut self) -> Result<CleanBatch, Error> {
        if self.runs.is_empty() {
            let batch = self.loader.next()?;
            self.warnings.extend(batch.warnings.iter().cloned());
            self.divide(&batch)?;
        }
        self.runs.pop_front().ok_or_else(|| Error::unmet("the data loader returned a batch without samples"))
    }
}
