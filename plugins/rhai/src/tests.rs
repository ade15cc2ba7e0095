//! Scripts as a user writes them, and scripts as an attacker does.

use std::collections::BTreeMap;

use bytes::Bytes;
use portcullis_plugin::{
    BuildError, Exchange, ExchangeBuilder, OutboundError, PluginTester, Principal, TestedPlugin, TlsSession,
};
use serde_json::{Value, json};

use crate::Script;

mod capabilities;
mod coverage;
mod language;
mod sandbox;
mod shipped;

/// Builds a script; `table` is what its table has beside `file`.
fn build_with(script: &str, table: Value) -> Result<TestedPlugin, BuildError> {
    build_from(PluginTester::new().file("policies/x.rhai", script.to_owned()), table)
}

fn build_from(mut tester: PluginTester, mut table: Value) -> Result<TestedPlugin, BuildError> {
    table["file"] = "policies/x.rhai".into();
    if table.get("limits").is_none() {
        // Unoptimised code on a busy machine is slow.
        table["limits"] = json!({ "time": "4s" });
    }
    tester.build::<Script>(table)
}

fn build(script: &str) -> TestedPlugin {
    build_with(script, json!({})).unwrap()
}

/// Builds a script that is granted everything there is.
fn build_granted(script: &str) -> TestedPlugin {
    let answer = |request: &http::Request<Bytes>| {
        let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        let seen = json!({
            "method": request.method().as_str(),
            "target": request.uri().to_string(),
            "headers": headers.collect::<BTreeMap<_, _>>(),
            "body": std::str::from_utf8(request.body()).unwrap(),
        });
        Ok(http::Response::builder().header("x-a", "1").body(seen.to_string().into()).unwrap())
    };
    let tester = PluginTester::new()
        .file("policies/x.rhai", script.to_owned())
        .upstream("idp", answer)
        .upstream("gone", |_: &http::Request<Bytes>| Err(OutboundError::Unreachable))
        .secret("KEY", "hunter2");
    let grants = json!({
        "http": { "upstreams": ["idp", "gone"], "calls": 3 },
        "cache": {},
        "store": true,
        "rate_limit": { "login": { "rate": "2/min", "burst": 2 } },
        "metrics": ["logins"],
        "clock": true,
        "random": true,
        "secrets": { "signing": "env:KEY" },
    });
    build_from(tester, json!({ "grants": grants })).unwrap()
}

/// An exchange that has everything an exchange can have.
fn complete() -> Exchange {
    ExchangeBuilder::get("/users/42?page=2&q=a%20b")
        .header("x-a", "1")
        .header("cookie", "session=abc")
        .header("accept", "text/html")
        .tls(TlsSession {
            version: "TLSv1.3",
            server_name: Some("gateway.test".into()),
            client_chain: vec![],
        })
        .principal(Principal {
            id: "alice".into(),
            roles: vec!["admin".into()],
            scopes: vec!["read".into()],
            claims: serde_json::from_value(json!({ "tenant": "acme" })).unwrap(),
            ..Principal::default()
        })
        .route("users", &[("id", "42")])
        .body(r#"{"items":[1,2]}"#)
        .attempt("backend", "10.0.0.1:80")
        .response(200, &[("content-type", "application/json")], r#"{"secret":1}"#)
        .ended(200)
        .build()
}
