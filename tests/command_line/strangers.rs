//! Files from elsewhere: unknown operators, operator sets that are not imported, names with control sequences for a
//! terminal, layouts for one kind of CPU.

use std::path::{Path, PathBuf};

use onnx_diffprune::array::{Array, ElementType};
use onnx_diffprune::onnx::{ModelProto, NodeProto, attr_int, attr_ints};

use super::tool::{Ran, run, succeed};
use crate::support::builder::{Builder, node, value};
use crate::support::files::{listing, save};

/// Builds two convolutions, the nodes of `between` on their output, and two more convolutions.
fn network(between: impl FnOnce(&mut Builder, &str) -> String) -> ModelProto {
    let mut net = Builder::with_opset(17, 5);
    let h = net.conv("x", 4, 16, 1, 1);
    let h = between(&mut net, &h);
    let h = net.conv(&h, 16, 12, 1, 1);
    let h = net.op("Relu", &[&h], &[]);
    let y = net.conv(&h, 12, 4, 1, 1);
    net.finish(&[1, 4, 6, 6], &y, &[1, 4, 6, 6])
}

/// Appends a node of another domain.
fn of_domain(net: &mut Builder, domain: &str, op: &str, x: &str) -> String {
    let y = net.op(op, &[x], &[]);
    domain.clone_into(&mut net.graph.node.last_mut().unwrap().domain);
    y
}

/// Prunes a network by magnitude.
fn prune(folder: &Path, model: &ModelProto, more: &[&str]) -> (Ran, PathBuf) {
    let (input, output) = (save(folder, model), folder.join("out.onnx"));
    let arguments = [input.to_str().unwrap(), output.to_str().unwrap(), "--ratio", "0.5", "--criterion", "magnitude"];
    (run(&[&arguments[..], more].concat()), output)
}

#[test]
fn an_operator_unknown_to_onnx_runtime_is_named_and_nothing_is_written() {
    for (domain, op) in [("", "GroupNormPlugin"), ("trt.plugins", "GroupNorm"), ("ai.onnx", "Convolve")] {
        let folder = tempfile::tempdir().unwrap();
        let mut model = network(|net, x| of_domain(net, domain, op, x));
        for imported in [true, false] {
            if imported {
                let domain = domain.to_owned();
                let import = onnx_diffprune::onnx::OperatorSetIdProto { domain, version: 1 };
                if !["", "ai.onnx"].contains(&import.domain.as_str()) {
                    model.opset_import.push(import);
                }
            } else {
                model.opset_import.truncate(1);
            }
            let (ran, output) = prune(folder.path(), &model, &[]);
            assert_eq!(ran.code, 1, "{domain}.{op}: {}", ran.err);
            assert!(ran.err.contains("ONNX Runtime"), "{}", ran.err);
            assert!(ran.err.contains(op) && ran.err.contains("hint: --no-verify"), "{}", ran.err);
            assert_eq!(listing(folder.path()), ["net.onnx"]);
            let (ran, _) = prune(folder.path(), &model, &["--no-verify"]);
            assert_eq!(ran.code, 0, "{domain}.{op}: {}", ran.err);
            assert!(output.exists() && ran.err.contains(op), "{}", ran.err);
            let plan = folder.path().join("out.plan.json");
            let [input, plan, output, again] =
                [folder.path().join("net.onnx"), plan, output, folder.path().join("b.onnx")]
                    .map(|path| path.to_str().unwrap().to_owned());
            for command in [&["verify", &input, &output][..], &["apply", &input, &plan, &again]] {
                let ran = run(command);
                assert_eq!(ran.code, 1, "{command:?}: {}", ran.err);
                assert!(ran.err.contains("ONNX Runtime") && ran.err.contains(op), "{}", ran.err);
            }
            assert!(!Path::new(&again).exists());
            succeed(&["apply", &input, &plan, &again, "--no-verify"]);
            [output, plan, again].iter().for_each(|path| std::fs::remove_file(path).unwrap());
        }
    }
}

