//! Who is calling.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Who is calling, as established by the authentication plugin that succeeded; read by limits,
/// roles, scripts and logs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Principal {
    /// Stable identifier, e.g. a token's `sub` or a key's owner.
    pub id: String,
    /// Who vouches for it: an issuer, or the name of the plugin instance.
    #[serde(default)]
    pub issuer: String,
    /// Roles granted.
    #[serde(default)]
    pub roles: Vec<String>,
    /// OAuth scopes granted (RFC 6749, 3.3).
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Everything else that is known: token claims, key metadata, certificate names.
    #[serde(default)]
    pub claims: Map<String, Value>,
}
