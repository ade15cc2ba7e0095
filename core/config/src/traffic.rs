//! Where a route sends its requests: to one upstream, to several of them by shares and conditions, and copies of them
//! to another.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::{Predicate, at_least_one};
use crate::upstreams::{HashBy, cookie_name};
use crate::values::{ByteSize, HeaderName, Percent};

/// Where a route's requests are sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// To the upstream of this name.
    Upstream(String),
    /// To several upstreams.
    Split(Split),
}

/// Several upstreams, of which each request goes to one.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// The upstreams. The first whose `when` fits takes the request; requests that fit none are shared among those
    /// without `when`, as their weights say.
    #[schemars(length(min = 1))]
    pub split: Vec<Arm>,
    /// What decides where among the weights a request falls: `lot`, or the `client`, the `principal`,
    /// `{ header: x-tenant }` or `{ cookie: session }`, so that each of these stays where it is, or
    /// `{ sticky: { cookie: name } }`, a cookie that the gateway sets. Requests without it are spread by lot.
    /// Default `lot`.
    #[serde(default)]
    pub by: SplitBy,
}

/// One of the upstreams of a split.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Name of the upstream.
    pub upstream: String,
    /// Share of the requests, relative to the other weights, at most 1000000; 0 for none. Default `1`; not beside
    /// `when`.
    #[serde(default)]
    pub weight: Option<u32>,
    /// Takes all requests that are so. Everything given must fit. Default: nothing, it has a weight.
    #[serde(default)]
    pub when: Option<When>,
}

/// What a request must be, as it is after the plugins of its way in.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct When {
    /// Headers, all of them, in the forms that `match.headers` has. Default: none. Example: `{ x-canary: "1" }`.
    pub headers: BTreeMap<HeaderName, Predicate>,
    /// Who calls, as an authentication plugin found out: any of these ids. Default: whoever.
    /// Example: `[ann, ben]`.
    pub principals: Vec<String>,
    /// Roles of who calls, any of them. Default: whichever. Example: `[tester]`.
    pub roles: Vec<String>,
}

/// What decides where among the weights of a split a request falls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SplitBy {
    /// A lot for each request.
    #[default]
    Lot,
    /// A part of the request, which always falls to the same place.
    Hash(HashBy),
    /// A lot for each client, which a cookie of this name keeps.
    Sticky {
        /// Name of the cookie.
        cookie: String,
    },
}

/// Copies of a route's requests for another upstream, whose answers are thrown away.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// Name of the upstream that gets the copies.
    pub upstream: String,
    /// Share of the requests that is copied. Default `100%`.
    #[serde(default = "whole")]
    pub share: Percent,
    /// Largest body that is copied: requests with a longer one are not. Default `64KiB`.
    #[serde(default = "default_body")]
    pub body: ByteSize,
    /// Copies under way at a time, over all workers; while there are as many, requests are not copied. Default `100`.
    #[serde(default = "default_max_requests")]
    pub max_requests: NonZeroU32,
}

impl Target {
    /// The upstreams that requests may go to, with the place of each in the route.
    pub fn upstreams(&self) -> Vec<(String, &str)> {
        match self {
            Self::Upstream(name) => vec![("upstream".to_owned(), name)],
            Self::Split(Split { split, .. }) => {
                let place = |index| format!("upstream.split[{index}].upstream");
                split.iter().enumerate().map(|(index, arm)| (place(index), &*arm.upstream)).collect()
            }
        }
    }
}

impl Arm {
    /// Its share of the requests that no condition took.
    pub fn share(&self) -> u32 {
        match self.when {
            Some(_) => 0,
            None => self.weight.unwrap_or(1),
        }
    }
}

fn whole() -> Percent {
    Percent(100)
}

fn default_body() -> ByteSize {
    ByteSize(64 << 10)
}

fn default_max_requests() -> NonZeroU32 {
    at_least_one(100)
}

impl<'de> Deserialize<'de> for SplitBy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SplitByVisitor)
    }
}

struct SplitByVisitor;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum SplitByTable {
    Header(HeaderName),
    #[serde(deserialize_with = "cookie_name")]
    Cookie(String),
    Sticky(StickyTable),
}

/// A cookie of the gateway's own, which keeps where among the weights a client falls.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StickyTable {
    /// Name of the cookie. Example: `canary`.
    #[serde(deserialize_with = "cookie_name")]
    cookie: String,
}

