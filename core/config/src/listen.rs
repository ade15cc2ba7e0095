//! Where a listener is: an address of TCP, or a socket in the file system and who may use it.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::values::{Text, TextVisitor, expected, text_types};

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
