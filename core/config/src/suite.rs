//! Files of policy tests (`NAME.test.yaml`): requests that are made up, what is given beside them, and what is to
//! become of them. Their field docs become the descriptions of their JSON Schema.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Deserialize;
use serde_json::Value;

use crate::config::{Predicate, Status};
use crate::diagnostics::{Diagnostic, Diagnostics, Source};
use crate::error::NodeError;
use crate::load::parse_table;
use crate::node::Node;
use crate::values::{ByteSize, Duration, HeaderName, Method, Moment, RequestTarget};
use crate::yaml::Env;

/// How the name of every file of tests ends.
pub const SUITE_ENDING: &str = ".test.yaml";

/// The tests of a policy, or of a whole configuration.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Portcullis policy tests")]
pub struct Suite {
    /// The policy that is tested, relative to this file. Default: the one of the same name beside it. Example:
    /// `../scripts/require-header.rhai`.
    #[serde(default)]
    pub policy: Option<PathBuf>,
    /// The configuration that is tested, relative to this file. Default: the one of the same name beside it, where there
    /// is no such policy. Example: `portcullis.yaml`.
    #[serde(default)]
    pub gateway: Option<PathBuf>,
    /// The policy's options, in place of the file of options beside it. Example:
    /// `{ config: { header: x-admin-key }, grants: { clock: true } }`.
    #[serde(default)]
    pub options: Option<serde_json::Map<String, Value>>,
    /// Variables for `${NAME}` and `env:NAME`, before those of the environment. Default: none.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// What is given in every case. Default: nothing.
    #[serde(default)]
    pub given: Given,
    /// The cases, each by itself: what one leaves behind, no other finds.
    #[schemars(length(min = 1))]
    pub cases: Vec<Case>,
}

/// A case: one request, or several one after the other.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it shows. Example: `refuses without a key`.
    pub name: String,
    /// What is given, besides what is given in every case. Default: nothing.
    #[serde(default)]
    pub given: Given,
    /// The request. Default: `GET /`, unless there are `steps`.
    #[serde(default)]
    pub request: Option<Asked>,
    /// What is to become of it.
    #[serde(default)]
    pub expect: Option<Expect>,
    /// Several requests in place of one; what one leaves behind, the next ones find. Default: none.
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// A request of several.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// How much time has passed since the one before. Default: none. Example: `1m`.
    #[serde(default)]
    pub after: Option<Duration>,
    /// How often it is made. Default `1`.
    #[serde(default = "once")]
    pub times: NonZeroU32,
    /// What is given from here on, besides what was given. Default: nothing.
    #[serde(default)]
    pub given: Given,
    /// The request. Default: `GET /`.
    #[serde(default)]
    pub request: Asked,
    /// What is to become of it, each time.
    pub expect: Expect,
}

fn once() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// A request.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Asked {
    /// Its method. Default `GET`.
    pub method: Method,
    /// Its path, with the query. Default `/`. Example: `/orders?page=2`.
    pub path: RequestTarget,
    /// Its headers; `host` is `localhost` unless it is said. Default: none.
    pub headers: BTreeMap<HeaderName, String>,
    /// Its body: a text, or anything else as JSON. Default: none.
    pub body: Option<Value>,
    /// The client's address. Default `127.0.0.1`.
    pub client: IpAddr,
    /// The listener that it comes through, by its name. Default: the first.
    pub listener: Option<String>,
}

/// What is given beside a request.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Given {
    /// The time, which then stands still but for `after`. Default: that of the machine. Example: `2026-01-31T09:00:00Z`.
    pub time: Option<Moment>,
    /// Who is calling, as if a plugin in front had found out. Default: nobody.
    pub principal: Option<GivenPrincipal>,
    /// What plugins in front have noted. Default: nothing.
    pub facts: BTreeMap<String, Value>,
    /// What upstreams answer, by their names, to requests and to calls of plugins. The upstream behind a policy that is
    /// tested alone is `origin`. Default: 200 without a body.
    pub upstreams: BTreeMap<String, Answer>,
    /// What plugins find in the store, by their names and by key: texts, or anything else as JSON. It is put there before
    /// the request. Default: nothing.
    pub store: BTreeMap<String, BTreeMap<String, Value>>,
}

/// Who is calling.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GivenPrincipal {
    /// Stable identifier, such as a token's `sub`.
    pub id: String,
    /// Who vouches for it. Default: nobody.
    #[serde(default)]
    pub issuer: String,
    /// Roles. Default: none.
    #[serde(default)]
    pub roles: Vec<String>,
    /// OAuth scopes. Default: none.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Everything else that is known. Default: nothing.
    #[serde(default)]
    pub claims: serde_json::Map<String, Value>,
}

