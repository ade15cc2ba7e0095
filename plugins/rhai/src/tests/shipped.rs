//! The shipped scripts and the scaffold.

use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::StatusCode;
use portcullis_plugin::{Decision, ExchangeBuilder, HookName, PluginTester, PluginType, TestedPlugin};
use serde_json::{Value, json};

use super::{build_from, build_with};
use crate::{SCAFFOLD, Script};

fn shipped() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts");
    let files = directory.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let scripts = files.filter(|path| path.extension().is_some_and(|extension| extension == "rhai"));
    scripts
        .map(|path| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(path).unwrap())
        })
        .collect()
}

fn load(name: &str, config: Value) -> TestedPlugin {
    let (_, script) = shipped().into_iter().find(|(file, _)| file == name).unwrap();
    build_with(&script, json!({ "config": config })).unwrap()
}

fn refusal(decision: Decision) -> Option<(StatusCode, String)> {
    match decision {
        Decision::Respond(reply) => Some((reply.status, reply.reason.unwrap_or_default().into_owned())),
        _ => None,
    }
}

#[test]
fn every_shipped_script_loads() {
    let scripts = shipped();
    assert!(scripts.len() >= 2);
    for (name, script) in scripts {
        let config = json!({ "header": "x-k", "value": "v" });
        let built = PluginTester::new()
            .file(&name, script)
            .build::<Script>(json!({ "file": name, "config": config }));
        assert!(built.is_ok(), "{name}: {}", built.err().unwrap());
    }
}

#[test]
fn the_example_names_a_shipped_script() {
    assert!(shipped().iter().any(|(name, _)| Script::EXAMPLE.contains(&format!("scripts/{name}"))));
}

#[test]
fn hello_leaves_its_greeting_on_both_sides() {
    let plugin = load("hello.rhai", json!({}));
    let mut exchange = ExchangeBuilder::get("/").response(200, &[], "").build();
    plugin.on_request(&mut exchange).unwrap();
    plugin.on_response(&mut exchange).unwrap();
    let greeting = exchange.request().headers()["x-greeting"].clone();
    assert_eq!(exchange.response().unwrap().headers()["x-powered-by-policy"], greeting);
}

#[test]
fn require_header_protects_what_is_below_its_prefix() {
    let plugin = load(
        "require-header.rhai",
        json!({ "prefix": "/admin", "header": "x-admin-key", "value": "sesame" }),
    );
    let ask = |path: &str, key: Option<&str>| {
        let builder = ExchangeBuilder::get(path);
        let builder = match key {
            Some(key) => builder.header("x-admin-key", key),
            None => builder,
        };
        refusal(plugin.on_request(&mut builder.build()).unwrap())
    };
    let refused = Some((StatusCode::UNAUTHORIZED, "require_header.missing".to_owned()));
    for path in ["/admin", "/admin/users"] {
        assert_eq!((ask(path, None), ask(path, Some("guess"))), (refused.clone(), refused.clone()));
        assert_eq!(ask(path, Some("sesame")), None);
    }
    assert_eq!((ask("/", None), ask("/administration", None)), (None, None));
    let error = build_with(
        &shipped().into_iter().find(|(name, _)| name == "require-header.rhai").unwrap().1,
        json!({}),
    );
    assert!(error.err().unwrap().message.contains("config needs"));
}

#[test]
fn introspect_asks_once_for_each_token() {
    let (_, script) = shipped().into_iter().find(|(file, _)| file == "introspect.rhai").unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let answer = {
        let asked = asked.clone();
        move |request: &http::Request<Bytes>| {
            let form = std::str::from_utf8(request.body()).unwrap().to_owned();
            let told = match form.as_str() {
                "token=good%20one" => json!({ "active": true, "sub": "ann" }),
                "token=old" => json!({ "active": false }),
                _ => return Ok(http::Response::builder().status(500).body(Bytes::new()).unwrap()),
            };
            asked.lock().unwrap().push(form);
            Ok(http::Response::new(told.to_string().into()))
        }
    };
    let tester = PluginTester::new().file("policies/x.rhai", script).upstream("idp", answer);
    let grants = json!({ "http": { "upstreams": ["idp"] }, "cache": {} });
    let plugin = build_from(tester, json!({ "grants": grants })).unwrap();
    let ask = |authorization: Option<&str>| {
        let builder = ExchangeBuilder::get("/");
        let mut exchange = match authorization {
            Some(value) => builder.header("authorization", value).build(),
            None => builder.build(),
        };
        let decision = plugin.on_request(&mut exchange);
        (decision.map(refusal), exchange.principal().map(|principal| principal.id.clone()))
    };
    let refused = |reason: &str| Some((StatusCode::UNAUTHORIZED, reason.to_owned()));
    for _ in 0..2 {
        let (decision, principal) = ask(Some("Bearer good one"));
        assert_eq!((decision.unwrap(), principal.as_deref()), (None, Some("ann")));
        assert_eq!(ask(Some("bearer old")).0.unwrap(), refused("introspect.inactive"));
    }
    assert_eq!(ask(None).0.unwrap(), refused("introspect.missing"));
    assert_eq!(*asked.lock().unwrap(), ["token=good%20one", "token=old"]);
    assert!(ask(Some("Bearer else")).0.unwrap_err().message().contains("answers 500"));
}

#[test]
fn the_scaffold_works_as_it_is() {
    let plugin = build_with(SCAFFOLD, json!({})).unwrap();
    let mut exchange = ExchangeBuilder::get("/").response(200, &[], "").build();
    plugin.on_request(&mut exchange).unwrap();
    plugin.on_response(&mut exchange).unwrap();
    assert_eq!(exchange.response().unwrap().headers()["x-api-version"], "1");
    let mut exchange = ExchangeBuilder::get("/").header("x-api-version", "9").build();
    let refused = refusal(plugin.call(HookName::OnRequest, &mut exchange).unwrap());
    assert_eq!(refused, Some((StatusCode::BAD_REQUEST, "api_version.unknown".into())));
}
