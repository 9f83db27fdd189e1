//! Weights streamed into the output: from memory, raw files and safetensors files.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use half::bf16;
use onnx_diffprune::load::{from_bytes, load};
use onnx_diffprune::onnx::{DataLocation, DataType, GraphProto, TensorProto, attr_tensor};
use onnx_diffprune::write::{FileWeight, MemoryWeight, WeightSource, safetensors_weights, write};
use prost::Message;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use crate::support::builder::{counting, model_of, node, value};
use crate::support::files::{listing, save};
use crate::support::two_convolutions::{halved, no_edits, two_convolutions};

fn bytes_of(path: &Path, name: &str) -> (Vec<i64>, DataType, Vec<u8>) {
    let model = load(path).unwrap();
    let tensor = model.graph().initializer.iter().find(|tensor| tensor.name == name).unwrap();
    (tensor.dims.clone(), tensor.element_type(), model.tensor_bytes(tensor).unwrap().into_owned())
}

#[test]
fn sliced_weights_are_streamed_from_safetensors_and_raw_files() {
    let folder = tempfile::tempdir().unwrap();
    let floats: Vec<u8> = (0..8 * 4 * 9).flat_map(|at| (0.5 * at as f32).to_le_bytes()).collect();
    let doubles: Vec<u8> = (0..8).flat_map(|at| (0.1 * f64::from(at)).to_le_bytes()).collect();
    let trained = folder.path().join("trained.safetensors");
    let views = [
        ("b1", TensorView::new(Dtype::F64, vec![8], &doubles).unwrap()),
        ("w1", TensorView::new(Dtype::F32, vec![8, 4, 3, 3], &floats).unwrap()),
    ];
    serialize_to_file(views, None, &trained).unwrap();
    let spilled = folder.path().join("spill.raw");
    std::fs::write(&spilled, [&[1, 2, 3][..], &floats].concat()).unwrap();

    let model = load(&save(folder.path(), &two_convolutions())).unwrap();
    let mut edits = halved(&model);
    let weights = safetensors_weights(&trained).unwrap();
    edits.stream(&model, "w1", Arc::new(weights["w1"].clone())).unwrap();
    edits.stream(&model, "b1", Arc::new(weights["b1"].clone())).unwrap();
    let raw = FileWeight::new(&spilled, 3, floats.len() as u64, DataType::Float, &[4, 8, 3, 3]);
    edits.stream(&model, "w2", Arc::new(raw)).unwrap();
    let out = folder.path().join("out.onnx");
    write(&model, &edits, &out).unwrap();
    assert_eq!(bytes_of(&out, "w1"), (vec![8, 4, 3, 3], DataType::Float, floats.clone()));
    let narrow: Vec<u8> = (0..8).flat_map(|at| ((0.1 * f64::from(at)) as f32).to_le_bytes()).collect();
    assert_eq!(bytes_of(&out, "b1"), (vec![8], DataType::Float, narrow));
    assert_eq!(bytes_of(&out, "w2"), (vec![4, 8, 3, 3], DataType::Float, floats));

    // The file is read during the write. It has been truncated by then.
    std::fs::write(&spilled, [0; 100]).unwrap();
    let refused = write(&model, &edits, &folder.path().join("short.onnx")).unwrap_err().to_string();
    assert!(refused.contains("spill.raw") && refused.contains("1152 bytes"), "{refused}");
    assert_eq!(listing(folder.path()), ["net.onnx", "out.onnx", "spill.raw", "trained.safetensors"]);
}

#[test]
fn streamed_weights_are_written_to_external_data_with_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut proto = two_convolutions();
    std::fs::write(folder.path().join("w2.bin"), counting("w2", &[4, 16, 3, 3]).raw_data).unwrap();
    let graph = proto.graph.as_mut().unwrap();
    graph.initializer[2].raw_data.clear();
    graph.initializer[2].data_location = DataLocation::External as i32;
    graph.initializer[2].external_data =
        vec![onnx_diffprune::onnx::StringStringEntryProto { key: "location".to_owned(), value: "w2.bin".to_owned() }];
    let model = load(&save(folder.path(), &proto)).unwrap();
    let mut edits = no_edits(&model);
    let values: Vec<f32> = (0..16 * 4 * 9).map(|at| -(at as f32)).collect();
    edits.stream(&model, "w1", Arc::new(MemoryWeight::of_floats(&[16, 4, 3, 3], &values))).unwrap();
    let out = folder.path().join("out.onnx");
    let report = write(&model, &edits, &out).unwrap();
    assert!(report.external.is_some());
    let written = load(&out).unwrap();
    let tensor = &written.graph().initializer[0];
    assert_eq!((tensor.name.as_str(), tensor.data_location), ("w1", DataLocation::External as i32));
    assert_eq!(bytes_of(&out, "w1").2, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    assert_eq!(bytes_of(&out, "w2").2, counting("w2", &[4, 16, 3, 3]).raw_data);
}

