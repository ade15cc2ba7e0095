//! The JSON Schema (2020-12) of the whole file, for editors and for the reference.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};
use std::borrow::Cow;

use crate::config::{
    AdminOptions, Config, InstanceOptions, Predicate, RedirectHttps, RedirectStatus, Status,
};
use crate::listen::ListenAddress;
use crate::on_error::{OnError, Quarantine};
use crate::store::{Redis, RedisUrl, StoreTable};
use crate::traffic::{Split, SplitBy, StickyTable, Target};
use crate::upstreams::{Balance, Eject, Endpoint, HashBy, Retries, RetryOn, Sticky};
use crate::values::{Duration, HeaderName, Pattern};

const CHAIN_ENTRY: &str = "#/$defs/ChainEntry";

/// The schema of a configuration file in which the plugins of these kinds may stand, each with the schema of
/// its own table.
pub fn schema(plugins: &[(&str, Schema)]) -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let options = generator.subschema_for::<InstanceOptions>();
    let mut root = generator.into_root_schema_for::<Config>();
    root.insert("title".to_owned(), "Portcullis configuration".into());
    let definitions = root.ensure_object().entry("$defs").or_insert_with(|| json!({}));
    if let Value::Object(definitions) = definitions {
        let shared = definitions.remove(options_name(&options)).unwrap_or_default();
        let shared = shared.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
        definitions.insert("ChainEntry".to_owned(), chain_entry(plugins, &shared));
        for (kind, schema) in plugins {
            definitions.insert(definition(kind), plugin_table(kind, schema));
        }
    }
    root.to_value()
}

fn options_name(reference: &Schema) -> &str {
    let reference = reference.get("$ref").and_then(Value::as_str).unwrap_or_default();
    reference.strip_prefix("#/$defs/").unwrap_or_default()
}

/// A bare kind, or one kind with its table and the options of every instance.
fn chain_entry(plugins: &[(&str, Schema)], options: &Map<String, Value>) -> Value {
    let words: Vec<&str> = plugins.iter().map(|(kind, _)| *kind).chain(["policies"]).collect();
    let mut forms = vec![json!({ "enum": words, "description": "a plugin without options" })];
    forms.extend(plugins.iter().map(|(kind, schema)| {
        let mut properties = Map::new();
        properties.insert((*kind).to_owned(), json!({ "$ref": format!("#/$defs/{}", definition(kind)) }));
        properties.extend(options.clone());
        let mut form = json!({
            "type": "object", "properties": properties, "required": [kind], "additionalProperties": false,
        });
        if let Some(description) = schema.get("description") {
            form["description"] = description.clone();
        }
        form
    }));
    json!({ "description": "A plugin of a chain.", "oneOf": forms })
}

fn definition(kind: &str) -> String {
    format!("plugin.{kind}")
}

/// A plugin's schema as a definition of this one: references to its own definitions follow it there. A key
/// without a value is an empty table.
fn plugin_table(kind: &str, schema: &Schema) -> Value {
    let mut value = schema.clone().to_value();
    if let Some(object) = value.as_object_mut() {
        object.remove("$schema");
        if object.get("type") == Some(&json!("object")) {
            object.insert("type".to_owned(), json!(["object", "null"]));
        }
    }
    rebase(&mut value, &format!("#/$defs/{}", definition(kind)));
    value
}

fn rebase(value: &mut Value, base: &str) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(reference)) = object.get_mut("$ref")
                && let Some(inner) = reference.strip_prefix('#')
            {
                *reference = format!("{base}{inner}");
            }
            object.values_mut().for_each(|value| rebase(value, base));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rebase(item, base)),
        _ => {}
    }
}

pub(crate) fn chain(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "$ref": CHAIN_ENTRY }, "default": [] })
}

pub(crate) fn admin(generator: &mut SchemaGenerator) -> Schema {
    let options = generator.subschema_for::<AdminOptions>();
    json_schema!({ "anyOf": [{ "enum": ["on", "off", true, false] }, options] })
}

pub(crate) fn store(generator: &mut SchemaGenerator) -> Schema {
    let table = generator.subschema_for::<StoreTable>();
    json_schema!({ "anyOf": [{ "const": "memory" }, table] })
}

pub(crate) fn redis(generator: &mut SchemaGenerator) -> Schema {
    let (url, table) = (generator.subschema_for::<RedisUrl>(), generator.subschema_for::<Redis>());
    json_schema!({ "anyOf": [url, table] })
}

pub(crate) fn addresses(generator: &mut SchemaGenerator) -> Schema {
    let address = generator.subschema_for::<ListenAddress>();
    json_schema!({ "anyOf": [address, { "type": "array", "items": address, "minItems": 1 }] })
}

pub(crate) fn redirect_https(generator: &mut SchemaGenerator) -> Schema {
    let table = generator.subschema_for::<RedirectHttps>();
    json_schema!({ "anyOf": [{ "type": "boolean" }, table], "default": false })
}

pub(crate) fn eject(generator: &mut SchemaGenerator) -> Schema {
    let table = generator.subschema_for::<Eject>();
    json_schema!({ "anyOf": [{ "enum": ["on", "off", true, false] }, table] })
}

pub(crate) fn hedge_after(generator: &mut SchemaGenerator) -> Schema {
    let time = generator.subschema_for::<Duration>();
    json_schema!({ "anyOf": [{ "enum": ["p95"] }, time] })
}

pub(crate) fn retries(generator: &mut SchemaGenerator) -> Schema {
    let table = generator.subschema_for::<Retries>();
    json_schema!({ "anyOf": [{ "type": "integer", "minimum": 0, "maximum": 255 }, table], "default": 1 })
}

