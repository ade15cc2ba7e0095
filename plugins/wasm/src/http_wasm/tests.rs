//! Guests made with the public SDK for Rust, from where `tests/wasm-cargo` leaves them, and in `tests/handmade.rs`
//! guests written by hand for each host function and for what no SDK does.

mod handmade;
mod sdk;

use bytes::Bytes;
use portcullis_plugin::{ErrorKind, ExchangeBuilder, HookName, PluginTester, TestedPlugin};
use serde_json::{Value, json};

use super::*;
use crate::Module;

fn build(tester: &mut PluginTester, more: Value) -> Result<TestedPlugin, BuildError> {
    let mut table = json!({ "file": "m.wasm" });
    table.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    tester.build::<Module>(table)
}

fn found(exchange: &Exchange) -> Option<&str> {
    exchange.request().header(&http::HeaderName::from_static("x-found"))
}

fn found_back(exchange: &Exchange) -> Option<&str> {
    exchange.response().unwrap().header(&http::HeaderName::from_static("x-found"))
}

#[track_caller]
fn continues(verdict: Result<Decision, PluginError>) {
    assert!(matches!(verdict, Ok(Decision::Continue)), "{verdict:?}");
}

#[track_caller]
fn reply(verdict: Result<Decision, PluginError>) -> (u16, Option<String>, Bytes, http::HeaderMap) {
    let Ok(Decision::Respond(reply)) = verdict else { panic!("no answer but {verdict:?}") };
    let portcullis_plugin::Content::Bytes(body) = reply.content else { panic!("no body of its own") };
    (reply.status.as_u16(), reply.reason.map(Into::into), body, reply.headers)
}
