//! `explain`: what became of a request, and why, asked from a running gateway.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use bytes::Bytes;
use hyper::header::HOST;
use hyper::{Request, StatusCode, Uri};
use portcullis_control::{Asked, Rehearsal, Told};
use portcullis_proxy::record::{Decision, Record, RecordStep};
use serde_json::Value;

use super::interface::{Interface, interface};
use super::{ConfigOption, ExplainOptions, Failure, check};
use crate::{kinds, process, say};

/// `portcullis explain`
pub(super) fn explain(options: ExplainOptions) -> Result<ExitCode, Failure> {
    if let Some(asked) = &options.dry_run {
        return dry_run(&options, asked);
    }
    let config = ConfigOption { file: options.config.clone(), option: None };
    let gateway = interface(&config, options.admin)?;
    let answer = match &options.id {
        Some(id) => one(&gateway, id)?,
        None => asked(&gateway, &query(&options))?,
    };
    let text = match &options.id {
        _ if options.json => format!("{answer:#}"),
        Some(_) => page(&read(answer)?),
        None => list(&read::<Vec<Record>>(answer)?),
    };
    say::result(&text);
    Ok(ExitCode::SUCCESS)
}

/// Has a request go through a gateway that nobody sees.
fn dry_run(options: &ExplainOptions, asked: &[String]) -> Result<ExitCode, Failure> {
    process::install_crypto();
    let asked = Asked {
        listener: options.listener.clone(),
        client: options.client.unwrap_or(Ipv4Addr::LOCALHOST.into()),
        request: made_up(asked, &options.header, options.data.as_deref()).map_err(Failure::Usage)?,
    };
    let config = ConfigOption { file: options.config.clone(), option: None };
    let file = check::file(&config)?;
    let failed = |error: String| Failure::Run(error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(error.to_string()))?;
    let told = runtime.block_on(async {
        let gateway = Rehearsal::start(&file.path(), &kinds::registry(), BTreeMap::new()).await;
        gateway.map_err(Failure::Files)?.ask(&asked).await.map_err(|why| failed(why.to_string()))
    })?;
    say::result(&if options.json {
        format!("{:#}", serde_json::json!(told.record))
    } else {
        rehearsed(&told)
    });
    Ok(ExitCode::SUCCESS)
}

/// A request in the words of the command line.
fn made_up(asked: &[String], headers: &[String], body: Option<&str>) -> Result<Request<Bytes>, String> {
    let [method, url] = asked else { return Err("a method and a URL are needed".to_owned()) };
    let url: Uri = url.parse().map_err(|error| format!("`{url}` is no URL: {error}"))?;
    let target = url.path_and_query().map_or("/", |target| target.as_str());
    let mut request = Request::builder().method(method.as_str()).uri(target);
    let names_host = headers.iter().any(|header| header.to_ascii_lowercase().starts_with("host:"));
    if !names_host {
        request = request.header(HOST, url.authority().map_or("localhost", |authority| authority.as_str()));
    }
    for header in headers {
        let (name, value) =
            header.split_once(':').ok_or_else(|| format!("`{header}` is no header: write `NAME: VALUE`"))?;
        request = request.header(name.trim(), value.trim());
    }
    let body = Bytes::from(body.unwrap_or_default().to_owned());
    request.body(body).map_err(|error| error.to_string())
}

/// Everything about a request that was made up.
fn rehearsed(told: &Told) -> String {
    let mut record = told.record.clone();
    record.upstream = None;
    let mut text = page(&record);
    for (upstream, request) in &told.sent {
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\nto {upstream}: {} {}", request.method(), printable(target));
        for (name, value) in request.headers() {
            let _ = writeln!(text, "  {name}: {}", printable(&String::from_utf8_lossy(value.as_bytes())));
        }
    }
    text
}

fn one(gateway: &Interface, id: &str) -> Result<Value, Failure> {
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#%".contains(&byte)) {
        return Err(Failure::Usage(format!("`{id}` is no request id")));
    }
    asked(gateway, &format!("/records/{id}"))
}

fn asked(gateway: &Interface, path: &str) -> Result<Value, Failure> {
    match gateway.ask(path)? {
        (StatusCode::OK, answer) => Ok(answer),
        (_, Value::String(why)) => Err(Failure::Run(why)),
        (code, _) => Err(Failure::Run(format!("the gateway said {code}"))),
    }
}

fn read<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T, Failure> {
    serde_json::from_value(answer).map_err(|error| {
        Failure::Run(format!("the gateway's answer can't be read: {error}; is it of another version?"))
    })
}

fn query(options: &ExplainOptions) -> String {
    let mut query = form_urlencoded::Serializer::new("/records?".to_owned());
    query.append_pair("last", &options.last.to_string());
    if options.passed {
        query.append_pair("passed", "true");
    }
    let client = options.client.map(|client| client.to_string());
    let wishes =
        [("by", &options.by), ("reason", &options.reason), ("route", &options.route), ("client", &client)];
    for (name, value) in wishes {
        query.extend_pairs(value.iter().map(|value| (name, value)));
    }
    query.finish()
}