/// What an upstream answers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Answer {
    /// The status. Default `200`.
    pub status: Status,
    /// Headers. Default: none.
    pub headers: BTreeMap<HeaderName, String>,
    /// The body: a text, or anything else as JSON. Default: none.
    pub body: Option<Value>,
    /// It closes the connection instead of answering. Default `false`.
    pub fails: bool,
}

/// What is to become of a request. What is not said is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Expect {
    /// Whether the upstream answered, somebody else did, or nobody. Default: any.
    pub verdict: Option<Verdict>,
    /// The status that the client gets. Default: any.
    pub status: Option<Status>,
    /// The reason code of who refused it. Default: any.
    pub reason: Option<String>,
    /// Who answered in place of the upstream: a plugin by its name, or `core.<part>`. Default: anybody.
    pub by: Option<String>,
    /// Headers that the client gets: a value, `{ present: false }` or `{ regex: "^a" }`. Default: any.
    pub headers: BTreeMap<HeaderName, Predicate>,
    /// The body that the client gets: a text, or anything else as JSON. Default: any.
    pub body: Option<Value>,
    /// What upstreams get, by their names. Default: anything.
    pub upstreams: BTreeMap<String, Sent>,
    /// Facts that are there in the end. Default: any.
    pub facts: BTreeMap<String, Value>,
    /// The identifier of who is calling, in the end. Default: anybody.
    pub principal: Option<String>,
    /// The most that any call of a plugin may use up. Default: what its own limits allow.
    pub budget: Option<Budget>,
}

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The upstream: everybody let the request go on.
    Continue,
    /// A plugin or the gateway.
    Respond,
    /// Nobody: the connection was closed.
    Drop,
}

/// What an upstream gets.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sent {
    /// How many requests. Default: any number if nothing else is said of them, else at least one. Example: `0`.
    pub times: Option<u32>,
    /// The method of the last. Default: any.
    pub method: Option<Method>,
    /// The path of the last, with its query. Default: any.
    pub path: Option<String>,
    /// Headers of the last, in the forms of those that clients get. Default: any.
    pub headers: BTreeMap<HeaderName, Predicate>,
    /// The body of the last: a text, or anything else as JSON. Default: any.
    pub body: Option<Value>,
}

/// What a call may use up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Operations of a script. Default: any number.
    pub operations: Option<u64>,
    /// Memory of a module. Default: any size.
    pub memory: Option<ByteSize>,
}

/// A file of tests as it was read.
#[derive(Clone, Debug)]
pub struct LoadedSuite {
    /// What it says.
    pub suite: Suite,
    /// The file itself.
    pub source: Source,
    /// The same as a tree with places.
    pub root: Node,
}

impl LoadedSuite {
    /// An error about the value at `path`, such as `cases[2].expect.status`.
    pub fn error(&self, path: &str, message: impl Into<String>) -> Diagnostic {
        NodeError::new(self.root.locate(path), path, message).diagnostic(&self.source)
    }
}

impl Case {
    /// Its requests, each with its path within the case.
    pub fn steps(&self) -> Vec<(String, Step)> {
        if !self.steps.is_empty() {
            let steps = self.steps.iter().enumerate();
            return steps.map(|(at, step)| (format!(".steps[{at}]"), step.clone())).collect();
        }
        let step = Step {
            after: None,
            times: once(),
            given: Given::default(),
            request: self.request.clone().unwrap_or_default(),
            expect: self.expect.clone().unwrap_or_default(),
        };
        vec![(String::new(), step)]
    }
}

impl Given {
    /// These, and of `before` what they say nothing about.
    #[must_use]
    pub fn over(&self, before: &Given) -> Given {
        let mut given = before.clone();
        given.time = self.time.or(given.time);
        given.principal = self.principal.clone().or(given.principal);
        given.facts.extend(self.facts.clone());
        given.upstreams.extend(self.upstreams.clone());
        given.store.extend(self.store.clone());
        given
    }
}

impl Suite {
    /// The names of all upstreams that it says anything about.
    pub fn upstreams(&self) -> BTreeSet<&str> {
        let cases = self.cases.iter();
        let given = cases
            .clone()
            .flat_map(|case| [&case.given].into_iter().chain(case.steps.iter().map(|step| &step.given)));
        let given = given.chain([&self.given]).flat_map(|given| given.upstreams.keys());
        let expected =
            cases.flat_map(|case| case.expect.iter().chain(case.steps.iter().map(|step| &step.expect)));
        given.chain(expected.flat_map(|expect| expect.upstreams.keys())).map(String::as_str).collect()
    }
}