#[test]
fn commands_that_run_the_network_name_the_missing_operator() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = network(|net, x| of_domain(net, "", "Plugin", x));
    model.graph.as_mut().unwrap().input.push(value("timestep", &[1]));
    let input = save(folder.path(), &model);
    let input = input.to_str().unwrap();
    let [data, npy, output] =
        ["data.npz", "x.npy", "out.onnx"].map(|name| folder.path().join(name).to_str().unwrap().to_owned());
    let array =
        onnx_diffprune::array::Array::from_f64(onnx_diffprune::array::ElementType::F32, vec![1, 4, 6, 6], &[0.1; 144]);
    onnx_diffprune::npz::write(Path::new(&data), [("x", &array.unwrap())]).unwrap();
    for command in [
        &["loss", input, "--data", &data, "--count", "1", "--timesteps", "2"][..],
        &["sample", input, "--save-npy", &npy, "--count", "1", "--steps", "2"],
        &[input, &output, "--ratio", "0.5", "--data", &data, "--batch", "1", "--timesteps", "2"],
    ] {
        let ran = run(command);
        assert_eq!(ran.code, 1, "{command:?}: {}", ran.err);
        assert!(ran.err.contains("Plugin") && ran.err.contains("magnitude"), "{command:?}: {}", ran.err);
    }
    assert_eq!(listing(folder.path()), ["data.npz", "net.onnx"]);
}

