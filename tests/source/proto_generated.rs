//! The types of `src/onnx/generated.rs` and `src/metrics/generated.rs` are what prost makes of the files in `proto`.

use std::path::Path;

/// Schemas, and where their types stand.
const GENERATED: [(&str, &str); 2] = [("onnx", "src/onnx/generated.rs"), ("tensorboard", "src/metrics/generated.rs")];

#[test]
fn generated_types_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, place) in GENERATED {
        let schema = root.join("proto").join(name).with_extension("proto");
        let descriptors = protox::compile([schema], [root.join("proto")]).expect("the schema compiles");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = prost_build::Config::new();
        config.bytes(["."]).out_dir(folder.path()).format(true);
        config.compile_fds(descriptors).expect("prost generates");
        let fresh = std::fs::read_to_string(folder.path().join(name).with_extension("rs")).expect("the generated file");
        let path = root.join(place);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &fresh).expect("src is writable");
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == fresh, "{place} is stale; run: UPDATE=1 cargo test --test source");
    }
}
