//! Secrets: named in the configuration, read at load, printed by nothing.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;

/// Where a secret comes from: `env:NAME` or `file:path`. The configuration holds this, never the
/// secret itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("pattern" = "^(env|file):.+$"))]
pub enum SecretRef {
    /// An environment variable.
    Env(String),
    /// A file; one line end at its end is cut off.
    File(String),
}

impl TryFrom<String> for SecretRef {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(SecretRef::Env(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(SecretRef::File(path.to_owned())),
            // The text may be the secret itself, so it is not repeated.
            _ => Err("a secret is named, not written here: use `env:NAME` or `file:path`"),
        }
    }
}

/// A secret's bytes. Neither `Debug` nor anything else prints them.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Wraps the bytes.
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Self {
        Secret(bytes.into())
    }

    /// The bytes, for use, not for show.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_written_into_the_configuration_is_refused_and_not_repeated() {
        let error = SecretRef::try_from("hunter2".to_owned()).unwrap_err();
        assert!(error.contains("env:NAME") && !error.contains("hunter2"));
        assert_eq!(SecretRef::try_from("env:KEY".to_owned()), Ok(SecretRef::Env("KEY".into())));
        assert_eq!(format!("{:?}", Secret::new(*b"hunter2")), "[secret]");
    }
}