impl<'de> Visitor<'de> for SplitByVisitor {
    type Value = SplitBy;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "`lot`, `client`, `principal`, `{ header: x-tenant }`, `{ cookie: session }` or \
             `{ sticky: { cookie: canary } }`",
        )
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<SplitBy, E> {
        match text {
            "lot" => Ok(SplitBy::Lot),
            "client" => Ok(SplitBy::Hash(HashBy::Client)),
            "principal" => Ok(SplitBy::Hash(HashBy::Principal)),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SplitBy, A::Error> {
        Ok(match SplitByTable::deserialize(MapAccessDeserializer::new(map))? {
            SplitByTable::Header(name) => SplitBy::Hash(HashBy::Header(name)),
            SplitByTable::Cookie(name) => SplitBy::Hash(HashBy::Cookie(name)),
            SplitByTable::Sticky(StickyTable { cookie }) => SplitBy::Sticky { cookie },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Action;

    /// The first route's target and mirror, or the first error without its excerpt.
    fn read(settings: &str) -> Result<(Target, Option<Mirror>), String> {
        let text = format!(
            "listeners: [{{ bind: 0.0.0.0:80 }}]\nupstreams: {{ a: {{ endpoints: [http://a:1] }}, b: {{ endpoints: [http://b:1] }} }}\nroutes: [{{ {settings} }}]\n"
        );
        match crate::parse(Path::new("x.yaml"), &text, &|_| None) {
            Ok(loaded) => {
                let route = &loaded.config.routes[0];
                let Action::Upstream(target) = &route.action else { panic!("{route:?}") };
                Ok((target.clone(), route.mirror.clone()))
            }
            Err(errors) => Err(errors.0[0].message.clone()),
        }
    }

    #[test]
    fn a_split_has_conditions_and_weights() {
        let (target, _) = read(
            "upstream: { by: { sticky: { cookie: c } }, split: [{ upstream: b, when: { roles: [tester] } }, { upstream: b, weight: 5 }, { upstream: a, weight: 95 }] }",
        )
        .unwrap();
        let Target::Split(Split { split, by }) = &target else { panic!("{target:?}") };
        assert_eq!(split.iter().map(Arm::share).collect::<Vec<_>>(), [0, 5, 95]);
        assert_eq!(*by, SplitBy::Sticky { cookie: "c".to_owned() });
        let by = |by: &str| match read(&format!("upstream: {{ split: [{{ upstream: a }}], by: {by} }}")) {
            Ok((Target::Split(split), _)) => split.by,
            other => panic!("{other:?}"),
        };
        assert_eq!((by("lot"), by("client")), (SplitBy::Lot, SplitBy::Hash(HashBy::Client)));
        assert_eq!(by("{ cookie: s }"), SplitBy::Hash(HashBy::Cookie("s".to_owned())));
    }

    #[test]
    fn a_mirror_has_defaults() {
        let (target, mirror) = read("upstream: a, mirror: { upstream: b }").unwrap();
        assert_eq!(target, Target::Upstream("a".to_owned()));
        let mirror = mirror.unwrap();
        assert_eq!((mirror.share, mirror.body.0, mirror.max_requests.get()), (Percent(100), 65_536, 100));
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for (settings, expected) in [
            ("upstream: { split: [] }", "routes[0].upstream.split: at least one upstream is needed"),
            (
                "upstream: { split: [{ upstream: c }] }",
                "routes[0].upstream.split[0].upstream: there is no upstream `c`",
            ),
            (
                "upstream: { split: [{ upstream: a, weight: 0 }] }",
                "routes[0].upstream.split: no upstream takes requests that fit no `when`",
            ),
            (
                "upstream: { split: [{ upstream: a, when: { roles: [x] } }] }",
                "routes[0].upstream.split: no upstream takes requests that fit no `when`",
            ),
            (
                "upstream: { split: [{ upstream: a }, { upstream: b, when: {} }] }",
                "routes[0].upstream.split[1].when: this fits every request",
            ),
            (
                "upstream: { split: [{ upstream: a, weight: 1000001 }] }",
                "routes[0].upstream.split[0].weight: more than 1000000",
            ),
            (
                "upstream: { split: [{ upstream: a }, { upstream: b, weight: 1, when: { roles: [x] } }] }",
                "routes[0].upstream.split[1].weight: an upstream has either `when` or `weight`",
            ),
            (
                "upstream: { split: [{ upstream: a }], by: ip }",
                "routes[0].upstream.by: expected `lot`, `client`",
            ),
            ("upstream: a, mirror: { upstream: c }", "routes[0].mirror.upstream: there is no upstream `c`"),
            (
                "respond: {}, mirror: { upstream: a }",
                "routes[0].mirror: only what is sent to an upstream can be copied",
            ),
            ("respond: {}, timeout: 1s", "routes[0].timeout: only what is sent to an upstream takes time"),
            ("upstream: a, timeout: 0s", "routes[0].timeout: must be longer than zero"),
        ] {
            let error = read(settings).unwrap_err();
            assert!(error.starts_with(expected), "{settings}: {error}");
        }
    }
}
