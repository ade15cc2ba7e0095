//! Values that may be written in more than one form: a word or a table.

use std::fmt;
use std::num::NonZeroU32;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::config::Predicate;
use crate::error::nearest;
use crate::listen::unix_path;
use crate::node::shortened;
use crate::upstreams::{Endpoint, EndpointAddress, HostHeader, Scheme};
use crate::values::{Pattern, is_host_name};

impl<'de> Deserialize<'de> for Predicate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PredicateVisitor)
    }
}

struct PredicateVisitor;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum PredicateTable {
    Present(bool),
    Regex(Pattern),
}

impl<'de> Visitor<'de> for PredicateVisitor {
    type Value = Predicate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a quoted value, `{ present: true }` or `{ regex: \"...\" }`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Predicate, E> {
        Ok(Predicate::Is(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Predicate, A::Error> {
        Ok(match PredicateTable::deserialize(MapAccessDeserializer::new(map))? {
            PredicateTable::Present(present) => Predicate::Present(present),
            PredicateTable::Regex(pattern) => Predicate::Regex(pattern),
        })
    }
}

impl<'de> Deserialize<'de> for HostHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "preserve" => Ok(Self::Preserve),
            "endpoint" => Ok(Self::Endpoint),
            // A single word may well be a host, but hardly one so much like the others.
            word if nearest(word, ["preserve", "endpoint"].into_iter()).is_some() => Err(de::Error::custom(
                "expected `preserve`, `endpoint` or a host name, and this is none of them",
            )),
            name if split_port(name).is_ok() => Ok(Self::Name(text)),
            _ => Err(de::Error::custom(
                "expected `preserve`, `endpoint` or a host name such as `internal.example`",
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EndpointVisitor)
    }
}

struct EndpointVisitor;

/// An address as it is written: `http://host:port`, nothing before or after.
struct EndpointUrl(EndpointAddress);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointTable {
    url: EndpointUrl,
    #[serde(default = "one", deserialize_with = "weight")]
    weight: NonZeroU32,
    #[serde(default)]
    priority: u8,
    #[serde(default)]
    zone: Option<String>,
}

/// Every endpoint is as often in the order of turns as its weight says.
const LARGEST_WEIGHT: u32 = 1000;

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

fn weight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NonZeroU32, D::Error> {
    let weight = NonZeroU32::deserialize(deserializer)?;
    if weight.get() > LARGEST_WEIGHT {
        return Err(de::Error::custom(format!("a weight is {LARGEST_WEIGHT} at most")));
    }
    Ok(weight)
}

impl<'de> Visitor<'de> for EndpointVisitor {
    type Value = Endpoint;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address such as `http://10.0.0.1:8080`, or `{ url: ..., weight: 2, priority: 1 }`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Endpoint, E> {
        let address = endpoint_url(text).map_err(E::custom)?;
        Ok(Endpoint { address, weight: one(), priority: 0, zone: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Endpoint, A::Error> {
        let EndpointTable { url: EndpointUrl(address), weight, priority, zone } =
            EndpointTable::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Endpoint { address, weight, priority, zone })
    }
}

impl<'de> Deserialize<'de> for EndpointUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        endpoint_url(&text).map(Self).map_err(de::Error::custom)
    }
}

fn endpoint_url(text: &str) -> Result<EndpointAddress, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix_path(path).map(EndpointAddress::Unix);
    }
    let (scheme, authority) = if let Some(authority) = text.strip_prefix("http://") {
        (Scheme::Http, authority)
    } else if let Some(authority) = text.strip_prefix("https://") {
        (Scheme::Https, authority)
    } else {
        return Err(format!(
            "expected an address such as `http://10.0.0.1:8080`, `https://api.internal` or `unix:/run/app.sock`, found string `{}`",
            shortened(text)
        ));
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if authority.contains(['/', '?', '#']) {
        return Err("an endpoint has no path: change paths with a route's `rewrite`".to_owned());
    }
    if authority.contains('@') {
        return Err("an endpoint has no user name or password".to_owned());
    }
    let (host, port) = split_port(authority)?;
    Ok(EndpointAddress::Tcp { scheme, host, port: port.unwrap_or(scheme.port()) })
}

impl Scheme {
    /// The port where none is said.
    pub fn port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// What can stand in `Host`.
pub(crate) fn host_and_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    split_port(&text).map_err(de::Error::custom)?;
    Ok(Some(text))
}

/// Host, without the brackets of an IPv6 address, and port.
fn split_port(authority: &str) -> Result<(String, Option<u16>), String> {
    let bad =
        || format!("expected a host and port such as `10.0.0.1:8080`, found `{}`", shortened(authority));
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or_else(bad)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
            let port = if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or_else(bad)?) };
            (host, port)
        }
        None => {
            let (host, port) = match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            };
            if !is_host_name(host) {
                return Err(bad());
            }
            (host, port)
        }
    };
    let port = match port {
        Some(port) if port.starts_with('+') => return Err(bad()),
        Some(port) => Some(port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?),
        None => None,
    };
    Ok((host.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::LONGEST_SOCKET;
    use crate::yaml;

    fn read<T: de::DeserializeOwned>(text: &str) -> Result<T, String> {
        yaml::parse(text, &|_| None).unwrap().read("x").map_err(|errors| errors[0].to_string())
    }

    #[test]
    fn predicates_have_three_forms() {
        assert_eq!(read::<Predicate>("acme"), Ok(Predicate::Is("acme".to_owned())));
        assert_eq!(read::<Predicate>("{ present: false }"), Ok(Predicate::Present(false)));
        assert!(matches!(read::<Predicate>("{ regex: ^a }"), Ok(Predicate::Regex(_))));
        assert_eq!(
            read::<Predicate>("2").unwrap_err(),
            "x: expected a quoted value, `{ present: true }` or `{ regex: \"...\" }`, found number 2"
        );
        assert_eq!(
            read::<Predicate>("{ regex: \"(\" }").unwrap_err(),
            "x.regex: not a regular expression: unclosed group"
        );
        assert_eq!(read::<Predicate>("{ absent: true }").unwrap_err(), "unknown key `absent` in `x`");
        assert_eq!(
            read::<Predicate>("{ present: true, regex: a }").unwrap_err(),
            "x: expected a table with exactly one key"
        );
    }

    #[test]
    fn endpoints_are_http_addresses() {
        let endpoint = |text| {
            read::<Endpoint>(text).map(|endpoint| match endpoint.address {
                EndpointAddress::Tcp { host, port, .. } => (host, port, endpoint.weight.get()),
                EndpointAddress::Unix(path) => (path.display().to_string(), 0, endpoint.weight.get()),
            })
        };
        assert_eq!(endpoint("http://127.0.0.1:9000"), Ok(("127.0.0.1".to_owned(), 9000, 1)));
        assert_eq!(endpoint("{ url: \"http://[::1]:9001\", weight: 3 }"), Ok(("::1".to_owned(), 9001, 3)));
        assert_eq!(endpoint("http://api.internal/"), Ok(("api.internal".to_owned(), 80, 1)));
        assert_eq!(endpoint("https://api.internal"), Ok(("api.internal".to_owned(), 443, 1)));
        assert_eq!(endpoint("unix:/run/app.sock"), Ok(("/run/app.sock".to_owned(), 0, 1)));
        assert_eq!(
            endpoint("unix:app.sock").unwrap_err(),
            "x: a Unix socket has an absolute path such as `unix:/run/app.sock`"
        );
        assert_eq!(
            endpoint("{ url: \"https://a:1/b\" }").unwrap_err(),
            "x.url: an endpoint has no path: change paths with a route's `rewrite`"
        );
        let longest = format!("unix:/{}", "s".repeat(LONGEST_SOCKET - 1));
        let beyond = format!("{longest}s");
        assert!(endpoint(&longest).is_ok() && endpoint(&beyond).is_err());
        assert_eq!(
            endpoint("http://a:1/b").unwrap_err(),
            "x: an endpoint has no path: change paths with a route's `rewrite`"
        );
        assert!(endpoint("127.0.0.1:9000").unwrap_err().starts_with("x: expected an address such as"));
        for bad in [
            "http://a:0",
            "http://a:b",
            "http://[::1",
            "http://[x]:1",
            "http://u@a",
            "http://",
            "http://a:99999",
            "http://a:+80",
            "http://10.0.5",
            "http://10.0.0.256",
            "http://0177.1:80",
            "http://api.0x7f",
        ] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
        assert!(
            endpoint("{ url: \"http://a\", weight: 0 }").unwrap_err().contains("a whole number, 1 or more")
        );
        assert_eq!(endpoint("{ url: \"http://a\", weight: 1000 }").unwrap().2, 1000);
        assert_eq!(
            endpoint("{ url: \"http://a\", weight: 1001 }").unwrap_err(),
            "x.weight: a weight is 1000 at most"
        );
    }

    #[test]
    fn host_headers() {
        assert_eq!(read("endpoint"), Ok(HostHeader::Endpoint));
        assert_eq!(read("internal.example:8080"), Ok(HostHeader::Name("internal.example:8080".to_owned())));
        for bad in ["a b", "endpont", "a:+80"] {
            assert!(read::<HostHeader>(bad).is_err(), "{bad}");
        }
    }
}
