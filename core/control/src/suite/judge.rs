//! What became of a request beside what was to become of it.

use bytes::Bytes;
use http::HeaderMap;
use portcullis_config::{Diagnostic, Expect, LoadedSuite, Predicate, Sent, Verdict};
use portcullis_proxy::record::{Record, RecordStep};
use serde_json::Value;

use crate::rehearsal::{Seen, Told};

/// Something that is not as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// What it is about, such as `cases[2].expect.status`.
    pub path: String,
    /// What was to be; none where the case could not be run.
    pub expected: Option<String>,
    /// What is, or why the case could not be run.
    pub got: String,
    /// The same for somebody who looks at the file.
    pub finding: Box<Diagnostic>,
}

/// A mismatch before its place is known.
pub(super) struct Wrong {
    /// The key, as a path below `expect`.
    key: String,
    expected: String,
    got: String,
}

impl Mismatch {
    /// A case that could not be run.
    pub(super) fn failed(loaded: &LoadedSuite, path: String, why: String) -> Self {
        let finding = Box::new(loaded.error(&path, format!("the case cannot be run: {}", why.trim_end())));
        Mismatch { path, expected: None, got: why, finding }
    }
}

impl Wrong {
    fn new(key: impl Into<String>, expected: impl ToString, got: impl ToString) -> Self {
        Wrong { key: key.into(), expected: expected.to_string(), got: got.to_string() }
    }

    pub(super) fn at(self, loaded: &LoadedSuite, expect: &str) -> Mismatch {
        let path = format!("{expect}.{}", self.key);
        let message = format!("expected {}, got {}", self.expected, self.got);
        let finding = Box::new(loaded.error(&path, message));
        Mismatch { path, expected: Some(self.expected), got: self.got, finding }
    }
}

/// All that is not as expected. Without a record there was no request: the connection was refused.
pub(super) fn judge(expect: &Expect, told: Option<&Told>, seen: &Seen) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let record = told.map(|told| &told.record);
    let answer = told.and_then(|told| told.answer.as_ref());
    let decision = record.and_then(|record| record.decided_by.as_ref());
    let mut compare = |key: &str, expected: Option<String>, got: Option<String>| {
        if let Some(expected) = expected.filter(|expected| Some(expected) != got.as_ref()) {
            wrong.push(Wrong::new(key, expected, got.as_deref().unwrap_or("none")));
        }
    };
    compare(
        "verdict",
        expect.verdict.map(|verdict| word(verdict).to_owned()),
        Some(verdict(told).to_owned()),
    );
    compare(
        "status",
        expect.status.map(|status| status.code().to_string()),
        answer.map(|answer| answer.status().as_u16().to_string()),
    );
    compare("reason", expect.reason.clone(), decision.and_then(|decision| decision.reason.clone()));
    compare("by", expect.by.clone(), decision.map(|decision| decision.by.clone()));
    compare(
        "principal",
        expect.principal.clone(),
        seen.principal.as_ref().map(|principal| principal.id.clone()),
    );
    for (name, value) in &expect.facts {
        compare(
            &portcullis_config::join("facts", name),
            Some(value.to_string()),
            seen.facts.get(name).map(Value::to_string),
        );
    }
    let none = HeaderMap::new();
    wrong.extend(headers("headers", &expect.headers, answer.map_or(&none, |answer| answer.headers())));
    wrong.extend(body("body", expect.body.as_ref(), answer.map(|answer| answer.body())));
    for (name, expected) in &expect.upstreams {
        wrong.extend(sent(&portcullis_config::join("upstreams", name), expected, name, told));
    }
    wrong.extend(budget(expect, record));
    wrong
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Continue => "continue",
        Verdict::Respond => "respond",
        Verdict::Drop => "drop",
    }
}

fn verdict(told: Option<&Told>) -> &'static str {
    match told {
        Some(Told { answer: Some(_), record, .. }) if record.decided_by.is_none() => "continue",
        Some(Told { answer: Some(_), .. }) => "respond",
        _ => "drop",
    }
}

