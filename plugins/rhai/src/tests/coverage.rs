//! Which lines run is told, and changes nothing else.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use portcullis_plugin::{Coverage, ExchangeBuilder, HookName, PluginTester, TestedPlugin};
use serde_json::json;

use super::build_from;

/// Every form of statement; the comment says how often the line runs for `/a`.
const FORMS: &str = r##"const LIMIT = 2;
fn on_request(ctx) {
    let path = ctx.request.path;                // 1
    // A comment.
    let text = if path == "/a" {                // 1
        "yes"                                   // 1
    } else if path == "/b" {
        "b"                                     // 0
    } else { "no" };                            // 0
    if text == "no" { return deny(403, "x"); }  // 1
    for n in 0..LIMIT {                         // 1
        ctx.facts[`n${n}`] = n;                 // 2
        if n > 5 { continue; }                  // 2
    }
    let left = LIMIT;                           // 1
    while left > 0 {                            // 1
        left -= 1;                              // 2
    }
    loop {                                      // 1
        break;                                  // 1
    }
    switch text {                               // 1
        "yes" => ctx.facts["y"] = 1,
        "b" => {
            ctx.facts["b"] = 1;                 // 0
        }
        _ => (),
    }
    try {                                       // 1
        throw "x";                              // 1
    } catch (error) {
        ctx.facts["e"] = error;                 // 1
    }
    let list = [1, 2].filter(|n| n > 1);        // 1
    {                                           // 1
        let inner = `${if true { "ä" } else { "ö" }}`; // 1
        ctx.facts["i"] = inner;                 // 1
    }
    helper(ctx, #{ a: 1,                        // 1
        b: 2 });
}
fn helper(ctx, map) {
    ctx.facts["map"] = map.a                    // 1
        + map.b;
    ()                                          // 1
}
fn unused() {
    1                                           // 0
}
"##;

fn build(script: &str, coverage: Option<&Arc<Coverage>>) -> TestedPlugin {
    let tester = PluginTester::new().file("policies/x.rhai", script.to_owned());
    let tester = coverage.into_iter().fold(tester, |tester, coverage| tester.covering(coverage.clone()));
    build_from(tester, json!({})).unwrap()
}

fn lines(coverage: &Coverage) -> BTreeMap<u32, u64> {
    let files = coverage.files();
    files.into_iter().find(|(file, _)| file.ends_with(Path::new("policies/x.rhai"))).unwrap().1
}

#[test]
fn every_line_that_begins_a_statement_is_counted() {
    let coverage = Arc::new(Coverage::default());
    let plugin = build(FORMS, Some(&coverage));
    plugin.call(HookName::OnRequest, &mut ExchangeBuilder::get("/a").build()).unwrap();
    let told = FORMS.lines().zip(1_u32..);
    let told = told.filter_map(|(line, number)| {
        let (_, count) = line.rsplit_once("// ")?;
        Some((number, count.parse::<u64>().ok()?))
    });
    assert_eq!(lines(&coverage), told.collect());
}

#[test]
fn what_is_counted_costs_the_script_nothing_and_changes_nothing() {
    let used = |coverage: Option<&Arc<Coverage>>| {
        let plugin = build(FORMS, coverage);
        let mut exchange = ExchangeBuilder::get("/a").build();
        plugin.call(HookName::OnRequest, &mut exchange).unwrap();
        let facts: Vec<_> = exchange.facts().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        (exchange.core().used.map(|used| used.operations), facts)
    };
    assert_eq!(used(Some(&Arc::default())), used(None));
}

#[test]
fn a_script_that_is_built_again_is_counted_on() {
    let coverage = Arc::new(Coverage::default());
    for _ in 0..2 {
        let plugin = build("fn on_request(ctx) {\n    ctx.facts[\"a\"] = 1;\n}", Some(&coverage));
        plugin.call(HookName::OnRequest, &mut ExchangeBuilder::get("/").build()).unwrap();
    }
    assert_eq!(lines(&coverage), BTreeMap::from([(2, 2)]));
}
