//! What has to hold of a caller, and of what it asks for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use http::header::{HeaderName, HeaderValue};
use portcullis_plugin::{BuildError, Exchange, Principal};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::pattern::Pattern;
use super::roles::Has;
use crate::claims::claim;
use crate::names::header_name;

/// What has to hold, all of it.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
pub(super) struct ConditionConfig {
    /// Roles of which the caller has at least one. Default: any, or none.
    roles: Vec<String>,
    /// Permissions that the caller's roles have, all of them. Default: none.
    permissions: Vec<String>,
    /// Scopes that the caller was granted (RFC 6749, 3.3), all of them. Default: none.
    scopes: Vec<String>,
    /// Claims and what they are, all of them; of a claim that is a list, one item. Default: none.
    claims: BTreeMap<String, Value>,
    /// Comparisons that hold, all of them: `path.user == principal.id`. Default: none.
    r#where: Vec<String>,
}

pub(super) struct Condition {
    roles: Box<[String]>,
    permissions: Box<[String]>,
    scopes: Box<[String]>,
    claims: Box<[(String, Value)]>,
    comparisons: Box<[Comparison]>,
}

struct Comparison {
    text: String,
    left: Side,
    relation: Relation,
    right: Side,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Equal,
    Different,
    Within,
}

/// One side of a comparison.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    Text(String),
    Path(String),
    PrincipalId,
    Claim(String),
    Header(HeaderName),
    Query(String),
}

impl Condition {
    pub(super) fn build(at: &str, config: ConditionConfig) -> Result<Self, BuildError> {
        let ConditionConfig { roles, permissions, scopes, claims, r#where } = config;
        let is_empty = roles.is_empty() && permissions.is_empty() && scopes.is_empty();
        if is_empty && claims.is_empty() && r#where.is_empty() {
            return Err(BuildError::at(at, "a condition of nothing").help("`allow: authenticated` is that"));
        }
        let comparison =
            |(index, text): (usize, String)| Comparison::parse(&format!("{at}.where[{index}]"), text);
        let comparisons = r#where.into_iter().enumerate().map(comparison).collect::<Result<_, _>>()?;
        Ok(Condition {
            roles: roles.into(),
            permissions: permissions.into(),
            scopes: scopes.into(),
            claims: claims.into_iter().collect(),
            comparisons,
        })
    }

    pub(super) fn holds(&self, has: &Has<'_>, exchange: &Exchange, path: Option<&Pattern>) -> bool {
        (self.roles.is_empty() || self.roles.iter().any(|role| has.role(role)))
            && self.permissions.iter().all(|permission| has.permission(permission))
            && self.scopes.iter().all(|scope| has.principal.scopes.contains(scope))
            && self.claims.iter().all(|(name, wanted)| match claim(&has.principal.claims, name) {
                Some(Value::Array(items)) => items.contains(wanted),
                found => found == Some(wanted),
            })
            && self.comparisons.iter().all(|comparison| comparison.holds(has.principal, exchange, path))
    }

    pub(super) fn permissions(&self) -> impl Iterator<Item = &str> {
        self.permissions.iter().map(String::as_str)
    }

    /// What a client is told that lacks scopes (RFC 6750, 3.1).
    pub(super) fn challenge(&self) -> Option<HeaderValue> {
        let is_token = |scope: &String| {
            !scope.is_empty() && scope.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte))
        };
        if self.scopes.is_empty() || !self.scopes.iter().all(is_token) {
            return None;
        }
        let scopes = self.scopes.join(" ");
        HeaderValue::try_from(format!("Bearer error=\"insufficient_scope\", scope=\"{scopes}\"")).ok()
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.roles.is_empty() {
            parts.push(format!("role {}", self.roles.join(" or ")));
        }
        for (what, names) in [("permission", &self.permissions), ("scope", &self.scopes)] {
            parts.extend(names.iter().map(|name| format!("{what} {name}")));
        }
        parts.extend(self.claims.iter().map(|(name, wanted)| format!("claim {name} = {wanted}")));
        parts.extend(self.comparisons.iter().map(|comparison| comparison.text.clone()));
        f.write_str(&parts.join(" and "))
    }
}