/// A line per exchange.
fn list(records: &[Record]) -> String {
    if records.is_empty() {
        return "none is remembered\n".to_owned();
    }
    let rows = records.iter().map(|record| {
        let decision = record.decided_by.as_ref();
        let reason = decision.and_then(|decision| decision.reason.clone());
        [
            record.time.clone(),
            record.id.clone(),
            record.status.map_or_else(|| "-".to_owned(), |status| status.to_string()),
            decision.map_or_else(|| "upstream".to_owned(), |decision| decision.by.clone()),
            reason.or_else(|| in_shadow(record)).unwrap_or_else(|| record.end.replace('_', " ")),
            record.client.to_string(),
            format!("{} {}{}", record.method, record.host, record.path),
        ]
    });
    let head = ["time", "id", "status", "decided by", "why", "client", "request"].map(str::to_owned);
    columns(&[head].into_iter().chain(rows).collect::<Vec<_>>())
}

/// What a plugin in shadow would have done to it.
fn in_shadow(record: &Record) -> Option<String> {
    let step = record.steps.iter().find(|step| step.shadow && step.verdict != "continue")?;
    Some(format!("{} of {} (shadow)", step.reason.as_deref().unwrap_or(&step.verdict), step.plugin))
}

/// Everything about one.
fn page(record: &Record) -> String {
    let mut page = String::new();
    let mut status = record.status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
    if let Some(code) = &record.grpc_status {
        status = format!("{status}, gRPC {code}");
    }
    let mut line = |subject: &str, text: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(page, "{subject:10}  {}", printable(text));
    };
    line("request", &format!("{} {}{}", record.method, record.host, record.path));
    line("answer", &format!("{status}, {} after {}", record.end.replace('_', " "), time(record.micros)));
    line("decided by", &record.decided_by.as_ref().map_or_else(|| "the upstream".to_owned(), decision));
    line("route", record.route.as_deref().unwrap_or("none"));
    line("client", &format!("{} at {}", record.client, record.listener));
    line("time", &format!("{}, generation {}", record.time, record.generation));
    line("id", &record.id);
    if let Some(upstream) = &record.upstream {
        let attempts =
            if upstream.attempts > 1 { format!(", {} attempts", upstream.attempts) } else { String::new() };
        let after =
            upstream.micros.map(|micros| format!(", answered after {}", time(micros))).unwrap_or_default();
        line("upstream", &format!("{}: {}{attempts}{after}", upstream.name, upstream.endpoint));
    }
    page.push('\n');
    page.push_str(&steps(record));
    page
}

/// Which plugins were called, one after the other.
pub(super) fn steps(record: &Record) -> String {
    if record.steps.is_empty() {
        return "no plugin was called\n".to_owned();
    }
    let head = ["at", "took", "plugin", "hook", "verdict", ""].map(str::to_owned);
    let mut text = columns(&[head].into_iter().chain(record.steps.iter().map(step)).collect::<Vec<_>>());
    if record.changes_unlisted > 0 {
        let _ = writeln!(text, "and {} more changes", record.changes_unlisted);
    }
    text
}

fn decision(decision: &Decision) -> String {
    let mut text = decision.by.clone();
    if let (Some(kind), Some(version)) = (&decision.kind, &decision.version) {
        let _ = write!(text, " ({kind} {version})");
    }
    if let Some(hook) = &decision.hook {
        let _ = write!(text, " in {hook}");
    }
    for (before, more) in [(": ", &decision.reason), (", ", &decision.rule)] {
        if let Some(more) = more {
            let _ = write!(text, "{before}{more}");
        }
    }
    text
}

fn step(step: &RecordStep) -> [String; 6] {
    let mut words: Vec<String> = [&step.reason, &step.rule].into_iter().flatten().cloned().collect();
    words.extend(step.error.clone());
    if !step.changed.is_empty() {
        words.push(format!("changed {}", step.changed.join(", ")));
    }
    if let Some(used) = step.used {
        let counted = [
            (used.operations, "operations"),
            (used.cpu_micros, "µs of processor time"),
            (used.memory, "bytes"),
        ];
        words.extend(
            counted.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")),
        );
    }
    [
        time(step.at.into()),
        time(step.micros.into()),
        format!("{} ({} {})", step.plugin, step.kind, step.version),
        step.hook.clone(),
        if step.shadow { format!("{} (shadow)", step.verdict) } else { step.verdict.clone() },
        words.join("; "),
    ]
}

/// Text in columns as wide as their widest cell; the last is not filled up.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let shown: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| printable(cell))).collect();
    let width = |at: usize| shown.iter().map(|row| row[at].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &shown {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// What a client has sent is not to speak to the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

/// The same of a text of several lines.
pub(super) fn printable_lines(text: &str) -> String {
    text.lines().map(|line| printable(line) + "\n").collect()
}

fn time(micros: u64) -> String {
    match micros {
        0..10_000 => format!("{micros} µs"),
        10_000..10_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}
