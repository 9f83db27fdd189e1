//! Networks in a download cache: `snapshots/REV/unet/model.onnx` and its data file are links into `blobs/`.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use onnx_diffprune::onnx::ModelProto;
use prost::Message;

use super::tool::{Ran, run, succeed};
use crate::support::external::externalised;
use crate::support::files::listing;
use crate::support::fixtures::fixture;
use crate::support::two_convolutions::two_convolutions;

/// A cache with one network, and an empty folder for outputs.
struct Cache {
    folder: tempfile::TempDir,
    output: tempfile::TempDir,
}

impl Cache {
    fn of(model: &ModelProto) -> Self {
        let cache = Self { folder: tempfile::tempdir().unwrap(), output: tempfile::tempdir().unwrap() };
        let (model, data) = externalised(model, "model.onnx_data");
        for folder in ["blobs", "snapshots/4c9a2b/unet", "outside"] {
            std::fs::create_dir_all(cache.path(folder)).unwrap();
        }
        std::fs::write(cache.path("blobs/8d7f"), model).unwrap();
        std::fs::write(cache.path("blobs/a2c1"), data).unwrap();
        symlink("../../../blobs/8d7f", cache.path("snapshots/4c9a2b/unet/model.onnx")).unwrap();
        symlink("../../../blobs/a2c1", cache.path("snapshots/4c9a2b/unet/model.onnx_data")).unwrap();
        cache
    }

