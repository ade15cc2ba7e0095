//! Header values with placeholders, parsed once at load.
//!
//! | placeholder | is |
//! |---|---|
//! | `{request_id}` | the request id |
//! | `{client}` | the client's address |
//! | `{principal}` | the id of whoever calls |
//! | `{route}` | the route's name |
//! | `{capture.NAME}` | a capture of the route's path, percent-encoded as it came |
//! | `{header.NAME}` | the request header's first value, as it is by then |
//! | `{fact.NAME}` | a fact that an earlier plugin left: a string, a number or a boolean |
//!
//! A brace that no lower-case letter follows is itself; `{{` writes one where a letter follows.

use std::fmt::Write;

use http::header::{HeaderName, HeaderValue};
use portcullis_plugin::{BuildError, Exchange};
use serde_json::Value;

/// A header value, constant or to be filled in per exchange.
#[derive(Debug)]
pub(crate) enum Template {
    Constant(HeaderValue),
    Parts(Vec<Part>),
}

#[derive(Debug, PartialEq)]
pub(crate) enum Part {
    Text(String),
    RequestId,
    Client,
    Principal,
    Route,
    Capture(String),
    Header(HeaderName),
    Fact(String),
}

const HELP: &str = "known are `{request_id}`, `{client}`, `{principal}`, `{route}`, `{capture.NAME}`, \
                    `{header.NAME}` and `{fact.NAME}`; `{{` writes `{` itself";

impl Template {
    /// Parses a value; `at` is the path of the setting.
    pub(crate) fn parse(at: &str, text: &str) -> Result<Self, BuildError> {
        let parts = split(text).map_err(|message| BuildError::at(at, message).help(HELP))?;
        let value = |text: &str| {
            HeaderValue::from_str(text)
                .map_err(|_| BuildError::at(at, "not a header value: it holds a control character"))
        };
        for part in &parts {
            if let Part::Text(text) = part {
                value(text)?;
            }
        }
        match parts.as_slice() {
            [] => value("").map(Template::Constant),
            [Part::Text(text)] => value(text).map(Template::Constant),
            _ => Ok(Template::Parts(parts)),
        }
    }

    /// The value for this exchange. None if a placeholder has no value, or if what came out is no
    /// header value: a line end in a fact must not become a header of its own (RFC 9110, 5.5).
    pub(crate) fn render(&self, exchange: &Exchange) -> Option<HeaderValue> {
        let parts = match self {
            Template::Constant(value) => return Some(value.clone()),
            Template::Parts(parts) => parts,
        };
        let mut text = String::new();
        for part in parts {
            part.render(exchange, &mut text)?;
        }
        HeaderValue::try_from(text).ok()
    }
}

impl Part {
    fn render(&self, exchange: &Exchange, text: &mut String) -> Option<()> {
        match self {
            Part::Text(constant) => text.push_str(constant),
            Part::RequestId => write!(text, "{}", exchange.id()).ok()?,
            Part::Client => write!(text, "{}", exchange.client()).ok()?,
            Part::Principal => text.push_str(&exchange.principal()?.id),
            Part::Route => text.push_str(exchange.route()?),
            Part::Capture(name) => text.push_str(exchange.capture(name)?),
            Part::Header(name) => text.push_str(exchange.request().header(name)?),
            Part::Fact(name) => match exchange.fact(name)? {
                Value::String(fact) => text.push_str(fact),
                fact @ (Value::Number(_) | Value::Bool(_)) => write!(text, "{fact}").ok()?,
                _ => return None,
            },
        }
        Some(())
    }
}

/// Cuts the text at its placeholders.
fn split(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut constant = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let (before, brace) = rest.split_at(at);
        constant.push_str(before);
        let inside = &brace[1..];
        rest = match inside.bytes().next() {
            Some(b'a'..=b'z') => {
                let (name, after) =
                    inside.split_once('}').ok_or("`{` without its `}`; `{{` writes a brace")?;
                if !constant.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut constant)));
                }
                parts.push(part(name)?);
                after
            }
            doubled => {
                constant.push('{');
                if doubled == Some(b'{') { &inside[1..] } else { inside }
            }
        };
    }
    constant.push_str(rest);
    if !constant.is_empty() {
        parts.push(Part::Text(constant));
    }
    Ok(parts)
}

fn part(name: &str) -> Result<Part, String> {
    let unknown = || format!("`{{{name}}}` is not a known placeholder");
    Ok(match name.split_once('.') {
        None => match name {
            "request_id" => Part::RequestId,
            "client" => Part::Client,
            "principal" => Part::Principal,
            "route" => Part::Route,
            _ => return Err(unknown()),
        },
        Some((_, "")) => return Err(unknown()),
        Some(("capture", name)) => Part::Capture(name.to_owned()),
        Some(("fact", name)) => Part::Fact(name.to_owned()),
        Some(("header", name)) => {
            Part::Header(HeaderName::try_from(name).map_err(|_| format!("`{name}` is not a header name"))?)
        }
        Some(_) => return Err(unknown()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_plugin::{ExchangeBuilder, Principal};

    fn render(template: &str, exchange: &Exchange) -> Option<String> {
        let value = Template::parse("t", template).unwrap().render(exchange)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    }

    #[test]
    fn placeholders_are_filled_in() {
        let mut exchange = ExchangeBuilder::get("/users/42")
            .route("users", &[("id", "42")])
            .header("x-tenant", "acme")
            .principal(Principal { id: "ada".into(), ..Principal::default() })
            .build();
        exchange.set_fact("score", 7.into());
        exchange.set_fact("list", Value::Array(Vec::new()));
        for (template, value) in [
            ("plain", Some("plain")),
            ("", Some("")),
            ("{{client} {\"a\":{}}", Some("{client} {\"a\":{}}")),
            ("{client}/{principal}/{route}/{capture.id}", Some("192.0.2.1/ada/users/42")),
            ("<{header.X-Tenant}>{fact.score}", Some("<acme>7")),
            ("{request_id}", Some("00000000000000000000000000000001")),
            ("{fact.list}", None),
            ("{fact.missing}", None),
            ("{capture.missing}", None),
        ] {
            assert_eq!(render(template, &exchange).as_deref(), value, "{template}");
        }
    }

    #[test]
    fn a_line_end_in_a_fact_makes_no_header() {
        let mut exchange = ExchangeBuilder::get("/").build();
        exchange.set_fact("f", "a\r\nset-cookie: b=c".into());
        assert_eq!(render("x{fact.f}", &exchange), None);
    }

    #[test]
    fn what_cannot_be_a_template_is_refused_at_its_path() {
        for wrong in ["{nobody}", "{client", "{header.}", "{header.a b}", "{fact}", "a\nb", "a\n{client}"] {
            let error = Template::parse("request.set.x-a", wrong).unwrap_err();
            assert_eq!(error.path, "request.set.x-a", "{wrong}");
        }
    }
}
