//! Compares the time of a cut with that of a plain copy of a large model, and measures memory besides the mapped file.
//!
//! `cargo bench --bench prune_large [-- [--repetitions N] [--size GB] [--folder DIR]]` generates a model of about that
//! many gigabytes in a temporary folder (default 1.25; above 2, its weights are in a file beside it). The folder needs
//! free space of 2.25 times the size. The benchmark then runs `cp` and the tool in turn and prints medians. See
//! `docs/benchmarks.md`.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use onnx_diffprune::onnx::{
    DataLocation, DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, attr_ints, tensor_shape_proto, type_proto,
};
use prost::Message;

/// Matrices are [WIDTH, WIDTH], two in each residual block.
const WIDTH: i64 = 2048;
/// Kernels are [PLANES, PLANES, 3, 3], two in each residual block.
const PLANES: i64 = 512;
/// Number of blocks of matrices for each block of kernels.
const LINEAR_PER_CONV: usize = 6;

/// Weights that are cheap to generate: windows at odd offsets of one random table, so that no two are equal.
struct Weights {
    table: Bytes,
    drawn: usize,
}

impl Weights {
    fn new(elements: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let table: Vec<u8> = (0..elements)
            .flat_map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.02).to_le_bytes()
            })
            .collect();
        Self { table: table.into(), drawn: 0 }
    }

    fn draw(&mut self, name: &str, dims: &[i64]) -> TensorProto {
        let bytes = 4 * dims.iter().product::<i64>() as usize;
        self.drawn += 1;
        let start = 4 * (self.drawn * 7919 % ((self.table.len() - bytes) / 4));
        TensorProto {
            name: name.to_owned(),
            data_type: DataType::Float as i32,
            dims: dims.to_vec(),
            raw_data: self.table.slice(start..start + bytes),
            ..TensorProto::default()
        }
    }
}

struct Builder {
    weights: Weights,
    graph: GraphProto,
}

impl Builder {
    fn node(&mut self, op: &str, inputs: &[&str], output: &str) -> &mut NodeProto {
        self.graph.node.push(NodeProto {
            name: format!("node_{output}"),
            op_type: op.to_owned(),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        });
        self.graph.node.last_mut().unwrap()
    }

    fn weight(&mut self, name: &str, dims: &[i64]) {
        let tensor = self.weights.draw(name, dims);
        self.graph.initializer.push(tensor);
    }

    fn linear(&mut self, name: &str, input: &str, from: i64, to: i64) -> String {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        self.weight(&weight, &[from, to]);
        self.weight(&bias, &[to]);
        self.node("MatMul", &[input, &weight], &format!("{name}.product"));
        self.node("Add", &[&format!("{name}.product"), &bias], name);
        name.to_owned()
    }

    fn conv(&mut self, name: &str, input: &str, from: i64, to: i64) -> String {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        self.weight(&weight, &[to, from, 3, 3]);
        self.weight(&bias, &[to]);
        let node = self.node("Conv", &[input, &weight, &bias], name);
        node.attribute = vec![attr_ints("kernel_shape", &[3, 3]), attr_ints("pads", &[1; 4])];
        name.to_owned()
    }

    /// Adds `input + second(relu(first(input)))`.
    fn block(&mut self, name: &str, input: &str, layer: impl Fn(&mut Self, &str, &str) -> String) -> String {
        let hidden = layer(self, &format!("{name}.first"), input);
        self.node("Relu", &[&hidden], &format!("{name}.relu"));
        let out = layer(self, &format!("{name}.second"), &format!("{name}.relu"));
        self.node("Add", &[input, &out], &format!("{name}.sum"));
        format!("{name}.sum")
    }
}

fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension};
    let dim = |size: &i64| Dimension { value: Some(dimension::Value::DimValue(*size)), ..Dimension::default() };
    let tensor = type_proto::Tensor {
        elem_type: DataType::Float as i32,
        shape: Some(TensorShapeProto { dim: dims.iter().map(dim).collect() }),
    };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..ValueInfoProto::default() }
}

/// Bytes of the weights of a block of matrices, and of a block of kernels.
const LINEAR_BYTES: u64 = 8 * (WIDTH * WIDTH) as u64;
const CONV_BYTES: u64 = 8 * 9 * (PLANES * PLANES) as u64;