#[test]
fn a_constant_node_is_replaced_by_a_streamed_weight() {
    let mut constant = node("c", "Constant", &[], &["w"]);
    let half = TensorProto {
        data_type: DataType::Bfloat16 as i32,
        dims: vec![2],
        raw_data: vec![0; 4].into(),
        ..TensorProto::default()
    };
    constant.attribute = vec![attr_tensor("value", half)];
    let graph = GraphProto {
        node: vec![constant, node("cast", "Cast", &["w"], &["y"])],
        output: vec![value("y", &[2])],
        ..GraphProto::default()
    };
    let bytes = model_of(17, graph).encode_to_vec();
    let model = from_bytes(Path::new("net.onnx"), bytes.into()).unwrap();
    let mut edits = no_edits(&model);
    edits.stream(&model, "w", Arc::new(MemoryWeight::of_doubles(&[2], &[1.5, -3.0]))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    write(&model, &edits, &out).unwrap();
    let expected = [1.5, -3.0].map(|value| bf16::from_f32(value).to_le_bytes()).concat();
    assert_eq!(bytes_of(&out, "w"), (vec![2], DataType::Bfloat16, expected));
    assert_eq!(load(&out).unwrap().graph().node.len(), 1);
    let refused = edits.stream(&model, "no such", Arc::new(MemoryWeight::of_doubles(&[2], &[1.5, -3.0])));
    assert!(refused.unwrap_err().to_string().contains("\"no such\""));
}

/// Returns the memory that this process uses, which only Linux reports.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    1024 * line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap()
}

/// A source that measures the memory in use after every write.
#[derive(Debug)]
struct Watched {
    source: FileWeight,
    most: Mutex<u64>,
}

impl WeightSource for Watched {
    fn data_type(&self) -> DataType {
        self.source.data_type()
    }

    fn dims(&self) -> &[i64] {
        self.source.dims()
    }

    fn origin(&self) -> String {
        self.source.origin()
    }

    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        struct Out<'o>(&'o mut dyn Write, &'o Mutex<u64>);
        impl Write for Out<'_> {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let mut most = self.1.lock().unwrap();
                *most = memory().max(*most);
                self.0.write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                self.0.flush()
            }
        }
        self.source.write(&mut Out(out, &self.most))
    }
}

#[test]
fn a_large_weight_is_never_in_memory_as_a_whole() {
    const LENGTH: u64 = 256 << 20;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let spilled = folder.path().join("spill.raw");
    // A file of zeros that takes no space on the disk.
    std::fs::File::create(&spilled).unwrap().set_len(LENGTH).unwrap();
    let model = load(&save(folder.path(), &two_convolutions())).unwrap();
    let mut edits = no_edits(&model);
    let dims = [LENGTH as i64 / 8];
    let source = FileWeight::new(&spilled, 0, LENGTH, DataType::Double, &dims);
    let watched = Arc::new(Watched { source, most: Mutex::default() });
    let streamed = onnx_diffprune::write::Streamed {
        index: None,
        name: "large".to_owned(),
        data_type: DataType::Float,
        dims: dims.to_vec(),
        source: watched.clone(),
    };
    edits.add_initializer(&model, streamed).unwrap();
    let before = memory();
    let report = write(&model, &edits, &folder.path().join("out.onnx")).unwrap();
    assert!(report.bytes > LENGTH / 2);
    let more = watched.most.lock().unwrap().saturating_sub(before);
    println!("{LENGTH} bytes streamed with {more} bytes more in memory than before");
    // Other tests of this program allocate memory at the same time.
    assert!(more < LENGTH / 4, "{more} bytes");
}
