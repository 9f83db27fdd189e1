//! The pages of `--report`.

use std::fs;
use std::path::Path;

use onnx_protobuf::Message;
use serde_json::Value;

use super::page::{Page, page};
use super::tool::succeed;
use crate::support::builder::Builder;
use crate::support::files::{decoded, save};
use crate::support::fixtures::fixture;

/// Prunes a network by magnitude, without a diffusion process. Returns the JSON and the page of the run.
fn cut(model: &Path, folder: &Path, more: &[&str]) -> (Value, Page) {
    let (output, report) = (folder.join("out.onnx"), folder.join("report.html"));
    let files = [model.to_str().unwrap(), output.to_str().unwrap(), "--report", report.to_str().unwrap()];
    let options = ["--ratio", "0.5", "--criterion", "magnitude", "--format", "json"];
    let json = succeed(&[&files[..], &options[..], more].concat()).json();
    (json, page(&report))
}

/// Asserts that the page has the numbers of the run.
fn agrees(json: &Value, page: &Page) {
    let groups = json["groups"].as_array().unwrap();
    for group in groups {
        let (name, kept) = (group["name"].as_str().unwrap(), format!("{} of {}", group["kept"], group["channels"]));
        assert!(
            page.text.contains(&format!("{name} {kept} channel"))
                || page.text.contains(&format!("{kept} head"))
                || page.text.contains(name) && group["reason"].is_string(),
            "{name}: {kept}"
        );
    }
    let pruned = groups.iter().filter(|group| group["kept"].as_u64() < group["channels"].as_u64()).count();
    assert!(page.text.contains(&format!("{pruned} of {} channel groups pruned", groups.len())));
    let millions = |cost: &Value| format!("{:.2} M", cost["macs"].as_f64().unwrap() / 1e6);
    for side in ["before", "after"] {
        assert!(page.text.contains(&millions(&json[side])), "{side}: {}", millions(&json[side]));
    }
}

#[test]
fn a_page_has_the_numbers_of_its_run_and_explains_missing_samples() {
    let folder = tempfile::tempdir().unwrap();
    let (json, page) = cut(&fixture("ddpm_fashion16.onnx"), folder.path(), &[]);
    agrees(&json, &page);
    assert!(page.text.contains("No samples: no noise schedule is given or found"), "{}", page.text);
    assert_eq!(page.html.matches("<img").count(), 0);
    assert!(page.text.contains("pruned verified 47 of 47"), "{}", page.text);
    assert!(page.html.contains("30 blocks at 4 levels, 9 skip connections"));
    for fact in ["MACs and latency by block", "down_blocks.1.attentions.0", "BLAKE3", "ONNX Runtime", " UTC"] {
        assert!(page.text.contains(fact), "{fact}");
    }
    let date = std::process::Command::new("date").args(["-u", "+%Y-%m-%d"]).output().unwrap();
    assert!(page.text.contains(String::from_utf8(date.stdout).unwrap().trim()));
}

#[test]
fn samples_of_a_bare_cut_are_shown_beside_those_of_the_original() {
    let folder = tempfile::tempdir().unwrap();
    let (schedule, data) =
        (fixture("dit_fashion16/scheduler_config.json"), fixture("dit_fashion16/heldout_images.npy"));
    let more = ["--no-refit", "--scheduler-config", schedule.to_str().unwrap(), "--data", data.to_str().unwrap()];
    let (json, page) = cut(&fixture("dit_fashion16.onnx"), folder.path(), &more);
    agrees(&json, &page);
    assert_eq!(page.html.matches("data:image/png;base64,").count(), 2);
    assert!(page.text.contains("The cut was not refitted") && page.text.contains("Loss by timestep"));
    assert!(page.text.contains("4 → 2 heads of 32") && page.text.contains("2 of 4 heads"), "{}", page.text);
}