    fn fixture(name: &str) -> Self {
        Self::of(&ModelProto::decode(std::fs::read(fixture(name)).unwrap().as_slice()).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn model(&self) -> String {
        self.path("snapshots/4c9a2b/unet/model.onnx").to_str().unwrap().to_owned()
    }

    fn out(&self, name: &str) -> String {
        self.output.path().join(name).to_str().unwrap().to_owned()
    }

    /// Returns the files of the cache with their contents. Follows links.
    fn content(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        for folder in ["blobs", "snapshots/4c9a2b/unet", "outside"] {
            for name in listing(&self.path(folder)) {
                let path = self.path(folder).join(name);
                let bytes = std::fs::read(&path).unwrap();
                found.push((path, bytes));
            }
        }
        found
    }
}

#[test]
fn every_command_accepts_a_network_of_a_cache() {
    let cache = Cache::of(&two_convolutions());
    let before = cache.content();
    let (model, output, plan, again) =
        (cache.model(), cache.out("out.onnx"), cache.out("out.plan.json"), cache.out("again.onnx"));
    assert!(succeed(&["inspect", &model]).out.contains("w1"));
    let pruned = succeed(&[&model, &output, "--ratio", "0.5", "--criterion", "magnitude", "--format", "json"]).json();
    assert_eq!(pruned["verification"]["passed"], true);
    assert!(pruned["latency_ms"]["before"].is_number(), "{pruned}");
    succeed(&["apply", &model, &plan, &again]);
    succeed(&["verify", &model, &again, "--plan", &plan]);
    succeed(&["artifacts", &model, &cache.out("train")]);
    // A copy of the network outside a cache is verified by the same plan.
    let plain = cache.out("plain.onnx");
    std::fs::copy(cache.path("blobs/8d7f"), &plain).unwrap();
    std::fs::copy(cache.path("blobs/a2c1"), cache.out("model.onnx_data")).unwrap();
    succeed(&["verify", &plain, &output]);
    assert!(cache.content() == before);
}

#[test]
fn a_pruned_network_of_a_cache_is_verified() {
    let cache = Cache::of(&two_convolutions());
    let (model, output) = (cache.model(), cache.out("out.onnx"));
    succeed(&[&model, &output, "--ratio", "0.5", "--criterion", "magnitude", "--no-verify"]);
    let pruned = ModelProto::decode(std::fs::read(&output).unwrap().as_slice()).unwrap();
    assert!(pruned.graph.is_some());
    let other = cache.path("snapshots/4c9a2b/pruned.onnx");
    std::fs::rename(&output, cache.path("blobs/77aa")).unwrap();
    std::fs::rename(cache.out("out.onnx.data"), cache.path("blobs/78bb")).unwrap();
    symlink("../../blobs/77aa", &other).unwrap();
    symlink("../../blobs/78bb", cache.path("snapshots/4c9a2b/out.onnx.data")).unwrap();
    succeed(&["verify", &model, other.to_str().unwrap(), "--plan", &cache.out("out.plan.json")]);
}

#[test]
fn networks_of_a_cache_are_differentiated_and_sampled() {
    let cache = Cache::fixture("dit_tiny.onnx");
    let before = cache.content();
    let (model, output, npy) = (cache.model(), cache.out("out.onnx"), cache.out("x.npy"));
    succeed(&["sample", &model, "--save-npy", &npy, "--count", "2", "--steps", "2"]);
    succeed(&["loss", &model, "--data", &npy, "--count", "2", "--timesteps", "2"]);
    let options = ["--ratio", "0.5", "--timesteps", "2", "--draw-steps", "2", "--format", "json"];
    let cut = succeed(&[&[model.as_str(), &output], &options[..]].concat()).json();
    assert_eq!((&cut["criterion"], &cut["verification"]["passed"]), (&"diff-pruning".into(), &true.into()));
    assert!(cache.content() == before);
}

/// Runs on a network of a cache after `change`, which must be refused because of the location of its data.
fn refused(change: impl FnOnce(&Cache)) -> Ran {
    let cache = Cache::of(&two_convolutions());
    change(&cache);
    let ran =
        run(&[&cache.model(), &cache.out("out.onnx"), "--ratio", "0.5", "--criterion", "magnitude", "--no-verify"]);
    assert_eq!(ran.code, 2, "{}{}", ran.out, ran.err);
    assert!(listing(cache.output.path()).is_empty());
    ran
}

fn relink(cache: &Cache, target: &str) {
    let link = cache.path("snapshots/4c9a2b/unet/model.onnx_data");
    std::fs::remove_file(&link).unwrap();
    symlink(target, link).unwrap();
}

#[test]
fn links_out_of_both_folders_are_refused() {
    let move_out = |cache: &Cache| std::fs::rename(cache.path("blobs/a2c1"), cache.path("outside/a2c1")).unwrap();
    let out = "leads out of the folder of the model";
    let ran = refused(|cache| {
        move_out(cache);
        relink(cache, "../../../outside/a2c1");
    });
    assert!(ran.err.contains(out), "{}", ran.err);
    // A link in the real folder of the model that leads further is followed to its end.
    let ran = refused(|cache| {
        move_out(cache);
        symlink("../outside/a2c1", cache.path("blobs/a2c1")).unwrap();
    });
    assert!(ran.err.contains(out), "{}", ran.err);
    // If the model is not a link, its data must be in its folder.
    let ran = refused(|cache| {
        let link = cache.path("snapshots/4c9a2b/unet/model.onnx");
        std::fs::remove_file(&link).unwrap();
        std::fs::copy(cache.path("blobs/8d7f"), link).unwrap();
    });
    assert!(ran.err.contains(out), "{}", ran.err);
    let ran = refused(|cache| relink(cache, "/etc/hostname"));
    assert!(ran.err.contains(out), "{}", ran.err);
    let ran = refused(|cache| relink(cache, "model.onnx_data"));
    assert!(ran.err.contains("can't be found"), "{}", ran.err);
    let ran = refused(|cache| relink(cache, "../../../blobs/gone"));
    assert!(ran.err.contains("can't be found"), "{}", ran.err);
    for location in ["../a2c1", "/etc/hostname", "../../../blobs/a2c1", "", ".."] {
        let ran = refused(|cache| {
            let (model, _) = externalised(&two_convolutions(), location);
            std::fs::write(cache.path("blobs/8d7f"), model).unwrap();
        });
        assert!(ran.err.contains("inside the folder of the model"), "{location}: {}", ran.err);
    }
}

#[test]
fn chains_of_links_and_links_of_folders_are_followed() {
    let cache = Cache::of(&two_convolutions());
    std::fs::create_dir(cache.path("mine")).unwrap();
    for name in ["model.onnx", "model.onnx_data"] {
        symlink(format!("../snapshots/4c9a2b/unet/{name}"), cache.path("mine").join(name)).unwrap();
    }
    symlink("snapshots/4c9a2b", cache.path("latest")).unwrap();
    for place in ["mine/model.onnx", "latest/unet/model.onnx", "snapshots/../mine/./model.onnx"] {
        let model = cache.path(place);
        let ran = run(&[model.to_str().unwrap(), &cache.out("out.onnx"), "--ratio", "0.5", "--criterion", "magnitude"]);
        assert_eq!(ran.code, 0, "{place}: {}", ran.err);
    }
    // With a path relative to the current folder.
    let ran = std::process::Command::new(env!("CARGO_BIN_EXE_onnx-diffprune"))
        .current_dir(cache.path("latest/unet"))
        .env("VIRTUAL_ENV", concat!(env!("CARGO_MANIFEST_DIR"), "/.venv"))
        .args(["model.onnx", &cache.out("here.onnx"), "--ratio", "0.5", "--criterion", "magnitude"])
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8(ran.stderr).unwrap());
    assert!(Path::new(&cache.out("here.onnx")).is_file());
}

#[test]
fn outputs_in_a_cache_replace_links_but_never_blobs() {
    let cache = Cache::of(&two_convolutions());
    let before = cache.content();
    // Files of the input, named by their links and by their blobs.
    let model = cache.model();
    for output in
        ["snapshots/4c9a2b/unet/model.onnx", "blobs/8d7f", "snapshots/4c9a2b/unet/model.onnx_data", "blobs/a2c1"]
    {
        let output = cache.path(output);
        let ran = run(&[&model, output.to_str().unwrap(), "--ratio", "0.5", "--criterion", "magnitude", "--no-verify"]);
        assert!(ran.code == 2 && ran.err.contains("would replace"), "{}", ran.err);
        assert!(cache.content() == before);
    }
    // Another revision, whose files are links into the same `blobs` folder.
    let other = cache.path("outside");
    std::fs::write(cache.path("blobs/0ld"), "an older model").unwrap();
    symlink("../blobs/0ld", other.join("model.onnx")).unwrap();
    succeed(&[&model, other.join("model.onnx").to_str().unwrap(), "--ratio", "0.5", "--criterion", "magnitude"]);
    assert_eq!(std::fs::read_to_string(cache.path("blobs/0ld")).unwrap(), "an older model");
    assert!(!other.join("model.onnx").is_symlink());
}
