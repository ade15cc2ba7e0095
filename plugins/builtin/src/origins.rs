//! Origins of web pages (RFC 6454) as a configuration names them.

use http::HeaderValue;
use portcullis_plugin::{BuildContext, BuildError, Exchange};
use regex::Regex;

use crate::regex_error::not_a_regex;

/// No browser has a longer origin: a scheme, a host name of 253 characters, a port. A head may hold one
/// that is a hundred times longer, for every pattern to be searched in.
pub(crate) const MAX_ORIGIN: usize = 512;

/// One origin, or some.
#[derive(Debug)]
pub(crate) enum OriginRule {
    Exact(String),
    /// Any subdomain: what stands before and after its labels.
    Subdomain(String, String),
    Pattern(Regex),
}

impl OriginRule {
    /// An origin as it is written; `at` is the path of the setting.
    pub(crate) fn parse(at: &str, text: &str) -> Result<Self, BuildError> {
        if let Some(pattern) = text.strip_prefix('/').and_then(|text| text.strip_suffix('/')) {
            let anchored = format!(r"\A(?:{pattern})\z");
            return Regex::new(&anchored).map(OriginRule::Pattern).map_err(|error| not_a_regex(at, &error));
        }
        if text == "null" {
            return Ok(OriginRule::Exact(text.to_owned()));
        }
        let wrong = |what: &str| {
            BuildError::at(at, format!("`{text}` is not an origin: {what}"))
                .help("write scheme and host, e.g. `https://app.example.com` or `https://*.example.com`")
        };
        let origin = text.to_ascii_lowercase();
        let (scheme, authority) = origin.split_once("://").ok_or_else(|| wrong("it has no scheme"))?;
        if authority.contains(['/', '?', '#', '@']) {
            return Err(wrong("it goes on after the host"));
        }
        if authority.is_empty() || scheme.is_empty() || authority.contains(char::is_whitespace) {
            return Err(wrong("it has no host"));
        }
        match authority.strip_prefix("*.") {
            Some(domain) if domain.contains('*') || domain.is_empty() => {
                Err(wrong("`*.` stands at its beginning only"))
            }
            Some(domain) => Ok(OriginRule::Subdomain(format!("{scheme}://"), format!(".{domain}"))),
            None if authority.contains('*') => Err(wrong("`*.` stands at its beginning only")),
            None => Ok(OriginRule::Exact(origin)),
        }
    }

    fn matches(&self, origin: &str) -> bool {
        match self {
            OriginRule::Exact(exact) => origin == exact,
            OriginRule::Subdomain(before, after) => {
                let labels =
                    origin.strip_prefix(before.as_str()).and_then(|it| it.strip_suffix(after.as_str()));
                labels.is_some_and(|labels| {
                    let label = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
                    !labels.is_empty() && labels.bytes().all(label)
                })
            }
            OriginRule::Pattern(pattern) => pattern.is_match(origin),
        }
    }
}

/// Whether one of the rules allows an origin.
pub(crate) fn allows(rules: &[OriginRule], origin: &HeaderValue) -> bool {
    let text = origin.to_str().ok().filter(|text| text.len() <= MAX_ORIGIN);
    text.is_some_and(|text| rules.iter().any(|rule| rule.matches(text)))
}

/// Remarks on origins that are allowed more often than was meant, or never.
pub(crate) fn remark(
    at: &str,
    text: &str,
    rule: &OriginRule,
    credentials: bool,
    context: &mut BuildContext<'_>,
) {
    if text == "null" {
        context.warn(at, "`null` is the origin of every sandboxed frame, on any page");
    }
    if credentials && text.starts_with("http://") && !text.contains("://localhost") {
        context.warn(at, "whoever sits on the network can speak as a plain-http origin, with credentials");
    }
    if text.starts_with("https://") && text.ends_with(":443")
        || text.starts_with("http://") && text.ends_with(":80")
    {
        context.warn(at, "browsers leave a scheme's own port out, so this never matches");
    }
    let OriginRule::Pattern(pattern) = rule else { return };
    if ["https://attacker.invalid", "null"].iter().any(|origin| pattern.is_match(origin)) {
        context.warn(at, "this pattern matches any origin");
    } else if has_bare_dot(text) {
        context
            .warn(at, "an unescaped dot stands for any character; write `\\.`, or `[a-z0-9-]+` for a label");
    }
}

/// Whether a pattern has a dot that is neither escaped nor in a class.
fn has_bare_dot(pattern: &str) -> bool {
    let (mut escaped, mut class) = (false, false);
    pattern.bytes().any(|byte| {
        let plain = !std::mem::take(&mut escaped);
        match byte {
            b'\\' if plain => escaped = true,
            b'[' if plain => class = true,
            b']' if plain => class = false,
            b'.' => return plain && !class,
            _ => {}
        }
        false
    })
}

/// Whether the client came over TLS: to the gateway, or to a trusted proxy that says so. Of strangers that header is
/// removed before any plugin.
pub(crate) fn is_https(exchange: &Exchange) -> bool {
    let told = exchange.request().headers().get("x-forwarded-proto");
    exchange.scheme() == "https" || told.is_some_and(|proto| proto == "https")
}