impl Default for Asked {
    fn default() -> Self {
        Asked {
            method: Method::get(),
            path: RequestTarget::root(),
            headers: BTreeMap::new(),
            body: None,
            client: Ipv4Addr::LOCALHOST.into(),
            listener: None,
        }
    }
}

/// Reads a file of tests.
pub fn parse_suite(path: &Path, text: &str, env: &Env<'_>) -> Result<LoadedSuite, Diagnostics> {
    let (source, root) = parse_table(path, text, env)?;
    let (suite, mut errors) = root.read_partly::<Suite>("");
    if let Some(suite) = &suite {
        errors.extend(judge(suite, &root));
    }
    let mut found = Diagnostics(errors.into_iter().map(|error| error.diagnostic(&source)).collect());
    found.sort();
    match suite {
        Some(suite) if found.is_empty() => Ok(LoadedSuite { suite, source, root }),
        _ => Err(found),
    }
}

/// What no type says.
fn judge(suite: &Suite, root: &Node) -> Vec<NodeError> {
    let mut errors = Vec::new();
    let mut wrong =
        |path: &str, message: String| errors.push(NodeError::new(root.locate(path), path, message));
    if suite.policy.is_some() && suite.gateway.is_some() {
        wrong("gateway", "either a `policy` is tested or a `gateway`".to_owned());
    }
    if suite.cases.is_empty() {
        wrong("cases", "expected at least one case".to_owned());
    }
    if suite.gateway.is_some() && suite.options.is_some() {
        wrong("options", "they are for a policy that is tested alone; a gateway's have their own".to_owned());
    }
    let mut names = BTreeSet::new();
    for (at, case) in suite.cases.iter().enumerate() {
        let path = format!("cases[{at}]");
        if !names.insert(&case.name) {
            wrong(&format!("{path}.name"), format!("there is another case `{}`", case.name));
        }
        match (&case.expect, case.steps.is_empty()) {
            (None, true) => wrong(&path, "it expects nothing: write `expect`, or `steps`".to_owned()),
            (Some(_), false) => {
                wrong(&format!("{path}.expect"), "a case with `steps` has `expect` in each".to_owned())
            }
            (None, false) if case.request.is_some() => {
                wrong(&format!("{path}.request"), "a case with `steps` has `request` in each".to_owned());
            }
            _ => {}
        }
    }
    errors
}

/// The JSON Schema of a file of tests.
pub fn suite_schema() -> Value {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Suite>().to_value()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<LoadedSuite, String> {
        parse_suite(Path::new("a.test.yaml"), text, &|_| None).map_err(|errors| errors.render(false))
    }

    #[test]
    fn a_suite_is_read_with_all_that_may_be_left_out() {
        let text = "cases: [{ name: a, expect: { status: 200 } }]";
        let loaded = parsed(text).unwrap();
        let [(path, step)] = &loaded.suite.cases[0].steps()[..] else { panic!() };
        assert_eq!((path.as_str(), step.request.path.as_str(), step.times.get()), ("", "/", 1));
        assert_eq!(step.expect.status.map(Status::code), Some(200));
    }

    #[test]
    fn every_error_of_a_suite_is_shown_where_it_is() {
        let text = "policy: a.rhai\ngateway: a.yaml\ncases:\n  - name: a\n  - name: a\n    expect: { stauts: 200 }\n    steps: [{ expect: { status: 1000 } }]\n";
        let errors = parsed(text).unwrap_err();
        for part in ["a.test.yaml:6", "did you mean `status`?", "a.test.yaml:7", "final status"] {
            assert!(errors.contains(part), "{part} is not in\n{errors}");
        }
        let text = "policy: a.rhai\ngateway: a.yaml\ncases:\n  - name: a\n  - name: a\n    expect: {}\n    steps: [{ expect: {} }]\n";
        let errors = parsed(text).unwrap_err();
        for part in
            ["either a `policy`", "it expects nothing", "there is another case `a`", "has `expect` in each"]
        {
            assert!(errors.contains(part), "{part} is not in\n{errors}");
        }
    }

    #[test]
    fn what_is_given_later_goes_over_what_was_given() {
        let text =
            "given: { facts: { a: 1, b: 1 } }\ncases: [{ name: a, given: { facts: { b: 2 } }, expect: {} }]";
        let suite = parsed(text).unwrap().suite;
        let given = suite.cases[0].given.over(&suite.given);
        assert_eq!(given.facts, BTreeMap::from([("a".to_owned(), 1.into()), ("b".to_owned(), 2.into())]));
    }
}
