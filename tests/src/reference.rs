//! The keys of the configuration as the pages in `docs` show them, from the program's own schema.
//!
//! What may stand behind a key is written as a form: `p95 | <duration>`. Words in angle brackets stand for
//! values, a `table` has a heading of its own.

use std::fmt::Write;

use serde_json::{Map, Value};

/// Text is wrapped to this many columns.
const WIDTH: usize = 120;

/// The level of the first headings.
const HEADING: usize = 3;

/// Definitions that are not described key by key: plugins have pages of their own.
const PLUGIN: &str = "ChainEntry";

/// The schema, to be read for people.
pub struct Reference {
    root: Value,
}

/// A table of the configuration.
pub struct Table {
    /// Where it stands, from the section's own key on; empty for the section itself.
    pub path: String,
    /// What it is.
    pub about: String,
    /// Its keys, in their order.
    pub keys: Vec<Key>,
}

/// A key of a table.
pub struct Key {
    /// Its name.
    pub name: String,
    /// What may stand behind it.
    pub form: String,
    /// Its least and its largest value, as far as the schema knows them.
    pub bounds: Option<String>,
    /// Whether it must be there.
    pub required: bool,
    /// What holds without it, as the schema says; null if that says nothing.
    pub default: Value,
    /// The same in words: the sentence of the description that begins with `Default`.
    pub otherwise: Option<String>,
    /// The rest of the description.
    pub text: String,
    /// Words that may stand behind it, with their meanings.
    pub words: Vec<(String, String)>,
    /// Where the keys of the table behind it are described: a link.
    pub keys: Option<String>,
}

impl Reference {
    /// Reads what `portcullis schema` prints.
    pub fn new(schema: &str) -> Self {
        Reference { root: serde_json::from_str(schema).expect("a schema") }
    }

    /// The tables of a section, such as `upstreams`, or of the file as a whole (the empty section) but for those of
    /// the sections that have `pages` of their own.
    pub fn tables(&self, section: &str, pages: &[&str]) -> Vec<Table> {
        let mut tables = Vec::new();
        let schema = match section {
            "" => &self.root,
            section => &self.root["properties"][section],
        };
        self.descend(schema, "", pages, &mut tables);
        link(&mut tables, pages);
        tables
    }

    /// The options of every plugin.
    pub fn plugin(&self) -> Table {
        let form = &self.root["$defs"][PLUGIN]["oneOf"][1];
        let own = form["required"][0].as_str().unwrap_or_default();
        let mut keys = self.keys(form);
        keys.retain(|key| key.name != own);
        Table { path: String::new(), about: String::new(), keys }
    }

