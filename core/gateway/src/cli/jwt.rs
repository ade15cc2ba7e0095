//! `jwt`: what becomes of a token.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::ExitCode;

use portcullis_plugins::{Finding, Outcome, Report, Why};
use serde_json::json;

use super::{Failure, JwtOptions};
use crate::{kinds, process, say};

/// What standard input may hold at most: more than the longest token that any configuration takes.
const MAX_INPUT: u64 = 1 << 20;

/// `portcullis jwt why TOKEN`
pub(super) fn why(options: &JwtOptions) -> Result<ExitCode, Failure> {
    process::install_crypto();
    let token = match options.token.as_str() {
        "-" => {
            let mut text = String::new();
            let read = std::io::stdin().lock().take(MAX_INPUT).read_to_string(&mut text);
            read.map_err(|error| Failure::Run(format!("no token can be read: {error}")))?;
            text
        }
        token => token.to_owned(),
    };
    let keys = options.keys.as_ref().map(|path| {
        std::fs::read(path)
            .map_err(|error| Failure::Run(format!("`{}` can't be read: {error}", path.display())))
    });
    let question = Why::new(&token, keys.transpose()?.as_deref());
    let question = question.map_err(|message| Failure::Run(format!("--keys: {message}")))?;
    let reports = match &options.config {
        None => vec![question.alone()],
        Some(config) => {
            let check = || portcullis_control::check(config, &kinds::asking(), BTreeMap::new());
            let (checked, reports) = question.ask(check);
            checked.map_err(Failure::Files)?;
            reports
        }
    };
    if reports.is_empty() {
        return Err(Failure::Run("the configuration has no `jwt` plugin".to_owned()));
    }
    if let Some((header, claims)) = reports.iter().find_map(|report| report.said.as_ref()) {
        say::result(&format!("header {}\nclaims {}", json!(header), json!(claims)));
    }
    say::result(&reports.iter().map(shown).collect::<String>());
    let holds = |report: &Report| {
        !report.findings.iter().any(|finding| matches!(finding.outcome, Outcome::Failed { .. }))
    };
    Ok(if reports.iter().any(holds) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn shown(report: &Report) -> String {
    let mut text = report.instance.as_ref().map(|name| format!("{name}:\n")).unwrap_or_default();
    for Finding { name, outcome } in &report.findings {
        text += &match outcome {
            Outcome::Passed => format!("  ok      {name}\n"),
            Outcome::Failed { reason, why } => format!("  failed  {name}: {why} ({reason})\n"),
            Outcome::Open(why) => format!("  open    {name}: {why}\n"),
        };
    }
    text
}