#[test]
fn an_operator_set_of_onnx_runtime_need_not_be_imported() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = network(|net, x| of_domain(net, "com.microsoft", "QuickGelu", x));
    model.opset_import.retain(|import| import.domain.is_empty());
    let (ran, output) = prune(folder.path(), &model, &["--format", "json"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(ran.json()["verification"]["passed"], true);
    assert_eq!(ran.err.matches("without importing its operator set").count(), 1, "{}", ran.err);
    assert!(ran.json()["warnings"].to_string().contains("com.microsoft"));
    let written = crate::support::files::decoded(&output);
    assert!(written.opset_import.iter().any(|import| import.domain == "com.microsoft" && import.version == 1));
    let inspected = run(&["inspect", folder.path().join("net.onnx").to_str().unwrap()]);
    assert!(inspected.code == 0 && inspected.err.contains("without importing its operator set"), "{}", inspected.err);
    // The meaning of standard operators depends on the version of their operator set.
    model.opset_import.clear();
    model
        .opset_import
        .push(onnx_diffprune::onnx::OperatorSetIdProto { domain: "com.microsoft".to_owned(), version: 1 });
    let (ran, _) = prune(folder.path(), &model, &[]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("standard operator set") && ran.err.contains("hint: "), "{}", ran.err);
}

#[test]
fn nchwc_operators_are_counted_and_warned_about_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let model = network(|net, x| {
        let mut h = x.to_owned();
        for _ in 0..5 {
            h = of_domain(net, "com.microsoft.nchwc", "ReorderInput", &h);
            let w = net.layer_weight(&[16, 16, 1, 1], 16);
            h = net.op("Conv", &[&h, &w], &[attr_ints("kernel_shape", &[1, 1])]);
            net.graph.node.last_mut().unwrap().domain = "com.microsoft.nchwc".to_owned();
        }
        of_domain(net, "com.microsoft.nchwc", "ReorderOutput", &h)
    });
    let (ran, _) = prune(folder.path(), &model, &["--no-verify"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let warnings: Vec<&str> = ran.err.lines().filter(|line| line.starts_with("warning: ")).collect();
    let count = |text: &str| warnings.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count("ORT_ENABLE_EXTENDED"), 1, "{}", ran.err);
    assert_eq!(count("5 nodes (com.microsoft.nchwc.Conv)"), 1, "{}", ran.err);
    assert_eq!(count("5 nodes (com.microsoft.nchwc.ReorderInput)"), 1, "{}", ran.err);
    assert_eq!(count("node \"ReorderOutput_11\" (com.microsoft.nchwc.ReorderOutput)"), 1, "{}", ran.err);
    // The advice, one line for each operator, and the warning about the missing import.
    assert!(warnings.len() <= 6, "{}", ran.err);
}

#[test]
fn the_message_that_nothing_can_be_pruned_names_a_barrier() {
    let folder = tempfile::tempdir().unwrap();
    let mut net = Builder::with_opset(17, 5);
    let h = net.conv("x", 4, 16, 1, 1);
    let h = of_domain(&mut net, "", "Plugin", &h);
    let h = of_domain(&mut net, "", "Relu", &h);
    let y = net.conv(&h, 16, 4, 1, 1);
    let model = net.finish(&[1, 4, 6, 6], &y, &[1, 4, 6, 6]);
    let (ran, _) = prune(folder.path(), &model, &[]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    let example = "node \"Plugin_1\" (Plugin)";
    assert!(ran.err.contains("nothing can be pruned") && ran.err.contains(example), "{}", ran.err);
    // Without a barrier, the example is a layer's channels, not those of the input.
    let mut net = Builder::with_opset(17, 5);
    let y = net.conv("x", 4, 16, 1, 1);
    let model = net.finish(&[1, 4, 6, 6], &y, &[1, 16, 6, 6]);
    let (ran, _) = prune(folder.path(), &model, &[]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("an output of the network") && !ran.err.contains("input of the network"), "{}", ran.err);
}

/// A name that clears the screen, rings the bell, sets the window title, breaks the line and reverses the text
/// direction.
const HOSTILE: &str = "w\u{1b}[2J\u{7}\u{1b}]0;owned\u{7}\u{9b}31m\r\nwarning: all is well\u{202e}";

/// Returns whether a text has control characters other than line breaks.
fn is_obeyed(text: &str) -> bool {
    text.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{202e}'))
}

#[test]
fn control_characters_in_names_are_escaped_on_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = network(|net, x| of_domain(net, "", HOSTILE, x));
    let graph = model.graph.as_mut().unwrap();
    // Renames every value and node, and every reference to them.
    let rename = |name: &mut String| *name = format!("{HOSTILE}{name}");
    graph.initializer.iter_mut().for_each(|tensor| rename(&mut tensor.name));
    graph.input.iter_mut().chain(&mut graph.output).for_each(|value| rename(&mut value.name));
    let rename_node = |node: &mut NodeProto| {
        rename(&mut node.name);
        node.input.iter_mut().chain(&mut node.output).for_each(rename);
    };
    graph.node.iter_mut().for_each(rename_node);
    let input = save(folder.path(), &model);
    let input = input.to_str().unwrap();
    let output = folder.path().join("out.onnx");
    let output = output.to_str().unwrap();
    let prune = [input, output, "--ratio", "0.5", "--criterion", "magnitude"];
    let commands: [(&[&str], i32); 8] = [
        (&prune, 1),
        (&[&prune[..], &["--no-verify"]].concat(), 0),
        (&[&prune[..], &["--no-verify", "--format", "json"]].concat(), 0),
        (&[input, output, "--ratio", "0.5"], 2),
        (&["inspect", input, "--members"], 0),
        (&["inspect", input, "--dot"], 0),
        (&["inspect", input, "--format", "json"], 0),
        (&["verify", input, output], 1),
    ];
    for (command, code) in commands {
        let ran = run(command);
        assert_eq!(ran.code, code, "{command:?}: {}", ran.err);
        assert!(!is_obeyed(&ran.out), "{command:?}: {:?}", ran.out);
        assert!(!is_obeyed(&ran.err), "{command:?}: {:?}", ran.err);
        let forged = |text: &str| text.lines().any(|line| line.starts_with("warning: all is well"));
        assert!(!forged(&ran.err) && !forged(&ran.out), "{command:?}: {}{}", ran.err, ran.out);
        if command.contains(&"json") {
            assert!(ran.json().to_string().contains("owned"));
        }
    }
    // JSON contains the names of the file.
    let inspected = succeed(&["inspect", input, "--format", "json"]).json();
    assert!(
        inspected["groups"]
            .as_array()
            .unwrap()
            .iter()
            .any(|group| { group["name"].as_str().is_some_and(|name| name.starts_with(HOSTILE)) })
    );
    // The message about a refused file contains names too.
    let mut broken = model.clone();
    broken.graph.as_mut().unwrap().node.push(node(HOSTILE, "Relu", &[HOSTILE], &["lost"]));
    let broken = save(folder.path(), &broken);
    let ran = run(&["inspect", broken.to_str().unwrap()]);
    assert!(ran.code == 2 && !is_obeyed(&ran.err), "{:?}", ran.err);
}

/// Builds a network as ONNX Runtime's optimizer for U-Nets writes it: channels last, in float16, with float32 inputs
/// and outputs. ONNX Runtime has no CPU kernel for NhwcConv.
fn channels_last_in_half_precision() -> ModelProto {
    let mut net = Builder::with_opset(17, 5);
    let half = [attr_int("to", 10)];
    let h = net.op("Cast", &["x"], &half);
    let h = net.op("Transpose", &[&h], &[attr_ints("perm", &[0, 2, 3, 1])]);
    let pads = [attr_ints("kernel_shape", &[3, 3]), attr_ints("pads", &[1; 4])];
    let (w, b) = (net.layer_weight(&[16, 3, 3, 3], 27), net.bias(16));
    let h = net.fused("NhwcConv", &[&h, &w, &b], &pads, 1).remove(0);
    let h = net.op("Sigmoid", &[&h], &[]);
    let w = net.layer_weight(&[3, 3, 3, 16], 144);
    let h = net.fused("NhwcConv", &[&h, &w], &pads, 1).remove(0);
    let h = net.op("Transpose", &[&h], &[attr_ints("perm", &[0, 3, 1, 2])]);
    let y = net.op("Cast", &[&h], &[attr_int("to", 1)]);
    for tensor in &mut net.graph.initializer {
        let floats = tensor.raw_data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let halves: Vec<u8> = floats.flat_map(|value| half::f16::from_f32(value).to_le_bytes()).collect();
        (tensor.data_type, tensor.raw_data) = (10, halves.into());
    }
    let mut model = net.finish(&[2, 3, 8, 8], &y, &[2, 3, 8, 8]);
    model.graph.as_mut().unwrap().input.push(value("timestep", &[2]));
    model
}

#[test]
fn every_command_runs_nodes_without_a_cpu_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let input = save(folder.path(), &channels_last_in_half_precision());
    let [input, data, npy, output] = [input, "data.npz".into(), "x.npy".into(), "out.onnx".into()]
        .map(|name: PathBuf| folder.path().join(name).to_str().unwrap().to_owned());
    let values: Vec<f64> = (0..2 * 3 * 64).map(|at| (f64::from(at) * 0.7).sin()).collect();
    let array = Array::from_f64(ElementType::F32, vec![2, 3, 8, 8], &values).unwrap();
    onnx_diffprune::npz::write(Path::new(&data), [("x", &array)]).unwrap();
    for model in [&input, &output] {
        // The default criterion generates samples with the network.
        if model == &input {
            let json = succeed(&[
                &input,
                &output,
                "--ratio",
                "0.5",
                "--timesteps",
                "2",
                "--draw-steps",
                "2",
                "--format",
                "json",
            ])
            .json();
            assert_eq!(json["verification"]["passed"], true);
            assert_eq!(json["criterion"], "diff-pruning");
            assert!(json["latency_ms"]["after"].as_f64().is_some_and(|ms| ms > 0.0));
        }
        succeed(&["loss", model, "--data", &data, "--count", "2", "--timesteps", "2"]);
        succeed(&["sample", model, "--save-npy", &npy, "--count", "2", "--steps", "2"]);
    }
}
