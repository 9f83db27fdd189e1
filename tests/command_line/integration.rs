//! Outputs for other programs: completion scripts, manual pages, JUnit reports.

use super::tool::{run, succeed};
use crate::support::fixtures::fixture;

#[test]
fn completion_scripts_contain_commands_and_options() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = succeed(&["completions", shell]).out;
        for word in ["onnx-diffprune", "finetune", "max-loss-increase"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(run(&["completions", "csh"]).code, 2);
}

#[cfg(unix)]
#[test]
fn bash_accepts_its_completion_script() {
    use std::io::Write;
    use std::process::{Command, Stdio};

    let script = format!(
        "{}\nCOMP_WORDS=(onnx-diffprune verify --rt); COMP_CWORD=2\n\
         call=$(complete -p onnx-diffprune); call=${{call#*-F }}\n\
         ${{call%% *}} onnx-diffprune --rt verify\necho \"${{COMPREPLY[@]}}\"\n",
        succeed(&["completions", "bash"]).out
    );
    let mut bash = Command::new("bash").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let done = bash.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(done.stdout).unwrap().trim(), "--rtol");
}

#[test]
fn every_command_has_a_manual_page() {
    let whole = succeed(&["man"]).out;
    assert!(whole.contains(".SH OPTIONS") && whole.contains("\\-\\-ratio"));
    for command in ["apply", "refit", "finetune", "verify", "inspect", "evaluate", "deploy", "bench", "completions"] {
        let page = succeed(&["man", command]).out;
        assert!(page.contains(&format!("onnx\\-diffprune\\-{command}")), "{command}: {page}");
    }
    let wrong = run(&["man", "nonsense"]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("nonsense") && wrong.err.contains("verify"), "{}", wrong.err);
}

/// `scripts/check_action.py` reads the reports of verify and evaluate with a parser of its own.
#[test]
fn a_run_without_checks_or_with_an_early_end_is_one_junit_error() {
    let network = fixture("dit_tiny.onnx");
    let network = network.to_str().unwrap();
    for (arguments, fact) in [
        (vec!["inspect", network], "--format junit"),
        (vec!["verify", network, "missing.onnx"], "missing"),
        (vec!["verify", network, "missing.onnx", "--no-such-option"], "--no-such-option"),
    ] {
        let ran = run(&[&arguments[..], &["--format", "junit"]].concat());
        assert_eq!(ran.code, 2, "{arguments:?}: {}", ran.err);
        assert!(ran.out.starts_with("<?xml") && ran.out.contains("errors=\"1\""), "{}", ran.out);
        assert!(ran.out.contains(fact), "{}", ran.out);
    }
}