/// Writes a model of about `size` bytes to `path`. Returns its files: protobuf messages end at 2 GiB, so the weights of
/// larger models are in a separate file.
fn generate(path: &Path, size: u64) -> Vec<PathBuf> {
    let conv_blocks = (size / (CONV_BYTES + LINEAR_PER_CONV as u64 * LINEAR_BYTES)) as usize;
    let linear_blocks = ((size - conv_blocks as u64 * CONV_BYTES) / LINEAR_BYTES) as usize;
    let mut builder = Builder { weights: Weights::new(6_000_011), graph: GraphProto::default() };
    let mut x = builder.conv("in", "sample", 4, PLANES);
    for i in 0..conv_blocks {
        x = builder.block(&format!("convs.{i}"), &x, |b, name, input| b.conv(name, input, PLANES, PLANES));
    }
    builder.graph.initializer.push(TensorProto::of_ints("token_shape", &[1, PLANES, 256], &[3]));
    builder.node("Reshape", &[&x, "token_shape"], "flat");
    builder.node("Transpose", &["flat"], "tokens").attribute = vec![attr_ints("perm", &[0, 2, 1])];
    x = builder.linear("widen", "tokens", PLANES, WIDTH);
    for i in 0..linear_blocks {
        x = builder.block(&format!("linears.{i}"), &x, |b, name, input| b.linear(name, input, WIDTH, WIDTH));
    }
    builder.linear("out", &x, WIDTH, 4);
    let mut graph = builder.graph;
    graph.name = "large".to_owned();
    graph.input = vec![value("sample", &[1, 4, 16, 16])];
    graph.output = vec![value("out", &[1, 256, 4])];
    let model = ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { version: 17, ..OperatorSetIdProto::default() }],
        graph: Some(graph),
        ..ModelProto::default()
    };
    let mut model = model;
    let mut files = vec![path.to_owned()];
    if size > 2_000_000_000 {
        files.push(path.with_extension("onnx.data"));
        move_weights(model.graph.as_mut().unwrap(), &files[1]);
    }
    std::fs::write(path, model.encode_to_vec()).unwrap();
    files
}

/// Moves the larger weights of a graph to a file.
fn move_weights(graph: &mut GraphProto, path: &Path) {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let mut at = 0u64;
    for tensor in graph.initializer.iter_mut().filter(|tensor| tensor.raw_data.len() > 1024) {
        let data = std::mem::take(&mut tensor.raw_data);
        let padding = at.next_multiple_of(4096) - at;
        file.write_all(&vec![0; padding as usize]).unwrap();
        file.write_all(&data).unwrap();
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
        tensor.data_location = DataLocation::External as i32;
        tensor.external_data = vec![
            entry("location", path.file_name().unwrap().to_string_lossy().into_owned()),
            entry("offset", (at + padding).to_string()),
            entry("length", data.len().to_string()),
        ];
        at += padding + data.len() as u64;
    }
    file.flush().unwrap();
}

/// Runs a command. Returns its wall time and its peak anonymous resident memory in bytes.
fn timed(command: &mut Command) -> (Duration, u64) {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let code = loop {
        if let Some(code) = child.try_wait().unwrap() {
            break code;
        }
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or("0");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        peak = peak.max(kib << 10);
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(code.success(), "{command:?} ended with {code}");
    (start.elapsed(), peak)
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

/// Returns the load averages of the machine, as Linux reports them: other work lengthens all times.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(2).collect::<Vec<_>>().join(", ")
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` also runs benchmarks, but without this flag.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        Some(arguments.get(at + 1).unwrap_or_else(|| panic!("{name} needs a value")).as_str())
    };
    let repetitions: usize = option("--repetitions").map_or(5, |text| text.parse().unwrap());
    let asked = option("--size").map_or(1.25, |text| text.parse::<f64>().unwrap());
    let folder = match option("--folder") {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir(),
    };
    let folder = folder.unwrap();
    let [input, output] = ["in.onnx", "out.onnx"].map(|name| folder.path().join(name));
    let inputs = generate(&input, (asked * 1e9) as u64);
    let copies_folder = folder.path().join("copy");
    std::fs::create_dir(&copies_folder).unwrap();
    let of = |path: &Path| [path.to_owned(), path.with_extension("onnx.data")];
    let bytes = |path: &Path| of(path).iter().filter_map(|file| Some(file.metadata().ok()?.len())).sum::<u64>();
    let clear = |path: &Path| of(path).iter().for_each(|file| _ = std::fs::remove_file(file));
    let size = bytes(&input);
    let load_before = load();
    let (mut copies, mut prunes, mut peak) = (Vec::new(), Vec::new(), 0);
    // The first repetition warms up the page cache.
    for round in 0..=repetitions {
        let (copied, _) = timed(Command::new("cp").args(&inputs).arg(&copies_folder));
        clear(&copies_folder.join("in.onnx"));
        clear(&output);
        let mut tool = Command::new(env!("CARGO_BIN_EXE_onnx-diffprune"));
        tool.args([&input, &output]).args(["--ratio", "0.5", "--criterion", "magnitude", "--no-verify", "--quiet"]);
        let (pruned, anonymous) = timed(&mut tool);
        if round > 0 {
            copies.push(copied);
            prunes.push(pruned);
            peak = peak.max(anonymous);
        }
    }
    let written = bytes(&output);
    let (copied, pruned) = (median(&mut copies), median(&mut prunes));
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    println!("| what | figure |\n|---|---|");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("| cores; load averages of 1 and 5 minutes before | {cores}; {load_before} |");
    println!("| load averages after | {} |", load());
    println!("| input, output | {:.2} GiB, {:.2} GiB |", gib(size), gib(written));
    println!("| cp, median of {repetitions} | {copied:.2} s |");
    println!(
        "| onnx-diffprune --ratio 0.5 --criterion magnitude --no-verify, median of {repetitions} | {pruned:.2} s |"
    );
    println!("| prune / cp | {:.2} (wanted: 1.5 at most) |", pruned / copied);
    println!("| anonymous memory, peak | {:.0} MiB |", peak as f64 / (1 << 20) as f64);
    println!("| anonymous memory / input | {:.3} (wanted: 0.2 at most) |", peak as f64 / size as f64);
}
