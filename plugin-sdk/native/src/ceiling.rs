//! What an instance may be granted at the most, where its grants stand in a file that anybody may drop in.

use crate::build::BuildError;
use crate::grants::{Grants, HttpGrant};
use crate::secret::SecretRef;

/// The most that an instance may be granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ceiling {
    /// Calls; of no upstream if none.
    pub http: Option<HttpGrant>,
    /// Entries of its cache; none if zero.
    pub cache: u32,
    /// Whether it may use the store.
    pub store: bool,
    /// Whether it may have limits.
    pub rate_limit: bool,
    /// Whether it may have counters.
    pub metrics: bool,
    /// Whether it may ask for the time.
    pub clock: bool,
    /// Whether it may ask for random bytes.
    pub random: bool,
    /// The secrets that it may use.
    pub secrets: Vec<SecretRef>,
}

impl Ceiling {
    /// Whether grants stay below it. Upstreams and secrets are looked at where they are taken, in whatever table they
    /// are named.
    pub(crate) fn check(&self, grants: &Grants) -> Result<(), BuildError> {
        let within = |path: &str, is_within: bool| if is_within { Ok(()) } else { Err(above(path)) };
        if let (Some(grant), Some(most)) = (&grants.http, &self.http) {
            within("grants.http.timeout", grant.timeout <= most.timeout)?;
            within("grants.http.calls", grant.calls <= most.calls)?;
            within("grants.http.max_body", grant.max_body <= most.max_body)?;
        }
        within("grants.http", grants.http.is_none() || self.http.is_some())?;
        let entries = grants.cache.as_ref().map_or(0, |grant| grant.entries.get());
        within("grants.cache.entries", entries <= self.cache)?;
        within("grants.store", !grants.store || self.store)?;
        within("grants.rate_limit", grants.rate_limit.is_empty() || self.rate_limit)?;
        within("grants.metrics", grants.metrics.is_empty() || self.metrics)?;
        within("grants.clock", !grants.clock || self.clock)?;
        within("grants.random", !grants.random || self.random)
    }

    /// Whether an upstream may be called.
    pub(crate) fn allows_upstream(&self, name: &str) -> bool {
        self.http.as_ref().is_some_and(|http| http.upstreams.iter().any(|known| known == name))
    }

    /// Whether a secret may be used.
    pub(crate) fn allows_secret(&self, secret: &SecretRef) -> bool {
        self.secrets.contains(secret)
    }
}

fn above(grant: &str) -> BuildError {
    let message = "policies of the policy directory may not be granted this by the file beside them";
    BuildError::at(grant, message).help(format!("the configuration has to allow it, in `policies.{grant}`"))
}

/// The refusal of an upstream or a secret; `at` is where it is named.
pub(crate) fn unnamed(at: &str, what: &str, list: &str) -> BuildError {
    let message = format!("policies of the policy directory may not use {what}");
    BuildError::at(at, message).help(format!("the configuration has to name it, in `policies.{list}`"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::units::{Size, Span};

    fn ceiling() -> Ceiling {
        let http = HttpGrant {
            upstreams: vec!["idp".into()],
            timeout: Span::seconds(1),
            calls: std::num::NonZeroU32::MIN,
            max_body: Size::kib(1),
            shadow: false,
        };
        Ceiling {
            http: Some(http),
            cache: 10,
            store: false,
            rate_limit: false,
            metrics: false,
            clock: false,
            random: false,
            secrets: vec![SecretRef::Env("KEY".into())],
        }
    }

    #[test]
    fn each_grant_has_its_ceiling() {
        for (grants, path) in [
            (
                json!({ "http": { "upstreams": ["idp"], "timeout": "2s", "calls": 1, "max_body": "1KiB" } }),
                "http.timeout",
            ),
            (json!({ "http": { "upstreams": ["idp"], "calls": 2, "max_body": "1KiB" } }), "http.calls"),
            (json!({ "http": { "upstreams": ["idp"], "calls": 1 } }), "http.max_body"),
            (json!({ "cache": { "entries": 11 } }), "cache.entries"),
            (json!({ "store": true }), "store"),
            (json!({ "rate_limit": { "login": { "rate": "1/s" } } }), "rate_limit"),
            (json!({ "metrics": ["logins"] }), "metrics"),
            (json!({ "clock": true }), "clock"),
            (json!({ "random": true }), "random"),
        ] {
            let error = ceiling().check(&serde_json::from_value(grants).unwrap()).unwrap_err();
            assert_eq!(error.path, format!("grants.{path}"));
            assert!(error.help.unwrap().contains(&format!("`policies.grants.{path}`")));
        }
        let below = json!({
            "http": { "upstreams": ["idp"], "calls": 1, "max_body": "1KiB" }, "cache": { "entries": 10 },
        });
        assert!(ceiling().check(&serde_json::from_value(below).unwrap()).is_ok());
        assert!(ceiling().allows_upstream("idp") && !ceiling().allows_upstream("other"));
        assert!(!ceiling().allows_secret(&SecretRef::File("KEY".into())));
    }
}
