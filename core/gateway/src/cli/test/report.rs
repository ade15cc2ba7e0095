//! What came of tests, for people, for build servers and for editors.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use portcullis_config::Diagnostics;
use portcullis_control::{CaseRun, Mismatch, SuiteRun};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use similar::TextDiff;

use crate::cli::explain;
use crate::say;

/// Lines of a script, and how often each ran.
type Lines = BTreeMap<PathBuf, BTreeMap<u32, u64>>;

/// A file of tests, and what came of it; the findings if no case could begin.
pub(super) struct Outcome {
    pub(super) path: PathBuf,
    pub(super) run: Result<SuiteRun, Diagnostics>,
}

impl Outcome {
    fn passed(&self) -> bool {
        self.run.as_ref().is_ok_and(SuiteRun::passed)
    }
}

/// A file's cases as a tree, what failed with all that is known of it.
pub(super) fn shown(outcome: &Outcome) -> String {
    let path = outcome.path.display();
    let run = match &outcome.run {
        Ok(run) => run,
        Err(findings) => return format!("{path}\n{}", indented(&findings.render(say::result_color()), 2)),
    };
    let mut text = format!("{path} ({})\n", time(run.took));
    for case in &run.cases {
        let mark = if case.mismatches.is_empty() { "ok  " } else { "FAIL" };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {mark}  {} ({})", case.name, time(case.took));
        text.push_str(&indented(&failure(outcome, case), 8));
    }
    text
}

/// What is wrong with a case; nothing if it passed.
fn failure(outcome: &Outcome, case: &CaseRun) -> String {
    let mut text = String::new();
    for mismatch in &case.mismatches {
        let line = mismatch.finding.span.map_or_else(String::new, |span| format!(":{}", span.line));
        let _ = writeln!(text, "{} at {}{line}", key(mismatch), outcome.path.display());
        text.push_str(&indented(&difference(mismatch), 2));
    }
    if let (Some(record), false) = (&case.record, case.mismatches.is_empty()) {
        let _ = write!(text, "\n{}", explain::steps(record));
    }
    text
}

/// `status` of `cases[2].expect.status`.
fn key(mismatch: &Mismatch) -> &str {
    mismatch.path.split_once(".expect.").map_or(&mismatch.path, |(_, key)| key)
}

/// Two lines, or those of a text that differ.
fn difference(mismatch: &Mismatch) -> String {
    let Mismatch { expected, got, .. } = mismatch;
    match expected {
        None => format!("{got}\n"),
        Some(expected) if expected.contains('\n') || got.contains('\n') => {
            let diff = TextDiff::from_lines(expected, got);
            let diff = diff.unified_diff().context_radius(3).header("expected", "got").to_string();
            explain::printable_lines(&diff)
        }
        Some(expected) => {
            explain::printable_lines(&format!("expected  {}\ngot       {}\n", word(expected), word(got)))
        }
    }
}

/// What can be seen of nothing.
fn word(text: &str) -> &str {
    if text.is_empty() { "(empty)" } else { text }
}

/// How many passed.
pub(super) fn summary(outcomes: &[Outcome]) -> String {
    let cases = || outcomes.iter().filter_map(|outcome| outcome.run.as_ref().ok()).flat_map(|run| &run.cases);
    let failed = cases().filter(|case| !case.mismatches.is_empty()).count();
    let broken = outcomes.iter().filter(|outcome| outcome.run.is_err()).count();
    let took = outcomes.iter().filter_map(|outcome| Some(outcome.run.as_ref().ok()?.took)).sum();
    let mut text = format!("\n{} passed, {failed} failed", cases().count() - failed);
    if broken > 0 {
        let _ = write!(text, ", {broken} could not be run");
    }
    let _ = write!(text, ", in {}", time(took));
    text
}

/// 0 if all passed, 2 if a file is wrong, else 1.
pub(super) fn code(outcomes: &[Outcome]) -> ExitCode {
    if outcomes.iter().any(|outcome| outcome.run.is_err()) {
        return ExitCode::from(2);
    }
    if outcomes.iter().all(Outcome::passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// For build servers, in the form that JUnit's have.
pub(super) fn junit(outcomes: &[Outcome]) -> String {
    let mut report = Report::new("portcullis test");
    for outcome in outcomes {
        let mut suite = TestSuite::new(outcome.path.display().to_string());
        match &outcome.run {
            Ok(run) => {
                suite.set_time(run.took);
                suite.add_test_cases(run.cases.iter().map(|case| {
                    let mut status = TestCaseStatus::success();
                    if let Some(first) = case.mismatches.first() {
                        status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                        status
                            .set_message(first.finding.message.as_str())
                            .set_description(failure(outcome, case));
                    }
                    let mut shown = TestCase::new(case.name.as_str(), status);
                    shown.set_time(case.took).set_classname(outcome.path.display().to_string());
                    shown
                }));
            }
            Err(findings) => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
                status.set_message("it could not be run").set_description(findings.render(false));
                suite.add_test_case(TestCase::new("(file)", status));
            }
        }
        report.add_test_suite(suite);
    }
    report.to_string().unwrap_or_default()
}

/// Which lines of scripts ran, and which did not.
pub(super) fn coverage(files: &Lines) -> String {
    let mut text = String::from("\nlines of scripts that ran\n");
    if files.is_empty() {
        text.push_str("  no script was run\n");
    }
    for (file, lines) in files {
        let ran = lines.values().filter(|count| **count > 0).count();
        let share = if lines.is_empty() { 100.0 } else { 100.0 * ran as f64 / lines.len() as f64 };
        let _ = write!(text, "  {share:5.1} %  {ran} of {}  {}", lines.len(), file.display());
        let missed: Vec<u32> =
            lines.iter().filter(|(_, count)| **count == 0).map(|(line, _)| *line).collect();
        if !missed.is_empty() {
            let _ = write!(text, ", not {}", ranges(&missed, lines));
        }
        text.push('\n');
    }
    text
}

/// `3, 7-9`: lines between which no other can run are told together.
fn ranges(missed: &[u32], lines: &BTreeMap<u32, u64>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for line in missed {
        match ranges.last_mut() {
            Some((_, last)) if lines.range(*last + 1..*line).next().is_none() => *last = *line,
            _ => ranges.push((*line, *line)),
        }
    }
    let shown =
        ranges.iter().map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") });
    shown.collect::<Vec<_>>().join(", ")
}

/// The same in the form of `lcov`.
pub(super) fn lcov(files: &Lines) -> String {
    let mut text = String::new();
    for (file, lines) in files {
        let _ = writeln!(text, "SF:{}", file.display());
        for (line, count) in lines {
            let _ = writeln!(text, "DA:{line},{count}");
        }
        let ran = lines.values().filter(|count| **count > 0).count();
        let _ = writeln!(text, "LF:{}\nLH:{ran}\nend_of_record", lines.len());
    }
    text
}

fn time(took: Duration) -> String {
    let millis = took.as_secs_f64() * 1e3;
    if millis < 10.0 { format!("{millis:.1} ms") } else { format!("{millis:.0} ms") }
}

fn indented(text: &str, by: usize) -> String {
    let line = |line: &str| if line.is_empty() { "\n".to_owned() } else { format!("{:by$}{line}\n", "") };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_one_between_them_are_a_range() {
        let lines: BTreeMap<u32, u64> = [(1, 0), (4, 0), (5, 1), (6, 0), (9, 0)].into();
        let missed = [1, 4, 6, 9];
        assert_eq!(ranges(&missed, &lines), "1-4, 6-9");
    }
}