#[test]
fn names_in_a_model_are_escaped() {
    let evil = "</title><script>alert(1)</script>\"'&\u{202e}\u{1b}[2J/<img src=x onerror=alert(1)>/conv.weight";
    let mut model = decoded(&fixture("ddpm_fashion16.onnx"));
    let graph = model.graph.as_mut().unwrap();
    for node in &mut graph.node {
        node.name = format!("/<b>'{}", node.name);
        node.input.iter_mut().filter(|input| *input == "conv_in.weight").for_each(|input| *input = evil.to_owned());
    }
    let weight = graph.initializer.iter_mut().find(|tensor| tensor.name == "conv_in.weight").unwrap();
    weight.name = evil.to_owned();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("<i>&'.onnx");
    fs::write(&path, model.write_to_bytes().unwrap()).unwrap();
    let (json, page) = cut(&path, folder.path(), &["--no-latency"]);
    assert!(json["groups"].as_array().unwrap().iter().any(|group| group["name"] == evil));
    // The checks of `page` have found only the page's tags.
    assert!(page.html.contains("&lt;script&gt;"));
    assert!(
        !page.html.contains("onerror=alert(1)>") && !page.html.contains('\u{202e}') && !page.html.contains('\u{1b}')
    );
    assert!(page.html.contains("<title>&lt;i&gt;&amp;&#39;.onnx pruned</title>"));
}

#[test]
fn hundreds_of_groups_are_folded_and_the_page_is_small() {
    let mut net = Builder::new(3);
    let mut value = net.conv("x", 3, 8, 3, 1);
    for _ in 0..300 {
        value = net.conv(&value, 8, 8, 3, 1);
        value = net.silu(&value);
    }
    let last = net.conv(&value, 8, 3, 3, 1);
    let model = net.finish(&[1, 3, 8, 8], &last, &[1, 3, 8, 8]);
    let folder = tempfile::tempdir().unwrap();
    let path = save(folder.path(), &model);
    let (json, page) = cut(&path, folder.path(), &["--no-verify"]);
    agrees(&json, &page);
    assert!(json["groups"].as_array().unwrap().len() > 300);
    assert!(page.html.len() < 1_000_000, "{} bytes", page.html.len());
    let folded = page.html.matches("<details").count();
    assert!(folded > 40 && !page.html.contains("open='open'"), "{folded}");
    assert!(page.text.contains("not verified") && page.text.contains("names in the file show no blocks"));
}

#[test]
fn fine_tuning_writes_a_page_with_teacher_network_and_result() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (original, schedule) = (fixture("ddpm_fashion16.onnx"), fixture("ddpm_fashion16/scheduler_config.json"));
    let (original, data) = (original.to_str().unwrap(), fixture("ddpm_fashion16/heldout_images.npy"));
    let (pruned, tuned, report) = (path("pruned.onnx"), path("tuned.onnx"), path("tuned.html"));
    let run = ["--data", data.to_str().unwrap(), "--scheduler-config", schedule.to_str().unwrap()];
    succeed(&[original, &pruned, "--ratio", "0.3", "--criterion", "magnitude", "--no-verify"]);
    let steps = ["--steps", "4", "--batch", "8", "--eval-every", "2", "--eval-pictures", "4", "--format", "json"];
    let training = [&["finetune", &pruned, &tuned, "--teacher", original, "--report", &report], &run[..], &steps[..]];
    let json = succeed(&training.concat()).json();
    let page = page(Path::new(&report));
    let evaluations = json["training"]["evaluations"].as_array().unwrap();
    assert_eq!(evaluations.len(), 3);
    let best = &json["training"]["best_step"];
    let of = |evaluation: &Value| format!("denoising loss {:.4}", evaluation["loss"].as_f64().unwrap());
    let best = evaluations.iter().find(|evaluation| evaluation["step"] == *best).unwrap();
    for evaluation in [&json["training"]["teacher"], &evaluations[0], best] {
        assert!(page.text.contains(&of(evaluation)), "{}", of(evaluation));
    }
    let drawn = if best["step"] == 0 { 2 } else { 3 };
    assert_eq!(page.html.matches("data:image/png;base64,").count(), drawn);
    // Samples of the cut before training are shown too.
    assert!(page.html.contains("9 skip connections") && page.text.contains("4 of 4 steps"));
}
