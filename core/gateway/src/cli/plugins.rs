//! `plugins` and `schema`: what plugins there are and how each is configured, from what they say themselves.

use std::fmt::Write;
use std::process::ExitCode;

use portcullis_config::nearest;
use portcullis_plugin::Registration;
use serde_json::{Map, Value};

use super::Failure;
use crate::{kinds, say};

/// Text is wrapped to this many columns.
const WIDTH: usize = 100;

/// Tables within tables deeper than this are left to the JSON Schema.
const DEPTH: usize = 4;

/// `portcullis schema`
pub(super) fn schema(tests: bool) -> Result<ExitCode, Failure> {
    if tests {
        say::result(&format!("{:#}", portcullis_config::suite_schema()));
        return Ok(ExitCode::SUCCESS);
    }
    let registry = kinds::registry();
    let tables: Vec<_> = registry.kinds().map(|kind| (kind.kind, (kind.schema)())).collect();
    say::result(&format!("{:#}", portcullis_config::schema(&tables)));
    Ok(ExitCode::SUCCESS)
}

/// `portcullis plugins`
pub(super) fn list() -> Result<ExitCode, Failure> {
    let registry = kinds::registry();
    let width = registry.kinds().map(|kind| kind.kind.len()).max().unwrap_or_default();
    let mut text = String::new();
    for kind in registry.kinds() {
        line(&mut text, &format!("{:width$}  {}", kind.kind, kind.summary));
    }
    line(&mut text, "\n`portcullis plugins NAME` shows the options of one, with an example.");
    say::result(&text);
    Ok(ExitCode::SUCCESS)
}

/// `portcullis plugins NAME`
pub(super) fn show(name: &str) -> Result<ExitCode, Failure> {
    let registry = kinds::registry();
    let Some(kind) = registry.find(name) else {
        let near = nearest(name, registry.kinds().map(|kind| kind.kind));
        let help = near.map(|near| format!("did you mean `{near}`?"));
        let help = help.unwrap_or_else(|| "`portcullis plugins` lists all".to_owned());
        return Err(Failure::Usage(format!("no plugin is called `{name}`: {help}")));
    };
    say::result(&described(kind));
    Ok(ExitCode::SUCCESS)
}

fn described(kind: &Registration) -> String {
    let mut text = format!("{}: {}\n", kind.kind, kind.summary);
    let schema = (kind.schema)().to_value();
    let mut options = Vec::new();
    Reader { root: &schema }.options(&schema, "", DEPTH, &mut options);
    line(&mut text, "\nOptions:");
    if options.is_empty() {
        line(&mut text, "  none");
    }
    for option in &options {
        line(&mut text, &format!("\n  {}  ({})", option.name, option.shape));
        for wrapped in wrapped(&option.description, WIDTH - 6) {
            line(&mut text, &format!("      {wrapped}"));
        }
    }
    line(
        &mut text,
        "\nOptions of every plugin: name, on_error (deny | allow | quarantine), timeout, mode (enforce | shadow | off), percent, until\n\nExample:\n",
    );
    for example in kind.example.lines() {
        line(&mut text, format!("  {example}").trim_end());
    }
    text
}

/// An option of a plugin, as it is shown.
struct Opt {
    name: String,
    shape: String,
    description: String,
}

/// Reads a JSON Schema for people.
struct Reader<'s> {
    root: &'s Value,
}

impl Reader<'_> {
    /// The options of a table, each followed by those of the table that it may itself be.
    fn options(&self, table: &Value, prefix: &str, depth: usize, found: &mut Vec<Opt>) {
        let Some(properties) = self.table(table).and_then(|table| table.get("properties")?.as_object())
        else {
            return;
        };
        let required = self.table(table).and_then(|table| table.get("required")?.as_array());
        for (name, schema) in properties {
            let required = required.is_some_and(|required| required.iter().any(|known| known == name));
            let mut shape = self.shape(schema, DEPTH);
            match schema.get("default").filter(|default| !default.is_null()) {
                _ if required => shape.push_str(", required"),
                Some(default) => shape.push_str(&format!(", default {default}")),
                None => {}
            }
            let described = schema.get("description").or_else(|| self.table(schema)?.get("description"));
            let description = described.and_then(Value::as_str).unwrap_or_default().to_owned();
            found.push(Opt { name: format!("{prefix}{name}"), shape, description });
            if depth > 1 {
                let list = self.resolved(schema).get("items");
                let (inner, mark) = list.map_or((schema, "."), |items| (items, "[]."));
                self.options(inner, &format!("{prefix}{name}{mark}"), depth - 1, found);
            }
        }
    }

    /// The table that a value may be: itself, or one of its forms.
    fn table<'v>(&'v self, schema: &'v Value) -> Option<&'v Map<String, Value>> {
        let schema = self.resolved(schema);
        if schema.get("properties").is_some() {
            return schema.as_object();
        }
        forms(schema)
            .find_map(|form| self.resolved(form).as_object().filter(|form| form.contains_key("properties")))
    }

    fn resolved<'v>(&'v self, schema: &'v Value) -> &'v Value {
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix('#'));
        target.and_then(|target| self.root.pointer(target)).unwrap_or(schema)
    }

    /// What may stand there, in a few words.
    fn shape(&self, schema: &Value, depth: usize) -> String {
        let schema = self.resolved(schema);
        if depth == 0 {
            return "any".to_owned();
        }
        if let Some(value) = schema.get("const") {
            return bare(value);
        }
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            return joined(values.iter().filter(|value| !value.is_null()).map(bare));
        }
        let mut forms = forms(schema).peekable();
        if forms.peek().is_some() {
            return joined(forms.map(|form| self.shape(form, depth - 1)).filter(|form| form != "nothing"));
        }
        match schema.get("type") {
            Some(Value::String(name)) => self.named(name, schema, depth),
            Some(Value::Array(names)) => {
                let names = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
                joined(names.map(|name| self.named(name, schema, depth)))
            }
            _ => "any".to_owned(),
        }
    }

    fn named(&self, name: &str, schema: &Value, depth: usize) -> String {
        match name {
            "string" => "text".to_owned(),
            "integer" | "number" => "number".to_owned(),
            "boolean" => "true | false".to_owned(),
            "null" => "nothing".to_owned(),
            "array" => match schema.get("items") {
                Some(items) => format!("list of {}", self.shape(items, depth - 1)),
                None => "list".to_owned(),
            },
            "object" => match schema.get("additionalProperties").filter(|values| values.is_object()) {
                Some(values) => format!("table of {}", self.shape(values, depth - 1)),
                None => "table".to_owned(),
            },
            other => other.to_owned(),
        }
    }
}

