//! The small value types of the configuration, each with its own syntax and its own words for what is wrong.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration as StdDuration, SystemTime};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::node::shortened;

/// A length of time with its unit: `500ms`, `10s`, `2m`, `1h`, `1d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub StdDuration);

/// A number of bytes with its unit: `512B`, `64KiB`, `10MiB`, `1GiB`, or decimal `1kB`, `1MB`, `1GB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// A number of bytes, or `unlimited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeLimit {
    /// At most this many.
    Bytes(ByteSize),
    /// No limit.
    Unlimited,
}

/// A share: `20%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percent(pub u8);

/// A moment in UTC: `2030-01-31T00:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub SystemTime);

/// A network `10.0.0.0/8`, or one address `::1`. What is mapped from IPv4 is IPv4, as clients' addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(pub IpNet);

/// An IP address and port to listen on: `0.0.0.0:8080`, `[::]:8080`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address(pub SocketAddr);

/// A host name, lowercase: `api.example.com`, or `*.example.com` for every name below it, but not itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPattern(String);

/// A host name, lowercase: `api.example.com`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostName(String);

/// A path template: `/users/{id}`; `{name}` stands for one segment, a last `/**` or `/{name**}` for the rest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathTemplate(String);

/// The beginning of a path, literal, itself beginning with `/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathPrefix(String);

/// A path with a query or without, itself beginning with `/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestTarget(String);

/// A request method, uppercase.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Method(String);

/// A header name, lowercase.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeaderName(String);

/// A protocol as `Upgrade` names it, lowercase: `websocket`, or with a version `name/2`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(String);

/// A regular expression, compiled.
#[derive(Clone, Debug)]
pub struct Pattern(pub regex::Regex);

/// A type written as one string. The error is the reason alone: the place and the value are added elsewhere.
pub(crate) trait Text: Sized {
    const EXPECTED: &'static str;

    fn parse(text: &str) -> Result<Self, String>;
}

impl Text for Duration {
    const EXPECTED: &'static str = "a duration such as `10s`";

    fn parse(text: &str) -> Result<Self, String> {
        let (number, unit) = split_unit(text).ok_or_else(|| expected::<Self>(text))?;
        let nanos: u64 = match unit {
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60 * 1_000_000_000,
            "h" => 3_600 * 1_000_000_000,
            "d" => 86_400 * 1_000_000_000,
            "" => {
                return Err(format!("`{number}` lacks a unit: write `{number}s`, `{number}ms`, `{number}m`"));
            }
            _ => return Err(format!("unknown unit `{}`: known are ms, s, m, h, d", shortened(unit))),
        };
        // Ten years: beyond that nothing is meant as a bound, and timers need not fear an overflow.
        const LONGEST: StdDuration = StdDuration::from_secs(3_650 * 86_400);
        let length = number.checked_mul(nanos).map(StdDuration::from_nanos);
        match length.filter(|length| *length <= LONGEST) {
            Some(length) => Ok(Self(length)),
            None => Err("a duration of more than ten years".to_owned()),
        }
    }
}

impl Text for ByteSize {
    const EXPECTED: &'static str = "a size such as `64KiB`";

    fn parse(text: &str) -> Result<Self, String> {
        let (number, unit) = split_unit(text).ok_or_else(|| expected::<Self>(text))?;
        let factor: u64 = match unit {
            "B" => 1,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "" => {
                return Err(format!(
                    "`{number}` lacks a unit: write `{number}B`, `{number}KiB`, `{number}MiB`"
                ));
            }
            _ => {
                return Err(format!(
                    "unknown unit `{}`: known are B, kB, MB, GB, KiB, MiB, GiB",
                    shortened(unit)
                ));
            }
        };
        number.checked_mul(factor).map(Self).ok_or_else(|| "a size beyond all memory".to_owned())
    }
}

impl Text for SizeLimit {
    const EXPECTED: &'static str = "a size such as `10MiB`, or `unlimited`";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "unlimited" => Ok(Self::Unlimited),
            text if split_unit(text).is_none() => Err(expected::<Self>(text)),
            text => <ByteSize as Text>::parse(text).map(Self::Bytes),
        }
    }
}

