//! Tells how a token is judged, check by check, for whoever has one that does not hold.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use portcullis_plugin::{BuildContext, BuildFailure, Plugin, PluginType, Registration};
use serde_json::{Map, Value};

use super::issuer::seconds;
use super::keys::{KeySet, Origin};
use super::token::{Token, Wrong};
use super::{Binding, Config, Jwt, MAX_TOKEN};

/// How one instance, or none, judges a token.
#[derive(Debug, Clone)]
pub struct Report {
    /// The instance's name; none if no configuration was asked.
    pub instance: Option<String>,
    /// What the token says, header and claims; none if it can't be read.
    pub said: Option<(Map<String, Value>, Map<String, Value>)>,
    /// What was checked, in the order of the checks.
    pub findings: Vec<Finding>,
}

/// What was checked, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was checked.
    pub name: &'static str,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not hold.
    Failed {
        /// The reason with which a request is refused.
        reason: &'static str,
        /// What is wrong.
        why: String,
    },
    /// It can't be told here.
    Open(String),
}

/// A question about a token. It is asked of every instance that a configuration has.
pub struct Why {
    token: String,
    keys: Option<KeySet>,
    reports: Vec<Report>,
}

/// The kind `jwt` whose instances are asked as they are built.
pub const ASKING: &[Registration] = &[Registration { build: build_and_ask, ..Registration::of::<Jwt>() }];

/// The question that is being asked: a registration has no place for it.
static ASKED: Mutex<Option<Why>> = Mutex::new(None);

impl Why {
    /// About this token; `keys` (PEM, a JWK or a set) stand for those that would be fetched.
    ///
    /// # Errors
    ///
    /// If those are no keys.
    pub fn new(token: &str, keys: Option<&[u8]>) -> Result<Self, String> {
        let keys = keys.map(|keys| KeySet::read(keys, Origin::File)).transpose()?;
        Ok(Why { token: token.trim().to_owned(), keys, reports: Vec::new() })
    }

    /// Asks every instance that `build` builds with [`ASKING`] among its kinds.
    pub fn ask<T>(self, build: impl FnOnce() -> T) -> (T, Vec<Report>) {
        *asked() = Some(self);
        let built = build();
        let reports = asked().take().map(|why| why.reports).unwrap_or_default();
        (built, reports)
    }

    /// What can be told without a configuration.
    pub fn alone(&self) -> Report {
        let mut report = Report { instance: None, said: None, findings: Vec::new() };
        if let Some(token) = read(&mut report, &self.token, MAX_TOKEN) {
            let outcome = match (&self.keys, token.algorithm) {
                (Some(keys), Some(algorithm)) => outcome(keys.verify(&token, algorithm)),
                (_, None) => Outcome::Open("there is no such algorithm".to_owned()),
                (None, _) => Outcome::Open("`--keys` or `--config` would tell with which keys".to_owned()),
            };
            report.findings.push(Finding { name: "signature", outcome });
        }
        report
    }

    fn judge(&self, name: &str, plugin: &Jwt) -> Report {
        let mut report = Report { instance: Some(name.to_owned()), said: None, findings: Vec::new() };
        if let Some(token) = read(&mut report, &self.token, plugin.max_token) {
            self.judge_token(&mut report.findings, plugin, &token);
        }
        report
    }

    fn judge_token(&self, findings: &mut Vec<Finding>, plugin: &Jwt, token: &Token<'_>) {
        let mut add = |name: &'static str, outcome: Outcome| findings.push(Finding { name, outcome });
        let known = match plugin.issuer(token) {
            Ok((_, known)) => known,
            Err(wrong) => return add("iss", failed(wrong)),
        };
        add("iss", Outcome::Passed);
        let issuer = &known.issuer;
        let algorithm = issuer.algorithm(token);
        let signature = algorithm.as_ref().ok().map(|algorithm| {
            let is_own = issuer.keys.has(token.kid(), *algorithm) || known.remote.is_none();
            match &self.keys {
                _ if is_own => outcome(issuer.keys.verify(token, *algorithm)),
                Some(keys) => outcome(keys.verify(token, *algorithm)),
                None => Outcome::Open(
                    "the keys are fetched by a running gateway; `--keys` gives them here".to_owned(),
                ),
            }
        });
        add("alg", outcome(algorithm.map(|_| ())));
        if let Some(signature) = signature {
            add("signature", signature);
        }
        let now = seconds(SystemTime::now());
        for (name, check) in super::Issuer::CHECKS {
            add(name, outcome(check(issuer, token, now)));
        }
        match Binding::of(token) {
            None => {}
            Some(Binding::Certificate(_)) => {
                add(
                    "cnf",
                    Outcome::Open("it holds only with the client certificate that it is bound to".to_owned()),
                );
            }
            Some(Binding::Other) => {
                let why = "it is bound to something that is not asked for here";
                add("cnf", failed(Wrong::new(super::Refusal::Binding, why)));
            }
        }
    }
}

fn asked() -> std::sync::MutexGuard<'static, Option<Why>> {
    ASKED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn build_and_ask(
    table: &mut dyn erased_serde::Deserializer<'_>,
    context: &mut BuildContext<'_>,
) -> Result<Arc<dyn Plugin>, BuildFailure> {
    let config = erased_serde::deserialize::<Config>(table).map_err(BuildFailure::Config)?;
    let plugin = Jwt::build(config, context).map_err(BuildFailure::Build)?;
    if let Some(why) = asked().as_mut() {
        let report = why.judge(context.name(), &plugin);
        why.reports.push(report);
    }
    Ok(Arc::new(plugin))
}

fn read<'t>(report: &mut Report, text: &'t str, max_bytes: usize) -> Option<Token<'t>> {
    let read = Token::read(text, max_bytes);
    let (token, outcome) = match read {
        Ok(token) => {
            report.said = Some((token.header.clone(), token.claims.clone()));
            (Some(token), Outcome::Passed)
        }
        Err(wrong) => (None, failed(wrong)),
    };
    report.findings.push(Finding { name: "form", outcome });
    token
}

fn outcome(checked: Result<(), Wrong>) -> Outcome {
    checked.map_or_else(failed, |()| Outcome::Passed)
}

fn failed(wrong: Wrong) -> Outcome {
    Outcome::Failed { reason: wrong.refusal.reason(), why: wrong.why }
}
