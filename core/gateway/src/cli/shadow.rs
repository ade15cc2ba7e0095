//! `shadow`: what plugins in shadow would have done, asked from a running gateway.

use std::fmt::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use hyper::StatusCode;
use serde_json::Value;

use super::interface::interface;
use super::{ConfigOption, Failure};
use crate::say;

/// Lines per plugin and list.
const LINES: usize = 10;

/// `portcullis shadow`
pub(super) fn shadow(
    config: &ConfigOption,
    admin: Option<SocketAddr>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let seen = match interface(config, admin)?.ask("/shadow")? {
        (StatusCode::OK, seen) => seen,
        (code, said) => return Err(Failure::Run(format!("the gateway said {code}: {said}"))),
    };
    say::result(&if json { format!("{seen:#}") } else { page(&seen) });
    Ok(ExitCode::SUCCESS)
}

fn page(seen: &Value) -> String {
    let plugins = seen.as_array().map_or(&[][..], Vec::as_slice);
    if plugins.is_empty() {
        return "no plugin in shadow has seen a request since the start\n".to_owned();
    }
    let mut page = String::new();
    for plugin in plugins {
        let (text, number) =
            (|key: &str| plugin[key].as_str().unwrap_or_default(), |key: &str| plugin[key].as_u64());
        let (requests, refused) =
            (number("requests").unwrap_or_default(), number("would_refuse").unwrap_or_default());
        let share = refused as f64 * 100.0 / (requests.max(1)) as f64;
        let verdict = |name: &str| plugin["verdicts"][name].as_u64().unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(
            page,
            "{} ({}): {requests} requests, would have refused {refused} ({share:.1} %), changed something at {} hooks, \
             failed at {}",
            text("plugin"),
            text("kind"),
            verdict("change"),
            verdict("error"),
        );
        for reason in plugin["reasons"].as_array().into_iter().flatten().take(LINES) {
            let (why, route) =
                (reason["reason"].as_str().unwrap_or_default(), reason["route"].as_str().unwrap_or_default());
            let why = if why.is_empty() { "other reasons" } else { why };
            let route = if route.is_empty() { String::new() } else { format!(" on {route}") };
            let _ = writeln!(page, "  {:>8}  {why}{route}", reason["requests"].as_u64().unwrap_or_default());
        }
        for client in plugin["clients"].as_array().into_iter().flatten().take(LINES) {
            let _ = writeln!(
                page,
                "  {:>8}  of {}",
                client["requests"].as_u64().unwrap_or_default(),
                client["client"].as_str().unwrap_or("other clients")
            );
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_summary_says_how_many_why_and_whose() {
        let seen = json!([{
            "plugin": "limit", "kind": "rate_limit", "requests": 200, "would_refuse": 3,
            "verdicts": { "continue": 197, "change": 1, "respond": 3, "drop": 0, "error": 2 },
            "reasons": [{ "reason": "rate_limit.exceeded", "route": "api", "requests": 2 }, { "reason": "", "route": "", "requests": 1 }],
            "clients": [{ "client": "10.0.0.1", "requests": 2 }, { "client": null, "requests": 1 }],
        }]);
        assert_eq!(
            page(&seen),
            "\
limit (rate_limit): 200 requests, would have refused 3 (1.5 %), changed something at 1 hooks, failed at 2
         2  rate_limit.exceeded on api
         1  other reasons
         2  of 10.0.0.1
         1  of other clients
"
        );
        assert!(page(&json!([])).starts_with("no plugin in shadow"));
    }
}