impl Text for Percent {
    const EXPECTED: &'static str = "a share from `0%` to `100%`";

    fn parse(text: &str) -> Result<Self, String> {
        match split_unit(text) {
            Some((share @ 0..=100, "%")) => Ok(Self(share as u8)),
            Some((share @ 0..=100, "")) => Err(format!("`{share}` lacks a unit: write `{share}%`")),
            _ => Err(expected::<Self>(text)),
        }
    }
}

impl Text for Moment {
    const EXPECTED: &'static str = "a moment such as `2030-01-31T00:00:00Z`";

    fn parse(text: &str) -> Result<Self, String> {
        humantime::parse_rfc3339(text).map(Self).map_err(|_| expected::<Self>(text))
    }
}

/// The address that clients of Unix sockets have.
const UNIX: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

impl Text for Network {
    const EXPECTED: &'static str = "a network such as `10.0.0.0/8` or an address such as `::1`";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "unix" {
            return Ok(Self(UNIX.into()));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self(address.to_canonical().into()));
        }
        let network: IpNet = text.parse().map_err(|_| expected::<Self>(text))?;
        if network != network.trunc() {
            return Err(format!("`{network}` is an address within a network: write `{}`", network.trunc()));
        }
        let IpNet::V6(v6) = network else { return Ok(Self(network)) };
        // IPv4 lies in `::ffff:0:0/96`, and whatever is shorter than that begins elsewhere.
        let mapped = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
        let v4 = mapped.and_then(|(v4, length)| IpNet::new(v4.into(), length).ok());
        Ok(Self(v4.unwrap_or(network)))
    }
}

impl Text for Address {
    const EXPECTED: &'static str = "an IP address and port such as `0.0.0.0:8080` or `[::]:8080`";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| expected::<Self>(text))
    }
}

impl Text for HostPattern {
    const EXPECTED: &'static str = "a host name such as `api.example.com` or `*.example.com`";