    /// Every word in angle brackets that a form of the file has.
    pub fn placeholders(&self) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for table in self.tables("", &[]).iter().chain([&self.plugin()]) {
            for form in table.keys.iter().map(|key| &key.form) {
                let words = form.split('<').skip(1).filter_map(|rest| rest.split_once('>'));
                found.extend(words.map(|(word, _)| word.to_owned()));
            }
        }
        found.sort();
        found.dedup();
        found
    }

    fn descend(&self, schema: &Value, path: &str, pages: &[&str], tables: &mut Vec<Table>) {
        let (name, resolved) = self.resolved(schema);
        if name == Some(PLUGIN) {
            return;
        }
        if let Some((key, value)) = only(resolved).filter(|_| name.is_none()) {
            return self.descend(value, &join(path, key), pages, tables);
        }
        let properties = properties(resolved);
        if !properties.is_empty() {
            let about = resolved["description"].as_str().unwrap_or_default();
            let keys = self.keys(resolved);
            tables.push(Table { path: path.to_owned(), about: one_line(about), keys });
            for (key, value, _) in properties.iter().filter(|(key, ..)| !pages.contains(&key.as_str())) {
                self.descend(value, &join(path, key), pages, tables);
            }
            return;
        }
        let inner = ["items", "additionalProperties"].into_iter().filter_map(|key| resolved.get(key));
        for form in forms(resolved).chain(inner) {
            self.descend(form, path, pages, tables);
        }
    }

    fn keys(&self, table: &Value) -> Vec<Key> {
        let required = table["required"].as_array().cloned().unwrap_or_default();
        let choices = properties(table).into_iter().filter(|(_, _, about)| about.is_some());
        let chosen: Vec<_> = choices.map(|(name, ..)| name.clone()).collect();
        let key = |(name, schema, about): (&String, &Value, Option<&Value>)| {
            let (_, resolved) = self.resolved(schema);
            let about = schema.get("description").or(about).or_else(|| resolved.get("description"));
            let (text, otherwise) =
                split_default(&one_line(about.and_then(Value::as_str).unwrap_or_default()));
            let otherwise =
                otherwise.or_else(|| chosen.contains(name).then(|| format!("one of {}", listed(&chosen))));
            Key {
                name: name.clone(),
                form: self.form(schema),
                bounds: bounds(resolved),
                required: required.contains(&Value::from(name.as_str())),
                default: schema.get("default").or(resolved.get("default")).cloned().unwrap_or_default(),
                otherwise,
                text,
                words: words(resolved),
                keys: None,
            }
        };
        properties(table).into_iter().map(key).collect()
    }

    /// A schema, or what it refers to, with the name of that.
    fn resolved<'s>(&'s self, schema: &'s Value) -> (Option<&'s str>, &'s Value) {
        let name =
            schema.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix("#/$defs/"));
        match name.and_then(|name| self.root["$defs"].get(name)) {
            Some(definition) => (name, definition),
            None => (None, schema),
        }
    }

    /// What may stand there.
    fn form(&self, schema: &Value) -> String {
        let (name, schema) = self.resolved(schema);
        let is_text = schema["type"] == "string" && schema.get("description").is_some();
        match name {
            Some(PLUGIN) => return "<plugin>".to_owned(),
            Some(name) if is_text => return format!("<{}>", kebab(name)),
            _ => {}
        }
        if let Some(value) = schema.get("const") {
            return bare(value);
        }
        if let Some(values) = schema["enum"].as_array() {
            // `true` and `false` are other words for these.
            let is_switch = values.contains(&Value::from("on"));
            return joined(values.iter().filter(|value| !(is_switch && value.is_boolean())).map(bare));
        }
        if let Some((key, value)) = only(schema).filter(|_| name.is_none()) {
            return format!("{{ {key}: {} }}", self.form(value));
        }
        if !properties(schema).is_empty() {
            return "table".to_owned();
        }
        if forms(schema).next().is_some() {
            return joined(forms(schema).map(|form| self.form(form)));
        }
        let named = |name: &str| match name {
            "string" => "<text>".to_owned(),
            "integer" | "number" => "<number>".to_owned(),
            "boolean" => "true | false".to_owned(),
            "array" => format!("[{}, ...]", self.form(&schema["items"])),
            "object" => format!("{{ <name>: {} }}", self.form(&schema["additionalProperties"])),
            _ => String::new(),
        };
        match &schema["type"] {
            Value::String(name) => named(name),
            Value::Array(names) => joined(names.iter().filter_map(Value::as_str).map(named)),
            _ => "<any>".to_owned(),
        }
    }
}

impl Table {
    /// The table in Markdown.
    pub fn shown(&self) -> String {
        let mut text = String::new();
        if !self.path.is_empty() {
            let depth = self.path.matches('.').count().min(2);
            // Writing to a string cannot fail.
            let _ = write!(text, "\n{} `{}`\n\n", "#".repeat(HEADING + depth), self.path);
            if !self.about.is_empty() {
                text += &format!("{}\n", wrapped("", &self.about));
            }
        }
        for key in &self.keys {
            text += &wrapped("* ", &key.shown());
            for (word, meaning) in &key.words {
                text += &wrapped("  * ", &format!("`{word}`: {meaning}"));
            }
        }
        text
    }
}

impl Key {
    /// What holds where the key is not there, in words that begin with `default`.
    pub fn fallback(&self) -> Option<String> {
        let empty = self.default.as_array().is_some_and(Vec::is_empty);
        match (&self.otherwise, &self.default) {
            (Some(words), _) => Some(words.clone()),
            (None, Value::Null | Value::Object(_)) => None,
            (None, _) if empty => Some("default: none".to_owned()),
            (None, value) => Some(format!("default `{}`", bare(value))),
        }
    }

    fn shown(&self) -> String {
        let mut line = format!("`{}: {}`", self.name, self.form);
        let required = self.required.then(|| "required".to_owned());
        for part in [self.bounds.clone(), required, self.fallback()].into_iter().flatten() {
            line.push_str(", ");
            line.push_str(&part);
        }
        let keys = self.keys.as_ref().map(|link| format!(" Keys: {link}.")).unwrap_or_default();
        format!("{line}. {}{keys}", self.text)
    }
}