impl JsonSchema for Balance {
    fn schema_name() -> Cow<'static, str> {
        "Balance".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let by = generator.subschema_for::<HashBy>();
        let sticky = generator.subschema_for::<Sticky>();
        json_schema!({
            "anyOf": [
                { "enum": ["round_robin", "least_request", "random"] },
                only("hash", only("by", by.to_value())),
                only("sticky", sticky.to_value()),
            ],
            "default": "round_robin",
        })
    }
}

impl JsonSchema for OnError {
    fn schema_name() -> Cow<'static, str> {
        "OnError".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let quarantine = generator.subschema_for::<Quarantine>();
        json_schema!({
            "anyOf": [{ "enum": ["deny", "allow", "quarantine"] }, only("quarantine", quarantine.to_value())],
            "default": "deny",
        })
    }
}

impl JsonSchema for HashBy {
    fn schema_name() -> Cow<'static, str> {
        "HashBy".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let header = generator.subschema_for::<HeaderName>();
        json_schema!({
            "description": "What of a request is hashed. Requests without it are spread by lot.",
            "anyOf": [
                { "enum": ["client", "principal"] },
                only("header", header.to_value()),
                only("cookie", json!({ "type": "string" })),
            ],
        })
    }
}

impl JsonSchema for Target {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Target".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let split = generator.subschema_for::<Split>();
        json_schema!({ "anyOf": [{ "type": "string" }, split] })
    }
}

impl JsonSchema for SplitBy {
    fn schema_name() -> Cow<'static, str> {
        "SplitBy".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let header = generator.subschema_for::<HeaderName>();
        let sticky = generator.subschema_for::<StickyTable>();
        json_schema!({
            "anyOf": [
                { "enum": ["lot", "client", "principal"] },
                only("header", header.to_value()),
                only("cookie", json!({ "type": "string" })),
                only("sticky", sticky.to_value()),
            ],
            "default": "lot",
        })
    }
}

impl JsonSchema for RetryOn {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "RetryOn".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "enum": ["connect", "timeout", "broken"] },
                { "type": "integer", "minimum": 400, "maximum": 599 },
            ],
        })
    }
}

/// A table of this one key.
fn only(key: &str, value: Value) -> Value {
    json!({
        "type": "object", "properties": { key: value }, "required": [key], "additionalProperties": false,
    })
}

impl JsonSchema for Endpoint {
    fn schema_name() -> Cow<'static, str> {
        "Endpoint".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let url = json!({
            "type": "string", "pattern": "^(https?://|unix:/)",
            "description": "Its address. Example: `http://127.0.0.1:9000`, `https://api.internal` or `unix:/run/app.sock`.",
        });
        let weight = json!({
            "type": "integer", "minimum": 1, "maximum": 1000, "default": 1,
            "description": "Share of the requests, relative to the other endpoints.",
        });
        let priority = json!({
            "type": "integer", "minimum": 0, "maximum": 255, "default": 0,
            "description": "0 serves first, the next when too few of the former are healthy (`min_healthy`).",
        });
        let zone = json!({
            "type": ["string", "null"], "default": null,
            "description": "Where it is. Of the same priority, endpoints of the gateway's own `zone` serve first, the others when too few of those are healthy (`min_healthy`). Default: in no zone. Example: `eu-1a`.",
        });
        json_schema!({
            "description": "One server of an upstream: an address, or a table with weight, priority and zone.",
            "anyOf": [url, {
                "type": "object",
                "properties": { "url": url, "weight": weight, "priority": priority, "zone": zone },
                "required": ["url"], "additionalProperties": false,
            }],
        })
    }
}

impl JsonSchema for Predicate {
    fn schema_name() -> Cow<'static, str> {
        "Predicate".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let pattern = generator.subschema_for::<Pattern>();
        json_schema!({
            "description": "A value, whether it is there at all, or a regular expression.",
            "anyOf": [
                { "type": "string" },
                only("present", json!({ "type": "boolean" })),
                only("regex", pattern.to_value()),
            ],
        })
    }
}

impl JsonSchema for RedirectStatus {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "RedirectStatus".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": [301, 302, 303, 307, 308] })
    }
}

impl JsonSchema for Status {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Status".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 200, "maximum": 599 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its schema is used")]
    struct Cors {
        origins: Vec<Origin>,
    }

    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its schema is used")]
    struct Origin {
        name: String,
    }

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let schema = schema(&[("cors", schemars::schema_for!(Cors))]);
        let mut found = Vec::new();
        references(&schema, &mut found);
        assert!(found.iter().any(|reference| reference == "#/$defs/plugin.cors/$defs/Origin"), "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(schema.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn plugins_take_their_own_table_and_the_options_of_every_instance() {
        let schema = schema(&[("cors", schemars::schema_for!(Cors))]);
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        let forms = &schema["$defs"]["ChainEntry"]["oneOf"];
        assert_eq!(forms[0]["enum"], json!(["cors", "policies"]));
        let keys: Vec<_> = forms[1]["properties"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["cors", "name", "on_error", "timeout", "mode", "percent", "until"]);
    }

    #[test]
    fn the_schema_knows_the_keys_and_defaults_of_the_file() {
        let schema = schema(&[]);
        assert_eq!(schema["properties"]["drain"]["default"], "30s");
        assert_eq!(schema["$defs"]["ListenerLimits"]["properties"]["header_bytes"]["default"], "16KiB");
        assert_eq!(schema["$defs"]["Listener"]["required"], json!(["bind"]));
        assert_eq!(schema["$defs"]["Upstream"]["oneOf"][1]["required"], json!(["dns"]));
        assert!(schema["$defs"]["Route"]["properties"]["match"].is_object());
    }
}
