//! `src/onnx/generated.rs` is what prost makes of `proto/onnx.proto`.

use std::path::Path;

#[test]
fn generated_types_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors =
        protox::compile([root.join("proto/onnx.proto")], [root.join("proto")]).expect("the schema compiles");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = prost_build::Config::new();
    config.bytes(["."]).out_dir(folder.path()).format(true);
    config.compile_fds(descriptors).expect("prost generates");
    let fresh = std::fs::read_to_string(folder.path().join("onnx.rs")).expect("the generated file");
    let path = root.join("src/onnx/generated.rs");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &fresh).expect("src/onnx is writable");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == fresh, "stale; run: UPDATE=1 cargo test --test source");
}
