//! Feature networks: how images are fed, and which features are returned.

use std::path::Path;

use ndarray::{Array2, ArrayD};
use onnx_diffprune::error::Error;
use onnx_diffprune::evaluate::{ChannelOrder, FeatureNetwork, FeatureOptions};
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{ModelProto, StringStringEntryProto, attr_int, attr_ints};
use onnx_diffprune::runtime::SessionOptions;

use crate::support::builder::{Builder, model_of, value_of};
use crate::support::files::save;
use crate::support::fixtures::{THREADS, runtime};

/// Builds a network that returns its image unchanged, and computes the doubled image as an inner value.
pub(super) fn network(image: &[&str], outputs: &[&str], elem_type: i32) -> ModelProto {
    let mut n = Builder::new(1);
    n.graph.input = vec![value_of("image", elem_type, Some(image))];
    let floats = n.op("Cast", &["image"], &[attr_int("to", 1)]);
    let two = n.float(2.0);
    n.graph.node.push(crate::support::builder::node("doubled", "Mul", &[&floats, &two], &["doubled"]));
    n.graph.node.push(crate::support::builder::node("map", "Identity", &[&floats], &["map"]));
    let pooled = n.op("GlobalAveragePool", &["map"], &[]);
    n.graph.node.push(onnx_diffprune::onnx::NodeProto {
        attribute: vec![attr_int("axis", 1)],
        ..crate::support::builder::node("pooled", "Flatten", &[&pooled], &["pooled"])
    });
    n.graph.output = outputs.iter().map(|name| value_of(name, 1, None)).collect();
    model_of(21, n.graph)
}

fn open(model: &ModelProto, options: &FeatureOptions, sample: &[usize]) -> Result<FeatureNetwork, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = save(folder.path(), model);
    let sessions = SessionOptions { threads: THREADS, ..SessionOptions::default() };
    FeatureNetwork::open(runtime(), &load(Path::new(&path))?, options, sample, &sessions)
}

fn features(network: &mut FeatureNetwork, dims: &[usize], values: &[f32]) -> Array2<f64> {
    let samples = ArrayD::from_shape_vec(dims.to_vec(), values.to_vec()).unwrap();
    network.features(&samples, (-1.0, 1.0), &mut |_, _| Ok(())).unwrap()
}

#[test]
fn images_are_fed_as_the_options_specify() {
    let options = FeatureOptions::default();
    let colour = network(&["N", "3", "2", "2"], &["map"], 1);
    // Grey images are copied to all channels. Values from -1 to 1 become 0 to 1 by way of bytes.
    let mut plain = open(&colour, &options, &[1, 2, 2]).unwrap();
    let (summary, pooling) = (plain.summary().clone(), Some("mean over axes 2 and 3".to_owned()));
    assert_eq!((summary.width, summary.pooling, summary.size), (3, pooling, (2, 2)));
    assert!(summary.name == "net" && summary.assumed.len() == 2, "{:?}", summary.assumed);
    let found = features(&mut plain, &[2, 1, 2, 2], &[-1.0, -1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 5.0]);
    assert_eq!(found, ndarray::array![[0.5, 0.5, 0.5], [1.0, 1.0, 1.0]]);
    // In the network's channel order, range and scale.
    let options = FeatureOptions {
        range: Some((0.0, 255.0)),
        mean: Some(vec![10.0, 20.0, 30.0]),
        deviation: Some(vec![5.0]),
        order: Some(ChannelOrder::Bgr),
        ..FeatureOptions::default()
    };
    let mut scaled = open(&colour, &options, &[3, 2, 2]).unwrap();
    let sample: Vec<f32> = [1.0, 0.0, -1.0].iter().flat_map(|value| [*value; 4]).collect();
    let found = features(&mut scaled, &[1, 3, 2, 2], &sample);
    let expected = [(0.0 - 10.0) / 5.0, (128.0 - 20.0) / 5.0, (255.0 - 30.0) / 5.0];
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found} {expected:?}");
}