/// Tells at each key where the keys of the table behind it are described.
fn link(tables: &mut [Table], pages: &[&str]) {
    let paths: Vec<_> = tables.iter().map(|table| table.path.clone()).collect();
    for table in tables {
        for key in &mut table.keys {
            let path = join(&table.path, &key.name);
            let is_below = |known: &&String| **known == path || known.starts_with(&format!("{path}."));
            key.keys = match paths.iter().find(is_below) {
                _ if pages.contains(&&*path) => Some(format!("[{path}]({path}.md)")),
                Some(below) => Some(format!("[`{below}`](#{})", below.replace('.', ""))),
                None => None,
            };
        }
    }
}

/// The properties of a table with what is said about each where it is one of several forms of the table.
fn properties(table: &Value) -> Vec<(&String, &Value, Option<&Value>)> {
    fn of(table: &Value) -> Option<&Map<String, Value>> {
        table["properties"].as_object()
    }
    let choices = table["oneOf"].as_array().into_iter().flatten();
    let own = of(table).into_iter().flatten().map(|(key, value)| (key, value, None));
    let chosen = choices.filter(|_| table.get("properties").is_some());
    let chosen = chosen.flat_map(|form| {
        of(form).into_iter().flatten().map(move |(key, value)| (key, value, form.get("description")))
    });
    own.chain(chosen).collect()
}

/// The key and its schema of a table that has only this one.
fn only(table: &Value) -> Option<(&String, &Value)> {
    let properties: &Map<String, Value> = table["properties"].as_object()?;
    properties.iter().next().filter(|_| properties.len() == 1)
}

fn forms(schema: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["anyOf", "oneOf"].into_iter().filter_map(|key| schema.get(key)?.as_array());
    lists.flatten().filter(|form| form["type"] != "null")
}

/// Words with a meaning each, of which one has to be chosen.
fn words(schema: &Value) -> Vec<(String, String)> {
    let word = |form: &Value| Some((bare(form.get("const")?), one_line(form["description"].as_str()?)));
    forms(schema).filter_map(word).collect()
}

fn bounds(schema: &Value) -> Option<String> {
    match (&schema["minimum"], &schema["maximum"]) {
        (Value::Null, Value::Null) => None,
        (Value::Null, most) => Some(format!("at most {most}")),
        (least, Value::Null) => Some(format!("{least} or more")),
        (least, most) => Some(format!("{least} to {most}")),
    }
}

/// A description without the sentence that tells the default, and that sentence as a part of another.
fn split_default(text: &str) -> (String, Option<String>) {
    let at = text.find("Default").filter(|at| *at == 0 || text[..*at].ends_with(". "));
    let Some(at) = at else { return (text.to_owned(), None) };
    let end = text[at..].find(". ").map_or(text.len(), |length| at + length + 2);
    let sentence = text[at + 1..end].trim_end().trim_end_matches('.');
    let rest = format!("{}{}", &text[..at], &text[end..]);
    (rest.trim_end().to_owned(), Some(format!("d{sentence}")))
}

/// Names of which one has to be there.
fn listed(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    format!("{} is required", names.join(", "))
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// `HostName` as `host-name`.
fn kebab(name: &str) -> String {
    let mut text = String::new();
    for (at, letter) in name.char_indices() {
        if letter.is_uppercase() && at > 0 {
            text.push('-');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// A value as it is written in YAML.
pub fn bare(value: &Value) -> String {
    match value {
        Value::String(text) if text.parse::<f64>().is_ok() => format!("\"{text}\""),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(bare).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    let mut seen: Vec<String> = Vec::new();
    for part in parts {
        if !part.is_empty() && !seen.contains(&part) {
            seen.push(part);
        }
    }
    seen.join(" | ")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The text in lines of at most [`WIDTH`] columns, the first behind `bullet`, the others as far in. Code stays together.
fn wrapped(bullet: &str, text: &str) -> String {
    let mut lines = bullet.to_owned();
    let mut column = bullet.len();
    let mut in_code = false;
    for word in text.split_inclusive(|letter| {
        in_code ^= letter == '`';
        letter == ' ' && !in_code
    }) {
        let length = word.trim_end().chars().count();
        if column > bullet.len() && column + length > WIDTH {
            lines.truncate(lines.trim_end().len());
            lines.push('\n');
            lines += &" ".repeat(bullet.len());
            column = bullet.len();
        }
        lines.push_str(word);
        column += word.chars().count();
    }
    lines.push('\n');
    lines
}
