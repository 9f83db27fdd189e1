//! A model of more than 2 GiB, with weights in several files: more than one protobuf message can hold.
//!
//! Runs by name only because it writes 2.8 GB to the disk: `cargo test --release --test large_model -- --nocapture`
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{DataLocation, DataType, GraphProto, StringStringEntryProto, TensorProto};
use onnx_diffprune::prune::{PruneOptions, Target};
use support::builder::{model_of, node, value};
use support::cuts::prune;
use support::files::save;
use support::fixtures::analysed_for_good;

const WIDTH: i64 = 8192;
const OUTER: i64 = 512;
const INNER_LAYERS: usize = 8;
const FILES: usize = 3;

fn external(tensor: &TensorProto) -> bool {
    tensor.data_location == DataLocation::External as i32
}

fn entry<'t>(tensor: &'t TensorProto, key: &str) -> &'t str {
    tensor.external_data.iter().find(|entry| entry.key == key).map_or("", |entry| &entry.value)
}

/// Appends a random weight to a data file: uniform, with a range that keeps the magnitude of activations.
fn append_weight(folder: &Path, location: &str, file: &mut BufWriter<File>, name: &str, dims: [i64; 2]) -> TensorProto {
    let offset = file.stream_position().unwrap();
    let spread = (6.0 / dims[0] as f32).sqrt();
    let mut state = offset | 1;
    let mut row = Vec::with_capacity(4 * dims[1] as usize);
    for _ in 0..dims[0] {
        row.clear();
        for _ in 0..dims[1] {
            // xorshift64: fast, and no two rows are equal.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            row.extend((spread * ((state >> 40) as f32 / (1 << 23) as f32 - 1.0)).to_le_bytes());
        }
        file.write_all(&row).unwrap();
    }
    assert!(folder.join(location).exists());
    let entries = [("location", location.to_owned()), ("offset", offset.to_string())];
    let length = ("length", (4 * dims[0] * dims[1]).to_string());
    TensorProto {
        name: name.to_owned(),
        data_type: DataType::Float as i32,
        dims: dims.to_vec(),
        data_location: DataLocation::External as i32,
        external_data: entries
            .into_iter()
            .chain([length])
            .map(|(key, value)| StringStringEntryProto { key: key.to_owned(), value })
            .collect(),
        ..TensorProto::default()
    }
}

/// Writes a chain of linear layers with activations. The weights are distributed over [`FILES`] files.
fn write_model(folder: &Path) -> PathBuf {
    let locations: Vec<String> = (0..FILES).map(|at| format!("weights-{at}.bin")).collect();
    let mut files: Vec<BufWriter<File>> = locations
        .iter()
        .map(|location| BufWriter::with_capacity(1 << 20, File::create(folder.join(location)).unwrap()))
        .collect();
    let mut graph = GraphProto {
        name: "large".to_owned(),
        input: vec![value("x", &[2, OUTER])],
        output: vec![value("y", &[2, OUTER])],
        ..GraphProto::default()
    };
    let mut x = "x".to_owned();
    for layer in 0..INNER_LAYERS + 2 {
        let from = if layer == 0 { OUTER } else { WIDTH };
        let to = if layer == INNER_LAYERS + 1 { OUTER } else { WIDTH };
        let (at, weight) = (layer % FILES, format!("layers.{layer}.weight"));
        graph.initializer.push(append_weight(folder, &locations[at], &mut files[at], &weight, [from, to]));
        let product = if to == OUTER { "y".to_owned() } else { format!("h{layer}") };
        graph.node.push(node(&format!("matmul_{layer}"), "MatMul", &[&x, &weight], &[&product]));
        x = format!("a{layer}");
        if to != OUTER {
            graph.node.push(node(&format!("act_{layer}"), "Relu", &[&product], &[&x]));
        }
    }
    files.iter_mut().for_each(|file| file.flush().unwrap());
    save(folder, &model_of(17, graph))
}

/// Returns the peak memory of this process so far, which only Linux reports.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown").trim().to_owned()
}

#[test]
fn a_model_of_more_than_two_gibibytes_is_pruned_and_verified() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let started = Instant::now();
    let tell =
        |event: &str| println!("{:6.1} s  {event}; peak memory {}", started.elapsed().as_secs_f64(), peak_memory());
    let path = write_model(folder.path());
    let bytes = load(&path).unwrap().total_bytes().unwrap();
    assert!(bytes > 2 << 30, "{bytes} bytes");
    tell(&format!("{bytes} bytes in {FILES} data files written"));

    let pruned = prune(analysed_for_good(load(&path).unwrap()), &PruneOptions::by_magnitude(Target::Ratio(0.5)));
    tell("pruned");
    let written = load(&pruned.path).unwrap();
    let weights: Vec<&TensorProto> = written.graph().initializer.iter().collect();
    assert_eq!(weights.len(), INNER_LAYERS + 2);
    for weight in &weights {
        assert!(external(weight), "{} is not external", weight.name);
        assert_eq!(entry(weight, "location"), "pruned.onnx.data");
        assert!(weight.dims.contains(&(WIDTH / 2)), "{}: {:?}", weight.name, weight.dims);
    }
    let after = written.total_bytes().unwrap();
    assert!(after * 3 < bytes && pruned.path.metadata().unwrap().len() < 1 << 20, "{after} bytes");

    let report = pruned.verify(&pruned.path);
    assert!(report.passed && report.values.is_none(), "{report:?}");
    tell(&format!("{after} bytes verified, worst relative error {:.1e}", report.worst()));

    // Sets one of the 4096 rows of a layer in the middle to zero.
    let offset: u64 = entry(weights[4], "offset").parse().unwrap();
    let row = 4 * weights[4].dims[1] as usize;
    let mut data = File::options().write(true).open(pruned.path.with_extension("onnx.data")).unwrap();
    data.seek(SeekFrom::Start(offset + 5 * row as u64)).unwrap();
    data.write_all(&vec![0; row]).unwrap();
    drop(data);
    let report = pruned.verify(&pruned.path);
    assert!(!report.passed, "verification did not detect a row of zeros");
    assert_eq!(report.first_difference.unwrap().node, "matmul_4");
    tell("a row of zeros in the external data found");
}