fn headers<'e>(
    key: &str,
    expected: impl IntoIterator<Item = (&'e portcullis_config::HeaderName, &'e Predicate)>,
    got: &HeaderMap,
) -> Vec<Wrong> {
    let judge = |(name, predicate): (&portcullis_config::HeaderName, &Predicate)| {
        let values: Vec<_> = got
            .get_all(name.as_str())
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        let value = (!values.is_empty()).then(|| values.join(", "));
        let is_so = match (predicate, &value) {
            (Predicate::Is(expected), Some(value)) => expected == value,
            (Predicate::Present(present), value) => *present == value.is_some(),
            (Predicate::Regex(pattern), Some(value)) => pattern.0.is_match(value),
            (_, None) => false,
        };
        let expected = match predicate {
            Predicate::Is(value) => value.clone(),
            Predicate::Present(true) => "any value".to_owned(),
            Predicate::Present(false) => "none".to_owned(),
            Predicate::Regex(pattern) => format!("a value like {pattern}"),
        };
        let key = portcullis_config::join(key, name.as_str());
        (!is_so).then(|| Wrong::new(key, expected, value.as_deref().unwrap_or("none")))
    };
    expected.into_iter().filter_map(judge).collect()
}

/// A body that is not as expected: a text as it stands, JSON by what it means.
fn body(key: &str, expected: Option<&Value>, got: Option<&Bytes>) -> Option<Wrong> {
    let expected = expected?;
    let got = String::from_utf8_lossy(got.map_or(&[][..], |body| body));
    if let Value::String(text) = expected {
        return (*text != got).then(|| Wrong::new(key, text, got));
    }
    match serde_json::from_str::<Value>(&got) {
        Ok(got) if got == *expected => None,
        Ok(got) => Some(Wrong::new(key, format!("{expected:#}"), format!("{got:#}"))),
        Err(_) => Some(Wrong::new(key, format!("{expected:#}"), got)),
    }
}

fn sent(key: &str, expected: &Sent, name: &str, told: Option<&Told>) -> Vec<Wrong> {
    let sent = told.map_or(&[][..], |told| &told.sent);
    let requests: Vec<_> = sent.iter().filter(|(to, _)| to == name).map(|(_, request)| request).collect();
    let mut wrong = Vec::new();
    if let Some(times) = expected.times.filter(|times| *times as usize != requests.len()) {
        wrong.push(Wrong::new(format!("{key}.times"), times, requests.len()));
    }
    let is_more = Sent { times: None, ..expected.clone() } != Sent::default();
    let Some(last) = requests.last() else {
        if is_more && expected.times.is_none() {
            wrong.push(Wrong::new(key, "a request", "none"));
        }
        return wrong;
    };
    let mut compare = |key: String, expected: Option<&str>, got: &str| {
        if let Some(expected) = expected.filter(|expected| *expected != got) {
            wrong.push(Wrong::new(key, expected, got));
        }
    };
    let path = last.uri().path_and_query().map_or("/", |target| target.as_str());
    compare(
        format!("{key}.method"),
        expected.method.as_ref().map(|method| method.as_str()),
        last.method().as_str(),
    );
    compare(format!("{key}.path"), expected.path.as_deref(), path);
    wrong.extend(headers(&format!("{key}.headers"), &expected.headers, last.headers()));
    wrong.extend(body(&format!("{key}.body"), expected.body.as_ref(), Some(last.body())));
    wrong
}

/// Calls that used up more than they were to.
fn budget(expect: &Expect, record: Option<&Record>) -> Vec<Wrong> {
    let (Some(budget), Some(record)) = (&expect.budget, record) else { return Vec::new() };
    let limits = [
        ("budget.operations", budget.operations, "operations"),
        ("budget.memory", budget.memory.map(|size| size.0), "bytes"),
    ];
    let used = |step: &RecordStep, key: &str| {
        let used = step.used.unwrap_or_default();
        if key == "budget.memory" { used.memory } else { used.operations }
    };
    let over = limits.into_iter().filter_map(|(key, limit, unit)| {
        let most = record.steps.iter().max_by_key(|step| used(step, key))?;
        let (limit, most_used) = (limit?, used(most, key));
        let got = format!("{most_used} of {} in {}", most.plugin, most.hook);
        (most_used > limit).then(|| Wrong::new(key, format!("at most {limit} {unit}"), got))
    });
    over.collect()
}
