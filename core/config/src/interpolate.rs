//! `${NAME}` and `${NAME:-default}` in scalar values; `$${` stands for `${`.

use crate::node::Interpolated;
use crate::yaml::Env;

/// Why a text cannot be filled in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) message: String,
    pub(crate) help: String,
}

/// The text with the environment filled in, and what was filled in where anything was. A variable that is set
/// but empty counts as unset where there is a default, as in a shell.
pub(crate) fn interpolate(text: &str, env: &Env<'_>) -> Result<(String, Option<Box<Interpolated>>), Problem> {
    let mut out = String::new();
    let mut values = Vec::new();
    let mut filled = false;
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = from.get(2..).unwrap_or_default();
            continue;
        }
        out.push_str(before);
        let inner = from.get(2..).unwrap_or_default();
        let end = inner.find('}').ok_or_else(unclosed)?;
        let (reference, after) = inner.split_at(end);
        match look_up(reference, env)? {
            Found::Default(value) => out.push_str(value),
            Found::Set(value) => {
                out.push_str(&value);
                values.push((format!("${{{reference}}}"), value));
            }
        }
        filled = true;
        rest = after.get(1..).unwrap_or_default();
    }
    out.push_str(rest);
    Ok((out, filled.then(|| Box::new(Interpolated { source: text.to_owned(), values }))))
}

/// A value, and whether it is one that must not be shown.
enum Found<'t> {
    Default(&'t str),
    Set(String),
}

fn look_up<'t>(reference: &'t str, env: &Env<'_>) -> Result<Found<'t>, Problem> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    if !is_name(name) {
        return Err(Problem {
            message: format!("`${{{reference}}}` names no environment variable"),
            help: "write `${NAME}` or `${NAME:-default}`, and `$${` for a literal `${`".to_owned(),
        });
    }
    match (env(name), default) {
        (Some(value), None) => Ok(Found::Set(value)),
        (Some(value), Some(_)) if !value.is_empty() => Ok(Found::Set(value)),
        (_, Some(default)) => Ok(Found::Default(default)),
        (None, None) => Err(Problem {
            message: format!("environment variable `{name}` is not set"),
            help: format!("set it, or give a default: `${{{name}:-default}}`"),
        }),
    }
}

fn is_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn unclosed() -> Problem {
    Problem { message: "`${` is not closed".to_owned(), help: "write `$${` for a literal `${`".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> Result<String, String> {
        let env = |name: &str| match name {
            "PORT" => Some("8080".to_owned()),
            "EMPTY" => Some(String::new()),
            "TRICKY" => Some("${PORT}".to_owned()),
            _ => None,
        };
        interpolate(text, &env).map(|(text, _)| text).map_err(|problem| problem.message)
    }

    #[test]
    fn variables_defaults_and_escapes() {
        for (text, expected) in [
            ("plain $5 {x}", "plain $5 {x}"),
            ("${PORT}", "8080"),
            ("a:${PORT}/${PORT}b", "a:8080/8080b"),
            ("${NOPE:-x y}", "x y"),
            ("${NOPE:-}", ""),
            ("${EMPTY:-x}", "x"),
            ("[${EMPTY}]", "[]"),
            ("$${PORT}", "${PORT}"),
            ("$$${PORT}", "$${PORT}"),
            ("${TRICKY}", "${PORT}"),
        ] {
            assert_eq!(filled(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_filled_is_named() {
        assert_eq!(filled("${NOPE}"), Err("environment variable `NOPE` is not set".to_owned()));
        assert_eq!(filled("${PORT"), Err("`${` is not closed".to_owned()));
        assert_eq!(filled("${}"), Err("`${}` names no environment variable".to_owned()));
        assert_eq!(filled("${a b}"), Err("`${a b}` names no environment variable".to_owned()));
    }

    #[test]
    fn only_filled_texts_are_marked_and_only_the_environment_is_secret() {
        assert!(interpolate("$${x}", &|_| None).unwrap().1.is_none());
        let values = |text| interpolate(text, &|_| Some("v".to_owned())).unwrap().1.unwrap().values;
        assert_eq!(values("${x:-1}"), [("${x:-1}".to_owned(), "v".to_owned())]);
        assert!(interpolate("${x:-1}", &|_| None).unwrap().1.unwrap().values.is_empty());
    }
}
