//! The built-in plugins: one file each, and the list the gateway takes them from.
//!
//! A plugin's file holds all there is to know about it: a module doc with an example and its reason
//! codes, its `Config`, one plain function that decides, and its hooks. A new one costs its file and
//! two lines here. Beside them stand the few things that several share: `names` for header names,
//! `media` for media types, `origins` for those of pages, `template` for header values, `credentials`
//! for the places of keys and tokens, `claims` for what these say of a caller, `strict` for JSON with one meaning only.

mod access_log;
mod api_key;
mod body_limit;
mod claims;
mod cors;
mod credentials;
mod csrf;
mod ext_authz;
mod headers;
mod ip_filter;
mod json_schema;
mod jwt;
mod mask;
mod media;
mod names;
mod origins;
mod rate_limit;
mod rbac;
mod regex_error;
mod request_id;
mod security_headers;
mod sign;
mod strict;
mod template;

use portcullis_plugin::Registration;

pub use api_key::{HashKey, NewKey};
pub use jwt::{ASKING, Finding, Outcome, Report, Why};

/// Every built-in plugin kind, by name.
pub const BUILTIN: &[Registration] = &[
    Registration::of::<access_log::AccessLog>(),
    Registration::of::<api_key::ApiKey>(),
    Registration::of::<body_limit::BodyLimit>(),
    Registration::of::<cors::Cors>(),
    Registration::of::<csrf::Csrf>(),
    Registration::of::<ext_authz::ExtAuthz>(),
    Registration::of::<headers::Headers>(),
    Registration::of::<ip_filter::IpFilter>(),
    Registration::of::<json_schema::JsonSchemaCheck>(),
    Registration::of::<jwt::Jwt>(),
    Registration::of::<mask::Mask>(),
    Registration::of::<rate_limit::RateLimit>(),
    Registration::of::<rbac::Rbac>(),
    Registration::of::<request_id::TrustedRequestId>(),
    Registration::of::<security_headers::SecurityHeaders>(),
    Registration::of::<sign::Sign>(),
];

#[cfg(test)]
mod tests {
    use super::*;
    use http::Response;
    use portcullis_plugin::PluginTester;
    use serde_json::{Value, json};

    /// A tester with everything that the examples name.
    fn world() -> PluginTester {
        PluginTester::new()
            .file("lists/blocked.txt", "198.51.100.0/24\n")
            .file("schemas/order.json", r#"{"type": "object", "properties": {"id": {"type": "integer"}}}"#)
            .file("keys.jsonl", "# none yet\n")
            .secret("API_KEY_HASH_KEY", "c2l4dGVlbiBieXRlcyBhbmQgc2l4dGVlbiBtb3JlIDE=")
            .secret("CSRF_KEY", "c2l4dGVlbiBieXRlcyBhbmQgc2l4dGVlbiBtb3JlIDE=")
            .secret("PARTNER_SECRET", "c2l4dGVlbiBieXRlcyBhbmQgc2l4dGVlbiBtb3JlIDE=")
            .secret("SIGNING_KEY", "c2l4dGVlbiBieXRlcyBhbmQgc2l4dGVlbiBtb3JlIDE=")
            .upstream("login", |_| Ok(Response::default()))
            .upstream("authz", |_| Ok(Response::default()))
    }

    /// Builds the one entry of a list of plugins.
    fn build(kind: &Registration, example: &str, tester: &mut PluginTester) {
        let entries: Vec<serde_json::Map<String, Value>> =
            serde_saphyr::from_str(example).unwrap_or_else(|error| panic!("{}: {error}", kind.kind));
        assert_eq!(entries.len(), 1, "{}", kind.kind);
        let table = entries[0].get(kind.kind).cloned().unwrap_or_else(|| panic!("no `{}`", kind.kind));
        tester.build_registered(kind, table).unwrap_or_else(|error| panic!("{}: {error}", kind.kind));
    }

    #[test]
    fn every_example_is_one_entry_of_its_kind_and_builds_without_remarks() {
        for kind in BUILTIN {
            let mut tester = world();
            build(kind, kind.example, &mut tester);
            assert_eq!(tester.warnings(), [], "{}", kind.kind);
        }
    }

    #[test]
    fn the_example_in_every_module_doc_builds() {
        let sources = [
            include_str!("access_log.rs"),
            include_str!("api_key.rs"),
            include_str!("body_limit.rs"),
            include_str!("cors.rs"),
            include_str!("csrf.rs"),
            include_str!("ext_authz.rs"),
            include_str!("headers.rs"),
            include_str!("ip_filter.rs"),
            include_str!("json_schema.rs"),
            include_str!("jwt.rs"),
            include_str!("mask.rs"),
            include_str!("rate_limit.rs"),
            include_str!("rbac.rs"),
            include_str!("request_id.rs"),
            include_str!("security_headers.rs"),
            include_str!("sign.rs"),
        ];
        assert_eq!(sources.len(), BUILTIN.len());
        for (source, kind) in sources.into_iter().zip(BUILTIN) {
            let doc: String = source
                .lines()
                .map_while(|line| line.strip_prefix("//!"))
                .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
                .collect();
            let (_, example) = doc.split_once("```yaml\n").unwrap();
            let (example, _) = example.split_once("```").unwrap();
            build(kind, example, &mut world());
        }
    }

    #[test]
    fn every_table_is_described_and_refuses_unknown_fields() {
        for kind in BUILTIN {
            let schema = (kind.schema)();
            assert_eq!(schema.get("additionalProperties"), Some(&json!(false)), "{}", kind.kind);
            for (name, field) in schema.get("properties").and_then(Value::as_object).unwrap() {
                assert!(field.get("description").is_some(), "{}: `{name}` has no docs", kind.kind);
            }
            let error = world().build_registered(kind, json!({"no_such_field": 1})).err().unwrap();
            assert!(error.message.contains("no_such_field"), "{}: {error}", kind.kind);
        }
    }

    #[test]
    fn the_list_is_sorted_and_its_lines_read_alike() {
        assert!(BUILTIN.is_sorted_by(|one, next| one.kind < next.kind));
        for Registration { kind, summary, .. } in BUILTIN {
            let lower = summary.starts_with(|first: char| first.is_ascii_lowercase());
            assert!(lower && !summary.ends_with('.') && summary.len() < 90, "{kind}: {summary}");
        }
    }
}
