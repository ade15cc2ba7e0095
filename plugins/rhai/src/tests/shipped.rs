//! The shipped scripts and the scaffold.

use std::path::Path;

use http::StatusCode;
use portcullis_plugin::{Decision, ExchangeBuilder, HookName, PluginTester, PluginType, TestedPlugin};
use serde_json::{Value, json};

use super::build_with;
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