fn forms(schema: &Value) -> impl Iterator<Item = &Value> {
    ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|key| schema.get(key)?.as_array()).flatten()
}

/// A value as it is written in YAML.
fn bare(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    let mut seen: Vec<String> = Vec::new();
    for part in parts {
        if !seen.contains(&part) {
            seen.push(part);
        }
    }
    seen.join(" | ")
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(last) if last.is_empty() => last.push_str(word),
            Some(last) if last.chars().count() + 1 + word.chars().count() <= width => {
                last.push(' ');
                last.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.retain(|line| !line.is_empty());
    lines
}

fn line(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn options_are_read_from_the_schema() {
        let schema = json!({
            "properties": {
                "limit": { "type": "string", "default": "1MiB", "description": "Largest body." },
                "file": { "type": ["string", "null"], "default": null },
                "mode": { "$ref": "#/$defs/Mode" },
                "rules": { "type": "array", "items": { "$ref": "#/$defs/Rule" } },
                "names": { "type": "object", "additionalProperties": { "type": "string" } },
                "cache": { "anyOf": [{ "$ref": "#/$defs/Rule" }, { "type": "null" }] },
            },
            "required": ["mode"],
            "$defs": {
                "Mode": { "oneOf": [{ "const": "fast" }, { "enum": ["slow", "never"] }], "description": "How." },
                "Rule": { "type": "object", "properties": { "cidr": { "type": "string" } }, "required": ["cidr"] },
            },
        });
        let mut found = Vec::new();
        Reader { root: &schema }.options(&schema, "", DEPTH, &mut found);
        let found: Vec<_> =
            found.iter().map(|o| format!("{} ({}) {}", o.name, o.shape, o.description)).collect();
        assert_eq!(
            found,
            [
                "limit (text, default \"1MiB\") Largest body.",
                "file (text) ",
                "mode (fast | slow | never, required) ",
                "rules (list of table) ",
                "rules[].cidr (text, required) ",
                "names (table of text) ",
                "cache (table) ",
                "cache.cidr (text, required) ",
            ]
        );
    }

    #[test]
    fn a_schema_that_names_itself_ends() {
        let schema = json!({
            "properties": { "all": { "type": "array", "items": { "$ref": "#" } } },
        });
        let mut found = Vec::new();
        Reader { root: &schema }.options(&schema, "", DEPTH, &mut found);
        assert_eq!(found.len(), DEPTH);
    }

    /// The pages in `plugins/docs`, from what the source says. `PORTCULLIS_WRITE_DOCS=1` writes them.
    #[test]
    fn the_pages_say_what_the_source_says() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/docs");
        let registry = kinds::registry();
        let mut pages: Vec<_> =
            registry.kinds().map(|kind| (format!("{}.md", kind.kind), page(kind))).collect();
        pages.push(("rhai-functions.md".to_owned(), portcullis_rhai::reference()));
        let index = registry.kinds().map(|kind| format!("* [`{0}`]({0}.md): {1}\n", kind.kind, kind.summary));
        let index = format!(
            "# Plugins\n\n{}\nWhat scripts can do: [rhai-functions.md](rhai-functions.md).\n",
            index.collect::<String>()
        );
        pages.push(("README.md".to_owned(), index));
        for (name, content) in &pages {
            let path = directory.join(name);
            if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
                std::fs::create_dir_all(&directory).unwrap();
                std::fs::write(&path, content).unwrap();
            }
            let written = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                written == *content,
                "{name} is not what the source says: PORTCULLIS_WRITE_DOCS=1 writes it anew"
            );
        }
        let files = std::fs::read_dir(&directory).unwrap().count();
        assert_eq!(files, pages.len(), "{} holds a page that nothing stands behind", directory.display());
    }

    fn page(kind: &Registration) -> String {
        let described = described(kind);
        let (_, options) = described.split_once("\nOptions:\n").unwrap();
        let (options, _) = options.split_once("\nOptions of every plugin").unwrap();
        let example = kind.example.trim_end();
        let (name, summary) = (kind.kind, kind.summary);
        format!(
            "# `{name}`\n\n{summary}\n\n```yaml\n{example}\n```\n\n```text{options}```\n\n\
             Besides, like every plugin: `name`, `on_error: deny | allow | quarantine`, `timeout`.\n"
        )
    }

    #[test]
    fn every_kind_is_described_with_its_example() {
        for kind in kinds::registry().kinds() {
            let text = described(kind);
            assert!(
                text.contains(kind.summary) && text.contains(kind.example.trim_end().lines().last().unwrap())
            );
        }
    }

    #[test]
    fn long_text_is_wrapped_between_words() {
        assert_eq!(wrapped("one two  three", 7), ["one two", "three"]);
        assert!(wrapped("", 7).is_empty());
    }
}
