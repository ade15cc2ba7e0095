//! Where a listener is: an address of TCP, or a socket in the file system and who may use it; and what clients may
//! keep it busy with.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::{at_least_one, seconds};
use crate::rates::{MinRate, Rate};
use crate::values::{ByteSize, Duration, Text, TextVisitor, expected, positive, text_types};

/// Where to listen: an IP address and port, or a Unix socket: `unix:/run/portcullis.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// An address of TCP.
    Tcp(SocketAddr),
    /// The absolute path of a socket.
    Unix(PathBuf),
}

/// Permissions of a file, octal: `0660`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMode(pub u32);

/// Limits of a listener, of each of its clients and of each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ListenerLimits {
    /// Connections open at a time, over all workers. Default `10000`.
    pub connections: NonZeroU32,
    /// Connections that one client may have open at a time, over all workers: one IPv4 address, or one IPv6 network
    /// of 64 bits. Trusted proxies may have more. Default: no limit, because many people may share an address.
    /// Example: `200`.
    pub connections_per_client: Option<NonZeroU32>,
    /// TLS handshakes that one client may begin in a time, as many at once. Trusted proxies may begin more. Default:
    /// no limit. Example: `50/s`.
    pub handshakes_per_client: Option<Rate>,
    /// Size of a request's head, 512B to 16MiB. Default `16KiB`.
    pub header_bytes: ByteSize,
    /// Number of header lines in a request, at most 10000. Default `100`.
    pub header_count: NonZeroU32,
    /// Time to send a request's head. Default `10s`.
    #[serde(deserialize_with = "positive")]
    pub header_timeout: Duration,
    /// Longest time between two pieces of a request's body. Default `30s`.
    #[serde(deserialize_with = "positive")]
    pub body_timeout: Duration,
    /// Time for which a client may take nothing of a response. Default `1m`.
    #[serde(deserialize_with = "positive")]
    pub write_timeout: Duration,
    /// Bytes a second that make up for the time for which a client was waited for, so that a trickle does not keep it
    /// within `body_timeout` and `write_timeout`; or `off`. It does not bind gRPC requests to upstreams that speak
    /// HTTP/2, which may pause. Default `256B/s`.
    pub min_rate: MinRate,
    /// Time a connection may be open without a request. Default `1m`.
    #[serde(deserialize_with = "positive")]
    pub idle_timeout: Duration,
    /// Time without a word after which the system asks over TCP whether a client is still there, for as long again before the
    /// connection counts as broken. Default: never. Example: `1m`.
    pub tcp_keepalive: Option<Duration>,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            connections: at_least_one(10_000),
            connections_per_client: None,
            handshakes_per_client: None,
            header_bytes: ByteSize(16 << 10),
            header_count: at_least_one(100),
            header_timeout: seconds(10),
            body_timeout: seconds(30),
            write_timeout: seconds(60),
            min_rate: MinRate(NonZeroU64::new(256)),
            idle_timeout: seconds(60),
            tcp_keepalive: None,
        }
    }
}

impl Text for ListenAddress {
    const EXPECTED: &'static str = "an IP address and port such as `0.0.0.0:8080` or `[::]:8080`, or a Unix socket such as `unix:/run/portcullis.sock`";

    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) => unix_path(path).map(Self::Unix),
            None => text.parse().map(Self::Tcp).map_err(|_| expected::<Self>(text)),
        }
    }
}

/// The longest path of a socket that the system has room for.
pub(crate) const LONGEST_SOCKET: usize = 107;

/// The path of a Unix socket.
pub(crate) fn unix_path(path: &str) -> Result<PathBuf, String> {
    if !Path::new(path).is_absolute() {
        return Err("a Unix socket has an absolute path such as `unix:/run/app.sock`".to_owned());
    }
    if path.len() > LONGEST_SOCKET {
        return Err(format!("the path of a Unix socket has {LONGEST_SOCKET} bytes at most"));
    }
    if path.contains(char::is_control) {
        return Err("the path of a Unix socket has no control characters".to_owned());
    }
    Ok(path.into())
}

impl Text for FileMode {
    const EXPECTED: &'static str = "permissions such as `0660`";

    fn parse(text: &str) -> Result<Self, String> {
        let is_octal =
            (3..=4).contains(&text.len()) && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
        mode.map(Self).ok_or_else(|| expected::<Self>(text))
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

text_types! {
    ListenAddress None;
    FileMode Some("^0?[0-7]{3}$");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason<T: Text + fmt::Debug>(text: &str) -> String {
        T::parse(text).unwrap_err()
    }

    fn shown<T: Text + fmt::Display>(text: &str) -> String {
        T::parse(text).unwrap().to_string()
    }

    #[test]
    fn listeners_are_at_addresses_or_paths() {
        assert_eq!(shown::<ListenAddress>("[::]:80"), "[::]:80");
        assert_eq!(shown::<ListenAddress>("unix:/run/a b.sock"), "unix:/run/a b.sock");
        assert_eq!(
            reason::<ListenAddress>("unix:a.sock"),
            "a Unix socket has an absolute path such as `unix:/run/app.sock`"
        );
        assert!(reason::<ListenAddress>("unix:/run/a\nb").contains("control characters"));
        assert!(reason::<ListenAddress>("/run/a.sock").starts_with("expected an IP address and port"));
        let longest = format!("unix:/{}", "s".repeat(LONGEST_SOCKET - 1));
        assert!(
            ListenAddress::parse(&longest).is_ok() && ListenAddress::parse(&format!("{longest}s")).is_err()
        );
    }

    #[test]
    fn permissions_are_octal() {
        assert_eq!(
            (FileMode::parse("0660"), FileMode::parse("600")),
            (Ok(FileMode(0o660)), Ok(FileMode(0o600)))
        );
        assert_eq!(shown::<FileMode>("777"), "0777");
        for wrong in ["", "60", "0680", "1777", "00660", "+660", "rw-------"] {
            assert!(reason::<FileMode>(wrong).starts_with("expected permissions such as `0660`"), "{wrong}");
        }
    }
}
