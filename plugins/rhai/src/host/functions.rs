//! Functions that need no exchange: verdicts, log, time.

use std::sync::Arc;

use rhai::{Dynamic, ImmutableString, Map, NativeCallContext};

use super::Api;
use crate::call::{self, Outcome};
use crate::error;
use crate::limits::LOG_LINE;
use crate::verdict::{self, Verdict};

pub(super) fn register(api: &mut Api<'_>, name: Arc<str>) {
    verdicts(api);
    logging(api, name);
    time(api);
}

fn verdicts(api: &mut Api<'_>) {
    api.engine.register_type_with_name::<Verdict>("Verdict");
    api.function(
        "deny(status: int, reason: string) -> Verdict",
        "Refuses: the client gets a problem document with this status (400 to 599), the reason code goes to logs and records. Return it.",
        r#"return deny(403, "my_policy.not_yours");"#,
        |call: NativeCallContext<'_>, status: i64, reason: ImmutableString| -> Outcome<Verdict> {
            Ok(verdict::deny(status, reason)?.made_at(&call))
        },
    );
    api.function(
        "respond(status: int, body: string | map | array) -> Verdict",
        "Answers in place of the upstream. A map or an array is sent as JSON. Return it.",
        r#"return respond(200, "pong");"#,
        |call: NativeCallContext<'_>, status: i64, body: Dynamic| -> Outcome<Verdict> {
            Ok(verdict::respond(status, body)?.made_at(&call))
        },
    );
    api.function(
        "respond(reply: map) -> Verdict",
        "Answers with `status`, `headers` and `body`, each of which may be absent. Return it.",
        r##"return respond(#{ status: 201, headers: #{ "x-kind": "new" }, body: #{ id: 7 } });"##,
        |call: NativeCallContext<'_>, parts: Map| -> Outcome<Verdict> {
            Ok(verdict::respond_map(parts)?.made_at(&call))
        },
    );
    api.function(
        "redirect(location: string) -> Verdict",
        "Redirects with 303, after which clients use GET. Return it.",
        r#"return redirect("/login");"#,
        |call: NativeCallContext<'_>, location: &str| -> Outcome<Verdict> {
            Ok(verdict::redirect(303, location)?.made_at(&call))
        },
    );
    api.function(
        "redirect(status: int, location: string) -> Verdict",
        "Redirects with 301, 302, 303, 307 or 308. Return it.",
        r#"return redirect(308, "https://example.com/");"#,
        |call: NativeCallContext<'_>, status: i64, location: &str| -> Outcome<Verdict> {
            Ok(verdict::redirect(status, location)?.made_at(&call))
        },
    );
    api.function(
        "drop() -> Verdict",
        "Closes the connection without an answer. Return it.",
        "return drop();",
        |call: NativeCallContext<'_>| verdict::close().made_at(&call),
    );
}

fn logging(api: &mut Api<'_>, name: Arc<str>) {
    let plugin = name.clone();
    api.function(
        "log(text: string)",
        "Writes a line to the gateway's log; 16 lines a call, 1024 bytes each.",
        "log(`asked for ${ctx.request.path}`);",
        move |text: &str| write_line(&plugin, "info", text),
    );
    api.function(
        "log(level: string, text: string)",
        "The same at a level: `error`, `warn`, `info` or `debug`.",
        r#"log("warn", "a strange client");"#,
        move |level: &str, text: &str| write_line(&name, level, text),
    );
}

/// Writes a script's line to the log, if the call has lines left.
pub(crate) fn write_line(plugin: &str, level: &str, text: &str) -> Outcome<()> {
    call::charge(text.len().min(LOG_LINE))?;
    if !call::may_log() {
        return Ok(());
    }
    let text = error::one_line(text);
    match level {
        "error" => tracing::error!(target: "portcullis::script", plugin, "{text}"),
        "warn" => tracing::warn!(target: "portcullis::script", plugin, "{text}"),
        "info" => tracing::info!(target: "portcullis::script", plugin, "{text}"),
        "debug" => tracing::debug!(target: "portcullis::script", plugin, "{text}"),
        _ => return Err(format!("`{level}` is not a level: use error, warn, info or debug").into()),
    }
    Ok(())
}

fn time(api: &mut Api<'_>) {
    api.function(
        "rfc3339(seconds: int) -> string",
        "Seconds since 1970 as text (RFC 3339), in UTC.",
        r#"if rfc3339(0) != "1970-01-01T00:00:00Z" { throw "wrong"; }"#,
        rfc3339,
    );
}

fn rfc3339(seconds: i64) -> Outcome<ImmutableString> {
    // Years of four digits only, as the format has no others.
    if !(-62_167_219_200..=253_402_300_799).contains(&seconds) {
        return Err("the time is outside of the years 0000 to 9999".into());
    }
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    Ok(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z").into())
}

/// The date that is `days` after 1970-01-01, counted in years that begin in March, so that the leap
/// day is a year's last.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day_of_month)
}

/// A map of the given members.
pub(super) fn map<const N: usize>(members: [(&str, Dynamic); N]) -> Map {
    members.into_iter().map(|(name, value)| (name.into(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds).unwrap(), text);
        }
        assert!(rfc3339(i64::MAX).is_err() && rfc3339(i64::MIN).is_err());
    }
}