const HELP: &str = "a comparison is `path.user == principal.id`: two sides with `==`, `!=` or `in` between them, each of \
                    `path.NAME`, `principal.id`, `claims.NAME`, `header.NAME`, `query.NAME` and `'a text'`";

impl Comparison {
    fn parse(at: &str, text: String) -> Result<Self, BuildError> {
        let wrong = |what: String| BuildError::at(at, what).help(HELP);
        let relations =
            [(" == ", Relation::Equal), (" != ", Relation::Different), (" in ", Relation::Within)];
        let found = relations.iter().find_map(|(word, relation)| {
            let (left, right) = text.split_once(word)?;
            Some((left, *relation, right))
        });
        let Some((left, relation, right)) = found else {
            return Err(wrong(format!("`{text}` compares nothing")));
        };
        let side =
            |side: &str| Side::parse(at, side.trim())?.ok_or_else(|| wrong(format!("`{side}` is no side")));
        let (left, right) = (side(left)?, side(right)?);
        if relation == Relation::Within && !matches!(right, Side::Claim(_)) {
            return Err(wrong("only a claim can be a list to be `in`".to_owned()));
        }
        Ok(Comparison { text, left, relation, right })
    }

    fn holds(&self, principal: &Principal, exchange: &Exchange, path: Option<&Pattern>) -> bool {
        let Some(left) = self.left.text(principal, exchange, path) else { return false };
        if self.relation == Relation::Within {
            let Side::Claim(name) = &self.right else { return false };
            let list = claim(&principal.claims, name).and_then(Value::as_array);
            return list
                .is_some_and(|items| items.iter().any(|item| scalar(item) == Some(Cow::Borrowed(&*left))));
        }
        let Some(right) = self.right.text(principal, exchange, path) else { return false };
        (left == right) == (self.relation == Relation::Equal)
    }
}

impl Side {
    fn parse(at: &str, text: &str) -> Result<Option<Self>, BuildError> {
        let quoted = ['\'', '"'].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote));
        if let Some(text) = quoted {
            return Ok(Some(Side::Text(text.to_owned())));
        }
        if text == "principal.id" {
            return Ok(Some(Side::PrincipalId));
        }
        let Some((of, name)) = text.split_once('.').filter(|(_, name)| !name.is_empty()) else {
            return Ok(None);
        };
        Ok(match of {
            "path" => Some(Side::Path(name.to_owned())),
            "claims" => Some(Side::Claim(name.to_owned())),
            "header" => Some(Side::Header(header_name(at, name)?)),
            "query" => Some(Side::Query(name.to_owned())),
            _ => None,
        })
    }

    /// What is there; of what comes twice nobody knows which counts, so it is not there.
    fn text<'a>(
        &'a self,
        principal: &'a Principal,
        exchange: &'a Exchange,
        path: Option<&Pattern>,
    ) -> Option<Cow<'a, str>> {
        let request = exchange.request();
        match self {
            Side::Text(text) => Some(text.into()),
            Side::PrincipalId => Some((&principal.id).into()),
            Side::Claim(name) => claim(&principal.claims, name).and_then(scalar),
            Side::Path(name) => {
                let own = path.filter(|path| path.has(name));
                let raw = match own {
                    Some(path) => path.capture(name, request.path()),
                    None => exchange.capture(name),
                };
                percent_decoded(raw?)
            }
            Side::Header(name) => {
                let mut values = request.headers().get_all(name).iter();
                let value = values.next().filter(|_| values.next().is_none())?;
                value.to_str().ok().map(Cow::Borrowed)
            }
            Side::Query(name) => {
                let mut values = request.query_params(name);
                values.next().filter(|_| values.next().is_none())
            }
        }
    }
}

/// A value as text, unless it is a table, a list or nothing.
fn scalar(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(text.into()),
        Value::Number(number) => Some(number.to_string().into()),
        Value::Bool(is_so) => Some(if *is_so { "true" } else { "false" }.into()),
        _ => None,
    }
}

/// As the upstream will read it; none if that is no text.
fn percent_decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(text.into());
    }
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let hex = |digit: u8| (digit as char).to_digit(16);
            let [high, low, tail @ ..] = tail else { return None };
            bytes.push((hex(*high)? * 16 + hex(*low)?) as u8);
            rest = tail;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}
