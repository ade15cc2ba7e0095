use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;
use crate::yaml;

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Table {
    name: String,
    count: u8,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    labels: BTreeMap<u16, bool>,
    #[serde(default)]
    pair: Option<(u8, u8)>,
    #[serde(default)]
    choice: Option<Choice>,
    #[serde(default)]
    range: Option<Range>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Rule {
    cidr: std::net::Ipv4Addr,
    port: u16,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Choice {
    Limit(u8),
    Custom { depth: u8, width: u8 },
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, try_from = "Bounds")]
struct Range(u8);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bounds {
    #[serde(default)]
    from: u8,
    #[serde(default)]
    to: u8,
}

impl TryFrom<Bounds> for Range {
    type Error = &'static str;

    fn try_from(bounds: Bounds) -> Result<Self, Self::Error> {
        if bounds.from < bounds.to { Ok(Self(bounds.to)) } else { Err("`from` must be below `to`") }
    }
}

fn node(text: &str) -> Node {
    yaml::parse_partly(text, &|_| None).unwrap().0
}

fn erased(reader: &Reader<'_>) -> Result<Table, erased_serde::Error> {
    erased_serde::deserialize(&mut <dyn erased_serde::Deserializer<'_>>::erase(reader.deserializer()))
}

/// The errors as `line: message`; reading through erasure must make no difference.
fn errors(text: &str) -> Vec<String> {
    let node = node(text);
    let errors = node.read::<Table>("t").unwrap_err();
    let mut reader = node.reader("t");
    while reader.note(erased(&reader).unwrap_err()) {}
    assert_eq!(errors, reader.into_errors());
    errors.iter().map(|error| format!("{}: {error}", error.span.line)).collect()
}

#[test]
fn every_independent_mistake_is_found() {
    let text = "\
name: [a]
count: many
cuont: 1
labels: { 404: perhaps, x: true, 70000: true, 200: no, 500: false }
rules:
  - { cidr: 10.0, port: 99999 }
  - { cidr: 10.0.0.1, port: 1, host: x }
  - 5
  - { prot: 1 }
pair: [x, 256]
choice: { custom: { depth: x, width: y } }
";
    assert_eq!(
        errors(text),
        [
            "1: t.name: expected a string, found a list",
            "2: t.count: expected a whole number from 0 to 255, found string `many`",
            "3: unknown key `cuont` in `t`",
            "4: t.labels.404: expected `true` or `false`, found string `perhaps`",
            "4: t.labels.x: expected a whole number from 0 to 65535, found string `x`",
            "4: t.labels.70000: expected a whole number from 0 to 65535, found number 70000",
            "4: t.labels.200: expected `true` or `false`, found string `no`",
            "6: t.rules[0].cidr: invalid IPv4 address syntax",
            "6: t.rules[0].port: expected a whole number from 0 to 65535, found number 99999",
            "7: unknown key `host` in `rules[1]`",
            "8: t.rules[2]: expected a table, found number 5",
            "9: unknown key `prot` in `rules[3]`",
            "9: missing key `cidr` in `rules[3]`",
            "10: t.pair[0]: expected a whole number from 0 to 255, found string `x`",
            "11: t.choice.custom.depth: expected a whole number from 0 to 255, found string `x`",
            "11: t.choice.custom.width: expected a whole number from 0 to 255, found string `y`",
        ]
    );
}

#[test]
fn every_missing_key_is_found_and_none_that_was_left_out() {
    assert_eq!(errors("{}"), ["1: missing key `name` in `t`", "1: missing key `count` in `t`"]);
    assert_eq!(
        errors("name: []\nchoice: { limit: x }\n"),
        [
            "1: t.name: expected a string, found a list",
            "2: t.choice.limit: expected a whole number from 0 to 255, found string `x`",
            "1: missing key `count` in `t`",
        ]
    );
}

#[test]
fn a_misspelt_key_is_not_missing_too() {
    assert_eq!(errors("nane: a\ncount: 1\n"), ["1: unknown key `nane` in `t`"]);
    assert_eq!(
        errors("label: a\ncount: 1\n"),
        ["1: unknown key `label` in `t`", "1: missing key `name` in `t`"]
    );
}

#[test]
fn an_error_that_a_gap_may_have_caused_is_not_shown() {
    let text = |range: &str| format!("name: a\ncount: 1\nrange: {range}\n");
    assert_eq!(errors(&text("{ from: 2, to: 1 }")), ["3: t.range: `from` must be below `to`"]);
    assert_eq!(errors(&text("{ from: 2, ot: 3 }")), ["3: unknown key `ot` in `range`"]);
}

#[test]
fn nothing_is_said_about_a_variable_that_is_not_set() {
    assert_eq!(errors("name: ${NOPE}\ncount: ${NOPE}\nfoo: 1\n"), ["3: unknown key `foo` in `t`"]);
    assert_eq!(errors("name: a\npair: [\"${NOPE}\", 1]\n"), ["1: missing key `count` in `t`"]);
    assert_eq!(node("${NOPE}").read::<Table>("t"), Err(Vec::new()));
}

#[test]
fn what_remains_is_read_unless_places_shift_or_keys_are_made_up() {
    let partly = |text: &str| node(text).read_partly::<Table>("t").0;
    let table = partly("name: a\ncount: 1\nfoo: 1\nlabels: { 1: x, 2: true }\n").unwrap();
    assert_eq!((table.name.as_str(), table.labels), ("a", BTreeMap::from([(2, true)])));
    assert_eq!(partly("name: a\n"), None);
    assert_eq!(partly("name: a\ncount: 1\nrules: [5]\n"), None);
}

#[test]
fn a_reader_with_errors_yields_no_value() {
    let node = node("name: a\ncount: 1\nfoo: 1\n");
    let mut reader = node.reader("t");
    let error = Table::deserialize(reader.deserializer()).unwrap_err();
    assert!(reader.note(error));
    let error = Table::deserialize(reader.deserializer()).unwrap_err();
    assert!(!reader.note(error));
    assert_eq!(reader.into_errors().len(), 1);
}

#[test]
fn attempts_have_a_bound() {
    let keys: String = (0..1_000).map(|key| format!("foo{key}: 1\n")).collect();
    let node = node(&keys);
    assert_eq!(node.read::<Table>("t").unwrap_err().len(), 101);
}
