//! What is counted apart.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use http::header::HeaderName;
use portcullis_plugin::{BuildError, Exchange};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer, StrDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::names::header_name;

/// A part of a key, or several.
pub(super) struct KeyConfig(Vec<PartConfig>);

/// A part of a key, as a table names it.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum PartConfig {
    /// The client's address.
    Client,
    /// Who is calling.
    Principal,
    /// The route.
    Route,
    /// A request header.
    Header(String),
}

/// Tells requests apart.
#[derive(Debug)]
pub(super) struct Key(Box<[Part]>);

/// A part of a key.
#[derive(Debug)]
enum Part {
    /// The client's address; of an IPv6 address these bits.
    Client {
        ipv6_mask: u128,
        ipv6_prefix: u8,
    },
    Principal,
    Route,
    Header(HeaderName),
}

impl Key {
    pub(super) fn new(at: &str, config: &KeyConfig, ipv6_prefix: u8) -> Result<Self, BuildError> {
        if config.0.is_empty() {
            return Err(BuildError::at(at, "a key of nothing").help(format!("write {EXPECTED}")));
        }
        let ipv6_mask = u128::MAX << 128_u32.saturating_sub(ipv6_prefix.into()).min(127);
        let part = |part: &PartConfig| {
            Ok(match part {
                PartConfig::Client => Part::Client { ipv6_mask, ipv6_prefix },
                PartConfig::Principal => Part::Principal,
                PartConfig::Route => Part::Route,
                PartConfig::Header(name) => Part::Header(header_name(at, name)?),
            })
        };
        config.0.iter().map(part).collect::<Result<_, _>>().map(Key)
    }

    /// The key of a request.
    pub(super) fn of<'k>(&'k self, exchange: &'k Exchange) -> impl Hash + 'k {
        KeyOf { key: self, exchange }
    }
}

/// In words, the same for the same key.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.0 {
            match part {
                Part::Client { ipv6_prefix, .. } => write!(f, "client/{ipv6_prefix},")?,
                Part::Principal => f.write_str("principal,")?,
                Part::Route => f.write_str("route,")?,
                Part::Header(name) => write!(f, "header {name},")?,
            }
        }
        Ok(())
    }
}

/// Hashed part by part, each with its length, so that no two keys can be shifted into each other.
struct KeyOf<'k> {
    key: &'k Key,
    exchange: &'k Exchange,
}

impl Hash for KeyOf<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for part in &self.key.0 {
            part.hash(self.exchange, state);
        }
    }
}

impl Part {
    fn hash(&self, exchange: &Exchange, state: &mut impl Hasher) {
        match self {
            Part::Client { ipv6_mask, .. } => match exchange.client().to_canonical() {
                IpAddr::V4(address) => address.to_bits().hash(state),
                IpAddr::V6(address) => (address.to_bits() & ipv6_mask).hash(state),
            },
            Part::Principal => {
                let principal = exchange.principal().map(|principal| (&principal.issuer, &principal.id));
                principal.hash(state);
            }
            Part::Route => exchange.route().hash(state),
            // All of them: nobody knows which one the upstream takes.
            Part::Header(name) => {
                let values = exchange.request().headers().get_all(name);
                values.iter().for_each(|value| Some(value.as_bytes()).hash(state));
                None::<&[u8]>.hash(state);
            }
        }
    }
}

const EXPECTED: &str = "`client`, `principal`, `route`, `{ header: x-tenant }`, or a list of them";

impl<'de> Deserialize<'de> for KeyConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = KeyConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<KeyConfig, E> {
        PartConfig::deserialize(StrDeserializer::new(text)).map(|part| KeyConfig(vec![part]))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<KeyConfig, A::Error> {
        PartConfig::deserialize(MapAccessDeserializer::new(map)).map(|part| KeyConfig(vec![part]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<KeyConfig, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(seq)).map(KeyConfig)
    }
}

impl JsonSchema for KeyConfig {
    fn schema_name() -> Cow<'static, str> {
        "Key".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let part = generator.subschema_for::<PartConfig>();
        json_schema!({ "anyOf": [part, { "type": "array", "items": part, "minItems": 1 }] })
    }
}