    fn parse(text: &str) -> Result<Self, String> {
        if text.contains("://") || text.contains('/') {
            return Err(format!("`{}` is no host name: leave scheme and path out", shortened(text)));
        }
        let address = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        if address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()) {
            return Ok(Self(text.to_ascii_lowercase()));
        }
        if text.contains(':') {
            return Err(format!("`{}` has a port: routes match host names only", shortened(text)));
        }
        if !text.is_ascii() {
            return Err(format!("`{}` must be written in its ASCII form, `xn--...`", shortened(text)));
        }
        let name = text.strip_prefix("*.").unwrap_or(text);
        if name.contains('*') {
            return Err("`*` may stand only for the first labels, as in `*.example.com`".to_owned());
        }
        if !is_host_name(name) {
            return Err(expected::<Self>(text));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl Text for HostName {
    const EXPECTED: &'static str = "a host name such as `api.example.com`";

    fn parse(text: &str) -> Result<Self, String> {
        if is_host_name(text) { Ok(Self(text.to_ascii_lowercase())) } else { Err(expected::<Self>(text)) }
    }
}

impl Text for PathTemplate {
    const EXPECTED: &'static str = "a path such as `/users/{id}`";

    fn parse(text: &str) -> Result<Self, String> {
        let segments = path_segments(text)?;
        let mut names: Vec<&str> = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            let is_last = index + 1 == segments.len();
            if let Some(name) = placeholder(segment, is_last)? {
                if names.contains(&name) {
                    return Err(format!("`{{{name}}}` stands here twice"));
                }
                names.push(name);
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl Text for PathPrefix {
    const EXPECTED: &'static str = "a path such as `/static`";

    fn parse(text: &str) -> Result<Self, String> {
        path_segments(text)?;
        if text.contains(['{', '}', '*']) {
            return Err("a literal path: templates with `{}` or `**` belong in `path`".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl Text for RequestTarget {
    const EXPECTED: &'static str = "a path such as `/healthz`, with a query or without";

    fn parse(text: &str) -> Result<Self, String> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        path_segments(path)?;
        match query.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
            Some(bad) => Err(format!("`{}` cannot stand in a query", bad.escape_default())),
            None if !path.is_ascii() => Err("what is no ASCII is written with `%`".to_owned()),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl Text for Method {
    const EXPECTED: &'static str = "a method such as `GET`";

    fn parse(text: &str) -> Result<Self, String> {
        if !is_token(text) {
            return Err(expected::<Self>(text));
        }
        if text.bytes().any(|b| b.is_ascii_lowercase()) {
            return Err(format!("methods are uppercase: `{}`", text.to_ascii_uppercase()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Text for HeaderName {
    const EXPECTED: &'static str = "a header name such as `x-tenant`";

    fn parse(text: &str) -> Result<Self, String> {
        if is_token(text) { Ok(Self(text.to_ascii_lowercase())) } else { Err(expected::<Self>(text)) }
    }
}

impl Text for Protocol {
    const EXPECTED: &'static str = "a protocol such as `websocket`";

    fn parse(text: &str) -> Result<Self, String> {
        let protocol = text.to_ascii_lowercase();
        let (name, version) = protocol.split_once('/').unwrap_or((&protocol, "1"));
        match name {
            "h2c" | "http" | "tls" => {
                Err(format!("`{name}` is for the gateway itself to speak, and never passed on"))
            }
            name if is_token(name) && is_token(version) => Ok(Self(protocol)),
            _ => Err(expected::<Self>(text)),
        }
    }
}

impl Text for Pattern {
    const EXPECTED: &'static str = "a regular expression";

    fn parse(text: &str) -> Result<Self, String> {
        // Compiled programs are a few KiB; this keeps a hostile or mistaken one from taking megabytes per route.
        const LARGEST: usize = 1 << 20;
        regex::RegexBuilder::new(text).size_limit(LARGEST).build().map(Self).map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "this regular expression is too large".to_owned(),
            error => {
                let reason = error.to_string();
                let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
                format!("not a regular expression: {reason}")
            }
        })
    }
}

pub(crate) fn expected<T: Text>(found: &str) -> String {
    format!("expected {}, found string `{}`", T::EXPECTED, shortened(found))
}

pub(crate) fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit))
}

fn path_segments(text: &str) -> Result<Vec<&str>, String> {
    let rest = text.strip_prefix('/').ok_or("a path begins with `/`")?;
    if let Some(bad) = text.chars().find(|c| c.is_control() || c.is_whitespace() || "?#\\".contains(*c)) {
        return Err(format!("`{}` cannot stand in a path", bad.escape_default()));
    }
    Ok(rest.split('/').collect())
}

/// The name of a template's placeholder segment, `None` for a literal one.
fn placeholder(segment: &str, is_last: bool) -> Result<Option<&str>, String> {
    if segment == "*" {
        return Err("`*` has no meaning here: write `{name}` for one segment, `/**` for the rest".to_owned());
    }
    let inner = segment.strip_prefix('{').and_then(|segment| segment.strip_suffix('}'));
    let (name, is_rest) = match inner {
        Some(inner) => (inner.strip_suffix("**").unwrap_or(inner), inner.ends_with("**")),
        None if segment == "**" => ("", true),
        None if segment.contains(['{', '}', '*']) => {
            return Err(format!(
                "`{}` mixes text and placeholder: a placeholder is a whole segment",
                shortened(segment)
            ));
        }
        None => return Ok(None),
    };
    if is_rest && !is_last {
        return Err(format!("`{segment}` may only stand at the end"));
    }
    if inner.is_some() && !is_identifier(name) {
        return Err(format!(
            "`{}` is no placeholder: write `{{name}}`, letters, digits and `_`",
            shortened(segment)
        ));
    }
    Ok(inner.map(|_| name))
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// A token of RFC 9110, section 5.6.2.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// A name of RFC 1123, section 2.1, with the underscore that container networks use. What ends in a number is an
/// address, and would be read as one: `10.0.5` as `10.0.0.5`.
pub(crate) fn is_host_name(text: &str) -> bool {
    let last = text.rsplit('.').next().unwrap_or_default();
    let is_number = match last.strip_prefix("0x").or(last.strip_prefix("0X")) {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => last.bytes().all(|byte| byte.is_ascii_digit()),
    };
    if is_number {
        return text.parse::<Ipv4Addr>().is_ok();
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.len() <= 253 && text.split('.').all(label)
}

impl Method {
    /// `GET`.
    pub(crate) fn get() -> Self {
        Self("GET".to_owned())
    }
}

impl RequestTarget {
    /// `/`.
    pub(crate) fn root() -> Self {
        Self("/".to_owned())
    }
}

impl SizeLimit {
    /// The limit in bytes, if there is one.
    pub fn bytes(self) -> Option<u64> {
        match self {
            Self::Bytes(size) => Some(size.0),
            Self::Unlimited => None,
        }
    }
}

impl PathTemplate {
    /// The template without the names of its placeholders: equal for templates that match the same paths.
    pub fn shape(&self) -> String {
        let segment = |segment: &str| match placeholder(segment, true) {
            Ok(Some(_)) if segment.ends_with("**}") => "**".to_owned(),
            Ok(Some(_)) => "{}".to_owned(),
            _ => segment.to_owned(),
        };
        self.0.split('/').map(segment).collect::<Vec<_>>().join("/")
    }

    /// The names of its placeholders.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter_map(|segment| placeholder(segment, true).ok().flatten())
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
        match units.iter().find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", millis / unit),
            None if millis == 0 => f.write_str("0s"),
            None => write!(f, "{millis}ms"),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.iter().find(|(unit, _)| self.0 > 0 && self.0.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl fmt::Display for SizeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(size) => size.fmt(f),
            Self::Unlimited => f.write_str("unlimited"),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(self.0).fmt(f)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Patterns are the same if they are written the same.
impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

macro_rules! checked_strings {
    ($($type:ty)*) => { $(
        impl $type {
            /// The text as it stands, checked.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )* };
}

checked_strings!(HostPattern HostName PathTemplate PathPrefix RequestTarget Method HeaderName Protocol);

pub(crate) struct TextVisitor<T>(pub(crate) std::marker::PhantomData<T>);

impl<T: Text> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::parse(text).map_err(E::custom)
    }
}

/// The traits every such type has: from and to a string, and a schema whose description is the type's doc.
macro_rules! text_types {
    ($($type:ident $pattern:expr;)*) => { $(
        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                <Self as Text>::parse(text)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(TextVisitor(std::marker::PhantomData))
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let pattern: Option<&str> = $pattern;
                let mut schema = json_schema!({ "type": "string", "description": <$type as Text>::EXPECTED });
                if let Some(pattern) = pattern {
                    schema.insert("pattern".to_owned(), pattern.into());
                }
                schema
            }
        }
    )* };
}

text_types! {
    Duration Some("^[0-9]+(ms|s|m|h|d)$");
    ByteSize Some("^[0-9]+(B|[kK]B|MB|GB|KiB|MiB|GiB)$");
    SizeLimit Some("^([0-9]+(B|[kK]B|MB|GB|KiB|MiB|GiB)|unlimited)$");
    Percent Some("^(100|[0-9]{1,2})%$");
    Moment None;
    Network None;
    Address None;
    HostPattern None;
    HostName None;
    PathTemplate Some("^/");
    PathPrefix Some("^/");
    RequestTarget Some("^/");
    Method None;
    HeaderName None;
    Protocol None;
    Pattern None;
}

pub(crate) use text_types;

/// For `deserialize_with`: a duration that must not be zero.
pub(crate) fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let duration = Duration::deserialize(deserializer)?;
    if duration.0.is_zero() { Err(de::Error::custom("must be longer than zero")) } else { Ok(duration) }
}

/// The same of a setting that may be left out.
pub(crate) fn some_positive<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    positive(deserializer).map(Some)
}

#[cfg(test)]
mod tests;
