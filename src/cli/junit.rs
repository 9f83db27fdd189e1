//! Writes checks as a JUnit report for continuous integration.

use onnx_diffprune::evaluation::LimitCheck;
use onnx_diffprune::{Error, VerifyReport};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::args::{Cli, Command, Format};

/// A check, which is one test case of the report.
#[derive(Clone, Debug)]
pub(super) struct Check {
    /// The test suite: the command.
    pub(super) suite: String,
    /// The class name: the file that is checked.
    pub(super) class: String,
    pub(super) name: String,
    /// Why the check failed. `None`: it passed.
    pub(super) failure: Option<String>,
    /// The measured values.
    pub(super) output: String,
}

/// Refuses `--format junit` for commands without checks.
///
/// # Errors
/// The command is neither verify nor evaluate.
pub(super) fn check(cli: &Cli) -> Result<(), Error> {
    let has_checks = matches!(cli.command, Some(Command::Verify(_) | Command::Evaluate(_)));
    if cli.format != Format::Junit || has_checks {
        return Ok(());
    }
    Err(Error::usage("--format junit: only the commands verify and evaluate have checks to report")
        .hint("use --format text or --format json"))
}

/// Returns the checks of a verification: every output of every run, and the result as a whole.
pub(super) fn of_verification(class: &str, report: &VerifyReport, text: &str) -> Vec<Check> {
    let check = |name: String, failure: Option<String>, output: String| Check {
        suite: "verify".to_owned(),
        class: class.to_owned(),
        name,
        failure,
        output,
    };
    let of_run = |(number, run): (usize, &onnx_diffprune::reports::RunReport)| {
        let of_output = |output: &onnx_diffprune::reports::OutputError| {
            let errors = format!("worst absolute error {:.2e}, relative {:.2e}", output.absolute, output.relative);
            let failure = (!output.passed).then(|| format!("{errors}; tolerance {:.1e} relative", report.rtol));
            check(format!("run {}: {}", number + 1, output.output), failure, errors)
        };
        run.outputs.iter().map(of_output).collect::<Vec<_>>()
    };
    let mut checks: Vec<Check> = report.runs.iter().enumerate().flat_map(of_run).collect();
    let reason = || report.failure.clone().unwrap_or_else(|| "verification failed".to_owned());
    checks.push(check("verification".to_owned(), (!report.passed).then(reason), text.to_owned()));
    checks
}

/// Returns the checks of an evaluation: every network with every limit or, if no limit is given, one passing check per
/// network.
pub(super) fn of_evaluation(checks: &[LimitCheck], networks: &[String], text: &str) -> Vec<Check> {
    let check = |class: String, name: &str, failure: Option<String>, output: String| Check {
        suite: "evaluate".to_owned(),
        class,
        name: name.to_owned(),
        failure,
        output,
    };
    if checks.is_empty() {
        return networks.iter().map(|name| check(name.clone(), "evaluated", None, text.to_owned())).collect();
    }
    let of = |limit: &LimitCheck| {
        let failure = (!limit.passed).then(|| limit.text.clone());
        check(limit.network.display().to_string(), limit.limit, failure, limit.text.clone())
    };
    checks.iter().map(of).collect()
}

/// Returns the JUnit report of checks, with one suite per command.
pub(super) fn document(checks: &[Check]) -> String {
    let mut report = Report::new("onnx-diffprune");
    let mut suites: Vec<TestSuite> = Vec::new();
    for check in checks {
        let status = match &check.failure {
            None => TestCaseStatus::success(),
            Some(failure) => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_message(failure.as_str());
                status
            }
        };
        let mut case = TestCase::new(check.name.as_str(), status);
        case.set_classname(check.class.as_str());
        case.set_system_out(check.output.as_str());
        match suites.iter_mut().find(|suite| suite.name.as_str() == check.suite) {
            Some(suite) => {
                suite.add_test_case(case);
            }
            None => {
                let mut suite = TestSuite::new(check.suite.as_str());
                suite.add_test_case(case);
                suites.push(suite);
            }
        }
    }
    report.add_test_suites(suites);
    report.to_string().unwrap_or_default()
}

/// Returns the report of a run that failed before any check: one test case with an error.
pub(super) fn of_error(error: &Error) -> String {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
    status.set_message(error.to_string());
    if let Some(hint) = error.advice() {
        status.set_description(hint);
    }
    let mut suite = TestSuite::new("onnx-diffprune");
    suite.add_test_case(TestCase::new("run", status));
    let mut report = Report::new("onnx-diffprune");
    report.add_test_suite(suite);
    report.to_string().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_its_checks_and_escapes_names() {
        let check = |name: &str, failure: Option<&str>| Check {
            suite: "verify".to_owned(),
            class: "a<b>.onnx".to_owned(),
            name: name.to_owned(),
            failure: failure.map(str::to_owned),
            output: "x & \u{1b}[2J".to_owned(),
        };
        let text = document(&[check("one", None), check("two", Some("1 < 2"))]);
        assert!(text.contains("tests=\"2\"") && text.contains("failures=\"1\""), "{text}");
        assert!(text.contains("a&lt;b&gt;.onnx") && text.contains("1 &lt; 2"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn a_run_that_ended_early_is_one_case_in_error() {
        let text = of_error(&Error::unmet("no <file>").hint("name one"));
        assert!(text.contains("errors=\"1\"") && text.contains("no &lt;file&gt;"), "{text}");
        assert!(text.contains("name one"), "{text}");
    }
}
