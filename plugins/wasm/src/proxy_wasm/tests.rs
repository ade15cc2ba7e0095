//! Guests made with the public SDK for Rust, from where `tests/wasm-cargo` leaves them, and in `tests/handmade.rs`
//! guests written by hand for what no SDK does.

mod handmade;
mod sdk;

use portcullis_plugin::{ErrorKind, ExchangeBuilder, HookName, PluginTester, TestedPlugin};
use serde_json::{Value, json};

use super::*;
use crate::Module;

fn build(tester: PluginTester, module: Vec<u8>, more: Value) -> Result<TestedPlugin, BuildError> {
    build_in(&mut tester.file("m.wasm", module), more)
}

fn build_in(tester: &mut PluginTester, more: Value) -> Result<TestedPlugin, BuildError> {
    let mut table = json!({ "file": "m.wasm" });
    table.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    tester.build::<Module>(table)
}

fn header<'a>(exchange: &'a Exchange, name: &'static str) -> Option<&'a str> {
    exchange.request().header(&http::HeaderName::from_static(name))
}

#[track_caller]
fn continues(verdict: Result<Decision, PluginError>) {
    assert!(matches!(verdict, Ok(Decision::Continue)), "{verdict:?}");
}

#[track_caller]
fn refusal(verdict: Result<Decision, PluginError>) -> (u16, String, Bytes, http::HeaderMap) {
    let Ok(Decision::Respond(reply)) = verdict else { panic!("no refusal but {verdict:?}") };
    let portcullis_plugin::Content::Bytes(body) = reply.content else { panic!("no body of its own") };
    (reply.status.as_u16(), reply.reason.unwrap_or_default().into(), body, reply.headers)
}
