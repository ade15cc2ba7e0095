use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;
use crate::yaml;

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Cors {
    origins: Vec<String>,
    #[serde(default)]
    max_age: Option<u16>,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    statuses: BTreeMap<u16, bool>,
    #[serde(default)]
    pair: Option<(u8, String)>,
    #[serde(default)]
    even: Option<Even>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Rule {
    cidr: std::net::Ipv4Addr,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Mode {
    #[default]
    Strict,
    Limit(u8),
    Custom {
        depth: u8,
    },
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(try_from = "u8")]
struct Even(u8);

impl TryFrom<u8> for Even {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        if number.is_multiple_of(2) { Ok(Self(number)) } else { Err(format!("{number} is odd")) }
    }
}

fn node(text: &str) -> Node {
    let env = |name: &str| match name {
        "AGE" => Some("600".to_owned()),
        "TOKEN" => Some("s3cret".to_owned()),
        _ => None,
    };
    yaml::parse(text, &env).unwrap()
}

fn erased_errors(node: &Node) -> Vec<NodeError> {
    let mut reader = node.reader("plugins[0].cors");
    while reader.note(erased(&reader).unwrap_err()) {}
    reader.into_errors()
}

fn erased(reader: &Reader<'_>) -> Result<Cors, erased_serde::Error> {
    erased_serde::deserialize(&mut <dyn erased_serde::Deserializer<'_>>::erase(reader.deserializer()))
}

/// Reads directly and through erasure, which must make no difference, and gives `line:column path: message`.
fn failure(text: &str) -> (String, Option<String>) {
    let node = node(text);
    let mut direct = node.read::<Cors>("plugins[0].cors").unwrap_err();
    assert_eq!(direct, erased_errors(&node));
    assert_eq!(direct.len(), 1, "{direct:?}");
    let NodeError { span, path, message, help, .. } = direct.remove(0);
    (format!("{}:{} {path}: {message}", span.line, span.column), help)
}

#[track_caller]
fn assert_failure(text: &str, expected: &str) {
    assert_eq!(failure(text).0, expected);
}

#[test]
fn a_whole_table_is_read() {
    let node = node(
        "origins: [a, 8080, true]\nmax_age: ${AGE}\nrules: [{ cidr: 10.0.0.1 }]\nmode: { limit: 3 }\n\
         statuses: { 404: true }\npair: [1, x]\neven: 4\n",
    );
    let cors: Cors = node.read("").unwrap();
    assert_eq!(cors.origins, ["a", "8080", "true"]);
    assert_eq!(cors.max_age, Some(600));
    assert_eq!(cors.rules, [Rule { cidr: [10, 0, 0, 1].into() }]);
    assert_eq!(cors.mode, Mode::Limit(3));
    assert_eq!(cors.statuses, BTreeMap::from([(404, true)]));
    assert_eq!(cors.pair, Some((1, "x".to_owned())));
    assert_eq!(cors.even, Some(Even(4)));
    assert_eq!(erased(&node.reader("")).unwrap(), cors);
}

#[test]
fn an_unknown_key_points_at_the_key() {
    let (place, help) = failure("max_age: 1\norgins: [a]\n");
    assert_eq!(place, "2:1 plugins[0].cors: unknown key `orgins` in `cors`");
    assert_eq!(help.as_deref(), Some("did you mean `origins`?"));
    let (place, help) = failure("origins: []\nrules:\n  - cidr: 10.0.0.1\n    network: x\n");
    assert_eq!(place, "4:5 plugins[0].cors.rules[0]: unknown key `network` in `rules[0]`");
    assert_eq!(help.as_deref(), Some("known keys: `cidr`"));
}

#[test]
fn a_missing_key_points_at_the_table() {
    assert_failure("max_age: 1\n", "1:1 plugins[0].cors: missing key `origins` in `cors`");
    assert_failure(
        "origins: []\nrules: [{}]\n",
        "2:9 plugins[0].cors.rules[0]: missing key `cidr` in `rules[0]`",
    );
    assert_failure(
        "origins: []\nmode: { custom: { } }\n",
        "2:9 plugins[0].cors.mode.custom: missing key `depth` in `custom`",
    );
}

#[test]
fn wrong_types_say_what_was_expected_and_found() {
    assert_failure("origins: x\n", "1:10 plugins[0].cors.origins: expected a list, found string `x`");
    assert_failure(
        "origins: [{ a: 1 }]\n",
        "1:11 plugins[0].cors.origins[0]: expected a string, found a table",
    );
    assert_failure("origins:\n", "1:8 plugins[0].cors.origins: expected a list, found nothing");
    assert_failure(
        "origins: []\nmax_age: 70000\n",
        "2:10 plugins[0].cors.max_age: expected a whole number from 0 to 65535, found number 70000",
    );
    assert_failure("[]\n", "1:1 plugins[0].cors: expected a table, found a list");
}

#[test]
fn errors_of_a_types_own_code_get_the_innermost_place() {
    assert_failure(
        "origins: []\nrules: [{ cidr: 10.0 }]\n",
        "2:17 plugins[0].cors.rules[0].cidr: invalid IPv4 address syntax",
    );
    assert_failure("origins: []\neven: 3\n", "2:7 plugins[0].cors.even: 3 is odd");
    assert_failure(
        "origins: []\nstatuses: { ok: true }\n",
        "2:13 plugins[0].cors.statuses.ok: expected a whole number from 0 to 65535, found string `ok`",
    );
}

#[test]
fn enums_name_their_words() {
    let (place, help) = failure("origins: []\nmode: stritc\n");
    assert_eq!(place, "2:7 plugins[0].cors.mode: unknown value `stritc`");
    assert_eq!(help.as_deref(), Some("did you mean `strict`?"));
    let (place, help) = failure("origins: []\nmode: { limits: 1 }\n");
    assert_eq!(place, "2:9 plugins[0].cors.mode: unknown key `limits` in `mode`");
    assert_eq!(help.as_deref(), Some("did you mean `limit`?"));
    assert_failure(
        "origins: []\nmode: { limit: x }\n",
        "2:16 plugins[0].cors.mode.limit: expected a whole number from 0 to 255, found string `x`",
    );
    assert_failure(
        "origins: []\nmode: { limit: 1, custom: 2 }\n",
        "2:7 plugins[0].cors.mode: expected a table with exactly one key",
    );
    assert_failure(
        "origins: []\nmode: limit\n",
        "2:7 plugins[0].cors.mode: this word needs a value: write it as a table, `{ word: value }`",
    );
}

#[test]
fn what_a_type_leaves_over_is_an_error() {
    assert_failure("origins: []\npair: [1, x, 3]\n", "2:14 plugins[0].cors.pair[2]: one item too many");
    assert_failure(
        "origins: []\npair: [1]\n",
        "2:7 plugins[0].cors.pair: expected a list of length 2, found 1 items",
    );
}

#[test]
fn values_from_the_environment_are_not_shown() {
    assert_failure(
        "origins: []\nmax_age: ${TOKEN}\n",
        "2:10 plugins[0].cors.max_age: expected a whole number from 0 to 65535, found a value from the environment",
    );
    assert_failure("origins: []\nmode: ${TOKEN}\n", "2:7 plugins[0].cors.mode: unknown value `${TOKEN}`");
}

#[test]
fn a_quoted_variable_may_be_a_number_but_stays_a_text_elsewhere() {
    assert_eq!(node("origins: []\nmax_age: \"${AGE}\"\n").read::<Cors>("").unwrap().max_age, Some(600));
    assert_eq!(node("a: \"${AGE}\"").to_json(), serde_json::json!({ "a": "600" }));
    assert_failure(
        "origins: []\nmax_age: \"600\"\n",
        "2:10 plugins[0].cors.max_age: expected a whole number from 0 to 65535, found string `600`",
    );
}

#[test]
fn an_error_after_the_fact_is_about_the_whole_node() {
    let node = node("a: 1\n");
    let mut reader = node.reader("plugins[0].cors");
    assert!(!reader.note("the two contradict each other"));
    let errors = reader.into_errors();
    let [error] = errors.as_slice() else { panic!("{errors:?}") };
    assert_eq!(error.to_string(), "plugins[0].cors: the two contradict each other");
    assert_eq!((error.span.line, error.span.column), (1, 1));
}

#[test]
fn an_empty_section_is_an_empty_table() {
    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Limits {
        body: u32,
    }
    #[derive(Debug, Deserialize, PartialEq)]
    struct Outer {
        limits: Limits,
    }
    assert_eq!(node("limits:\n").read::<Outer>("").unwrap().limits, Limits::default());
}
