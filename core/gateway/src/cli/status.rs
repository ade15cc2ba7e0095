//! `status`: how a running gateway is, asked from its admin interface.

use std::fmt::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::StatusCode;
use portcullis_control::utc;
use serde_json::Value;

use super::interface::interface;
use super::{ConfigOption, Failure};
use crate::say;

/// `portcullis status`
pub(super) fn status(
    config: &ConfigOption,
    admin: Option<SocketAddr>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let status = match interface(config, admin)?.ask("/status")? {
        (StatusCode::OK, status) => status,
        (code, said) => return Err(Failure::Run(format!("the gateway said {code}: {said}"))),
    };
    say::result(&if json { format!("{status:#}") } else { summary(&status, now()) });
    let refused = status.get("last_error").is_some_and(|error| !error.is_null());
    Ok(if refused { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// The answer for people.
fn summary(status: &Value, now: u64) -> String {
    let mut page = Page::default();
    let number = text(status, "generation");
    let age = ago(status, "applied", now);
    page.line("generation", &format!("{number} (version {}), applied {age}", text(status, "version")));
    page.line(
        "gateway",
        &format!("version {}, started {}", text(status, "gateway_version"), ago(status, "started", now)),
    );
    page.line("config", &text(status, "config"));
    let last_good = status.get("last_good").and_then(Value::as_u64);
    if let Some(at) = last_good {
        page.line("serving", &format!("the last good inputs of {}, not what is on disk", utc(at)));
    }
    for listener in list(status, "listeners") {
        let addresses: Vec<_> = list(listener, "addresses").map(|address| text(address, "actual")).collect();
        let tls = if listener.get("tls") == Some(&Value::Bool(true)) { ", TLS" } else { "" };
        page.line("listener", &format!("{}: {}{tls}", text(listener, "name"), addresses.join(", ")));
    }
    for upstream in list(status, "upstreams") {
        let endpoints: Vec<_> = list(upstream, "endpoints").map(endpoint).collect();
        let circuit = match text(upstream, "circuit").as_str() {
            "" | "closed" => String::new(),
            state => format!("; its circuit is {}", state.replace('_', " ")),
        };
        let http2 = match text(upstream, "protocol").as_str() {
            "http2" => " (HTTP/2)",
            "auto" => " (HTTP/2 or HTTP/1)",
            _ => "",
        };
        let trouble = upstream.pointer("/dns/last_error").and_then(Value::as_str);
        let trouble = trouble.map(|why| format!(" (DNS: {why})")).unwrap_or_default();
        let (name, endpoints) = (text(upstream, "name"), endpoints.join(", "));
        page.line("upstream", &format!("{name}{http2}: {endpoints}{trouble}{circuit}"));
    }
    for plugin in list(status, "plugins") {
        let file =
            plugin.get("file").and_then(Value::as_str).map(|file| format!(", {file}")).unwrap_or_default();
        let (name, kind, scope) = (text(plugin, "name"), text(plugin, "kind"), text(plugin, "scope"));
        let mode = match text(plugin, "mode").as_str() {
            "shadow" => ", in shadow",
            "off" => ", off",
            _ => "",
        };
        let until = plugin
            .get("until")
            .and_then(Value::as_str)
            .map(|until| format!(" until {until}"))
            .unwrap_or_default();
        let quarantine = match plugin.pointer("/quarantine/state").and_then(Value::as_str) {
            None | Some("well") => "",
            Some(_) => ", in quarantine",
        };
        page.line("plugin", &format!("{name}: {kind} of {scope}{file}{mode}{until}{quarantine}"));
    }
    page.line("routes", &text(status, "routes"));
    if let Some(counts) = status.get("reloads") {
        let count = |outcome| format!("{} {outcome}", text(counts, outcome));
        page.line("reloads", &["applied", "refused", "unchanged"].map(count).join(", "));
    }
    for warning in list(status, "warnings") {
        page.line("warning", &text(warning, "message"));
    }
    for file in list(status, "drift").filter_map(Value::as_str) {
        page.line("drift", &format!("{file} is not what runs"));
    }
    if let Some(error) = status.get("last_error").filter(|error| !error.is_null()) {
        let (age, text) = (ago(error, "at", now), text(error, "text"));
        let what =
            if error.get("trigger").is_some_and(|trigger| trigger == "start") { "start" } else { "reload" };
        let instead = match last_good {
            Some(_) => "the last good inputs are served".to_owned(),
            None => format!("generation {number} runs on"),
        };
        page.text.push_str(&format!("\nthe {what} {age} was refused, {instead}:\n\n{text}"));
    }
    page.text
}

/// Its address, and how it is unless it is healthy.
fn endpoint(endpoint: &Value) -> String {
    match (text(endpoint, "address"), text(endpoint, "state").as_str()) {
        (address, "healthy") => address,
        (address, state) => format!("{address} ({})", state.replace('_', " ")),
    }
}

/// Lines with their subject in front, named once in a row.
#[derive(Default)]
struct Page {
    text: String,
    subject: &'static str,
}

impl Page {
    fn line(&mut self, subject: &'static str, text: &str) {
        let shown = if subject == self.subject { "" } else { subject };
        self.subject = subject;
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{shown:10}  {text}");
    }
}

fn text(value: &Value, field: &str) -> String {
    match value.get(field) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn list<'v>(value: &'v Value, field: &str) -> impl Iterator<Item = &'v Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// How long ago a time in seconds since 1970 is.
fn ago(value: &Value, field: &str, now: u64) -> String {
    let Some(then) = value.get(field).and_then(Value::as_u64) else { return "at an unknown time".to_owned() };
    match now.saturating_sub(then) {
        seconds @ 0..120 => format!("{seconds} s ago"),
        seconds @ 120..7200 => format!("{} min ago", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_becomes_readable() {
        let status = json!({
            "generation": 3, "version": "ab12", "applied": 1000, "started": 900, "gateway_version": "0.1.0",
            "config": "gateway.yaml", "routes": 2,
            "listeners": [{ "name": "web", "tls": true, "addresses": [{ "configured": "[::]:0", "actual": "[::]:443" }] }],
            "upstreams": [{ "name": "api", "protocol": "http2", "circuit": "half_open", "dns": { "last_error": "no answer" }, "endpoints": [
                { "address": "a:1", "state": "healthy" }, { "address": "b:2", "state": "ejected" },
            ] }],
            "plugins": [
                { "name": "cors", "kind": "cors", "scope": "gateway", "file": null, "quarantine": { "state": "resting", "left_ms": 5 } },
                { "name": "users/x", "kind": "rhai", "scope": "route users", "file": "x.rhai", "mode": "shadow", "until": "2030-01-01T00:00:00Z" },
            ],
            "warnings": [], "drift": ["x.rhai"], "reloads": { "applied": 2, "refused": 1, "unchanged": 0 },
            "last_error": { "at": 1080, "trigger": "watch", "diagnostics": [], "text": "error: bad\n --> x.rhai:1:2\n" },
        });
        assert_eq!(
            summary(&status, 1090),
            "\
generation  3 (version ab12), applied 90 s ago
gateway     version 0.1.0, started 3 min ago
config      gateway.yaml
listener    web: [::]:443, TLS
upstream    api (HTTP/2): a:1, b:2 (ejected) (DNS: no answer); its circuit is half open
plugin      cors: cors of gateway, in quarantine
            users/x: rhai of route users, x.rhai, in shadow until 2030-01-01T00:00:00Z
routes      2
reloads     2 applied, 1 refused, 0 unchanged
drift       x.rhai is not what runs

the reload 10 s ago was refused, generation 3 runs on:

error: bad
 --> x.rhai:1:2
"
        );
    }

    #[test]
    fn an_unknown_shape_does_no_harm() {
        assert!(summary(&json!({}), 0).contains("generation"));
        assert!(summary(&json!([1]), 0).contains("generation"));
    }

    #[test]
    fn nobody_there_is_a_failure_that_says_where() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let Err(Failure::Run(message)) = status(&ConfigOption::default(), Some(address), false) else {
            panic!("somebody answered");
        };
        assert!(
            message.contains(&address.to_string()) && message.contains("is the gateway running?"),
            "{message}"
        );
    }
}