#[test]
fn a_fixed_batch_is_padded_and_an_inner_value_can_be_the_feature() {
    let mut options = FeatureOptions { output: Some("doubled".to_owned()), ..FeatureOptions::default() };
    // Bytes, channels last, in batches of two. The samples have half the height and width.
    let model = network(&["2", "4", "4", "3"], &["map", "pooled"], 2);
    let mut inner = open(&model, &options, &[3, 2, 2]).unwrap();
    assert_eq!(inner.summary().range, (0.0, 255.0));
    let values: Vec<f32> = [0.0, 1.0, -1.0].iter().flat_map(|value| [*value; 12]).collect();
    let found = features(&mut inner, &[3, 3, 2, 2], &values);
    assert_eq!(found, ndarray::array![[256.0, 256.0, 256.0], [510.0, 510.0, 510.0], [0.0, 0.0, 0.0]]);
    let refused = open(&model, &FeatureOptions::default(), &[3, 2, 2]).unwrap_err();
    assert!(refused.to_string().contains("map") && refused.to_string().contains("pooled"), "{refused}");
    options.output = Some("elsewhere".to_owned());
    let refused = open(&model, &options, &[3, 2, 2]).unwrap_err();
    assert!(refused.to_string().contains("\"elsewhere\""), "{refused}");
}

#[test]
fn metadata_describes_the_pixels() {
    let mut model = network(&["N", "3", "2", "2"], &["pooled"], 1);
    let entry = |key: &str, value: &str| StringStringEntryProto { key: key.to_owned(), value: value.to_owned() };
    model.metadata_props =
        vec![entry("Image.NominalPixelRange", "Normalized_1_1"), entry("Image.BitmapPixelFormat", "Bgr8")];
    let mut network = open(&model, &FeatureOptions::default(), &[3, 2, 2]).unwrap();
    assert_eq!((network.summary().range, network.summary().order), ((-1.0, 1.0), ChannelOrder::Bgr));
    let sample: Vec<f32> = [1.0, -1.0, -1.0].iter().flat_map(|value| [*value; 4]).collect();
    assert_eq!(features(&mut network, &[1, 3, 2, 2], &sample), ndarray::array![[-1.0, -1.0, 1.0]]);
}

#[test]
fn unsuitable_feature_networks_are_refused() {
    let model = network(&["N", "3", "2", "2"], &["pooled"], 1);
    let refused = |change: &dyn Fn(&mut FeatureOptions), sample: &[usize]| {
        let mut options = FeatureOptions::default();
        change(&mut options);
        open(&model, &options, sample).unwrap_err().to_string()
    };
    assert!(refused(&|_| {}, &[4, 2, 2]).contains("--features:"));
    assert!(refused(&|options| options.range = Some((1.0, 0.0)), &[1, 2, 2]).contains("--features-range"));
    assert!(refused(&|options| options.mean = Some(vec![1.0; 2]), &[1, 2, 2]).contains("--features-mean"));
    assert!(refused(&|options| options.deviation = Some(vec![0.0]), &[1, 2, 2]).contains("--features-std"));
    let mut flat = network(&["N", "3", "2", "2"], &["pooled"], 1);
    let sum = onnx_diffprune::onnx::NodeProto {
        attribute: vec![attr_ints("axes", &[0, 1]), attr_int("keepdims", 0)],
        ..crate::support::builder::node("all", "ReduceL2", &["pooled"], &["all"])
    };
    let graph = flat.graph.as_mut().unwrap();
    graph.node.push(sum);
    graph.output = vec![value_of("all", 1, None)];
    flat.opset_import[0].version = 17;
    let refused = open(&flat, &FeatureOptions::default(), &[1, 2, 2]).unwrap_err().to_string();
    assert!(refused.contains("output \"all\""), "{refused}");
}
