//! What a reload has to pass.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::seconds;
use crate::values::{Duration, positive};

/// What a reload, and the start, has to pass before it applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Reload {
    /// What becomes of a reload whose policies fail their own tests: the `.test.yaml` beside a script, a module or this
    /// file. `enforce` refuses it, `warn` only says so, `off` runs none. Default `enforce`.
    pub tests: TestGate,
    /// How long all tests of a reload may take together; then they have failed. Default `30s`.
    #[serde(deserialize_with = "positive")]
    pub tests_timeout: Duration,
}

/// What failing tests do to a reload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TestGate {
    /// It is refused.
    #[default]
    Enforce,
    /// They are told as warnings.
    Warn,
    /// Nobody runs them.
    Off,
}

impl Default for Reload {
    fn default() -> Self {
        Self { tests: TestGate::Enforce, tests_timeout: seconds(30) }
    }
}
