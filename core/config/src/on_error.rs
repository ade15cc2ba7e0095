//! What happens when a plugin itself fails.

use std::fmt;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::{at_least_one, seconds};
use crate::values::{Duration, positive};

/// What happens when a plugin itself fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The request is refused.
    #[default]
    Deny,
    /// It goes on as if the plugin were not there.
    Allow,
    /// A plugin that keeps failing is not called for a while.
    Quarantine(Quarantine),
}

/// When a plugin that keeps failing is not called, and for how long. Then one request at a time tries it: after three that
/// went well it is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Quarantine {
    /// Failures after which the plugin is not called. Default `5`.
    pub failures: NonZeroU32,
    /// In which time they are counted. Default `10s`.
    #[serde(deserialize_with = "positive")]
    pub within: Duration,
    /// For how long it is not called at first; each failed try makes it twice as long. Default `1s`.
    #[serde(deserialize_with = "positive")]
    pub first: Duration,
    /// The longest time for which it is not called. Default `5m`, or `first` if that is longer.
    #[serde(deserialize_with = "positive")]
    pub longest: Duration,
    /// What becomes of requests that the plugin fails at, and of those for which it is not called. Default `deny`: with
    /// `allow`, whoever can make it fail can switch it off.
    pub meanwhile: Meanwhile,
}

/// What becomes of requests that a plugin does not judge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Meanwhile {
    /// They are refused.
    #[default]
    Deny,
    /// They go on.
    Allow,
}

impl Default for Quarantine {
    fn default() -> Self {
        Self {
            failures: at_least_one(5),
            within: seconds(10),
            first: seconds(1),
            longest: seconds(300),
            meanwhile: Meanwhile::Deny,
        }
    }
}

impl<'de> Deserialize<'de> for OnError {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnErrorVisitor)
    }
}

struct OnErrorVisitor;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum OnErrorTable {
    Quarantine(Quarantine),
}

impl<'de> Visitor<'de> for OnErrorVisitor {
    type Value = OnError;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`deny`, `allow`, `quarantine` or `{ quarantine: { failures: 5 } }`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<OnError, E> {
        match text {
            "deny" => Ok(OnError::Deny),
            "allow" => Ok(OnError::Allow),
            "quarantine" => Ok(OnError::Quarantine(Quarantine::default())),
            _ => Err(E::unknown_variant(text, &["deny", "allow", "quarantine"])),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<OnError, A::Error> {
        let OnErrorTable::Quarantine(quarantine) = Deserialize::deserialize(MapAccessDeserializer::new(map))?;
        Ok(OnError::Quarantine(quarantine))
    }
}
