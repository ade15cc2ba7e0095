//! The host's documentation, written from what is registered.

use std::fmt::Write;

use crate::host::{self, Entry, Kind};

/// The host's functions as a Rhai definition file, for editors: `portcullis.d.rhai`.
pub fn definitions() -> String {
    let mut text = String::from("module static;\n\n/// The plugin's `config` table.\nlet config: map;\n");
    for entry in host::entries() {
        let _ = writeln!(text, "\n/// {}", entry.doc);
        for line in declarations(&entry) {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

fn declarations(entry: &Entry) -> Vec<String> {
    let on = entry.on.unwrap_or_default();
    match entry.kind {
        Kind::Function => vec![format!("fn {};", method(entry))],
        Kind::Property { writable } => {
            let (name, kind) = entry.signature.split_once(": ").unwrap_or((entry.signature, "?"));
            let getter = format!("fn get {name}(this: {on}) -> {kind};");
            let setter = format!("fn set {name}(this: {on}, value);");
            if writable { vec![getter, setter] } else { vec![getter] }
        }
        Kind::Index { writable } => {
            let (index, kind) = entry.signature.split_once(" -> ").unwrap_or((entry.signature, "?"));
            let index = index.trim_matches(['[', ']']);
            let getter = format!("fn get_index(this: {on}, {index}) -> {kind};");
            let setter = format!("fn set_index(this: {on}, {index}, value);");
            if writable { vec![getter, setter] } else { vec![getter] }
        }
    }
}

/// A method's signature with its object as the first parameter.
fn method(entry: &Entry) -> String {
    let Some(on) = entry.on else { return entry.signature.to_owned() };
    match entry.signature.split_once('(') {
        Some((name, rest)) if rest.starts_with(')') => format!("{name}(this: {on}{rest}"),
        Some((name, rest)) => format!("{name}(this: {on}, {rest}"),
        None => entry.signature.to_owned(),
    }
}

/// The host's functions as a page of Markdown.
pub fn reference() -> String {
    let mut text = String::from(INTRODUCTION);
    let mut section = Some("");
    for entry in host::entries() {
        if section != entry.on {
            section = entry.on;
            let _ = write!(text, "\n## {}\n", section.unwrap_or("Functions"));
        }
        let access = match entry.kind {
            Kind::Property { writable: true } | Kind::Index { writable: true } => " (may be set)",
            _ => "",
        };
        let _ = write!(
            text,
            "\n### `{}`{access}\n\n{}\n\n```rhai\n{}\n```\n",
            entry.signature, entry.doc, entry.example
        );
    }
    text
}

const INTRODUCTION: &str = "\
# What scripts can use

A script's functions are its hooks. `on_request(ctx)`, `on_request_body(ctx)`, `on_upstream(ctx)`,
`on_response(ctx)`, `on_response_body(ctx)` and `on_log(ctx)` get a `Context`, `on_connection(conn)` gets a
`Conn`. A hook returns nothing to go on, or a `Verdict`. What there is not is `()`: a header that is
absent, the principal of an anonymous request. The plugin's table is the constant `config`.

Functions see their parameters and the file's constants, and so do anonymous functions: they capture
nothing. `import \"lib/x\" as x;` at the top of a script makes the functions of `lib/x.rhai` available as
`x::name(..)`.
";
