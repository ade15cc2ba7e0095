//! The exchange as a policy sees it. Nothing is copied into the guest before it is asked for.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::bindings::portcullis::policy::exchange::{self as imports, Message};
use crate::{Attempt, Connection, Decider, Error, Outcome, Result};

/// One request with its response. The gateway keeps it; this is a handle on the one for which the
/// hook runs.
#[derive(Debug)]
pub struct Exchange(());

impl Exchange {
    pub(crate) const CURRENT: Exchange = Exchange(());

    /// The client's request.
    pub fn request(&self) -> Request {
        Request(Message::Request)
    }

    /// The request of the current attempt, within `on_upstream`. What is set here is sent this time
    /// only.
    pub fn outgoing(&self) -> Request {
        Request(Message::Outgoing)
    }

    /// The response, from `on_response` on.
    pub fn response(&self) -> Response {
        Response(())
    }

    /// The request id.
    pub fn id(&self) -> String {
        imports::id()
    }

    /// Takes over a request id: 1 to 128 visible ASCII characters.
    pub fn set_id(&self, id: &str) -> Result<()> {
        imports::set_id(id).map_err(Error::new)
    }

    /// The client's address: the peer's, or what a trusted proxy said.
    pub fn client(&self) -> String {
        imports::client()
    }

    /// `https` or `http`.
    pub fn scheme(&self) -> String {
        imports::scheme()
    }

    /// The client's connection.
    pub fn connection(&self) -> Connection {
        imports::connection()
    }

    /// The route's name; none if the request was refused before one was chosen.
    pub fn route(&self) -> Option<String> {
        imports::route()
    }

    /// A capture of the route's path template, percent-encoded as it came.
    pub fn capture(&self, name: &str) -> Option<String> {
        imports::capture(name)
    }

    /// Path and query before any rewrite.
    pub fn original_target(&self) -> String {
        imports::original_target()
    }

    /// Who is calling, if a plugin established it.
    pub fn principal(&self) -> Option<Principal> {
        serde_json::from_str(&imports::principal()?).ok()
    }

    /// Establishes who is calling.
    pub fn set_principal(&self, principal: &Principal) -> Result<()> {
        imports::set_principal(&serde_json::to_string(principal)?).map_err(Error::new)
    }

    /// A fact that an earlier plugin left; none if it is absent or of another shape.
    pub fn fact<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_str(&imports::fact(name)?).ok()
    }

    /// Leaves a fact for later plugins and the access log.
    pub fn set_fact(&self, name: &str, value: impl Serialize) -> Result<()> {
        imports::set_fact(name, &serde_json::to_string(&value)?).map_err(Error::new)
    }

    /// Names the rule that the verdict of this hook rests on, for the record; at most 256 bytes of it.
    pub fn rests_on(&self, rule: &str) {
        imports::rests_on(rule);
    }

    /// The current or last attempt.
    pub fn attempt(&self) -> Option<Attempt> {
        imports::attempt()
    }

    /// Who answered or refused, if it was not the upstream.
    pub fn decider(&self) -> Option<Decider> {
        imports::decider()
    }

    /// How it ended, within `on_log`.
    pub fn outcome(&self) -> Option<Outcome> {
        imports::outcome()
    }

    /// How a call of gRPC ended, within `on_log`: the name of the code, such as `UNAVAILABLE`.
    pub fn grpc_status(&self) -> Option<String> {
        imports::grpc_status()
    }
}

macro_rules! headers {
    ($message:ident) => {
        /// A header's first value; none if it is absent or not text.
        pub fn header(&self, name: &str) -> Option<String> {
            String::from_utf8(self.header_bytes(name)?).ok()
        }

        /// A header's first value, as it came.
        pub fn header_bytes(&self, name: &str) -> Option<Vec<u8>> {
            imports::header(self.$message(), name)
        }

        /// All headers, names in lower case; for more than three cheaper than one by one.
        pub fn headers(&self) -> Vec<(String, Vec<u8>)> {
            unpack(&imports::headers(self.$message()))
        }

        /// Sets a header to this one value.
        pub fn set_header(&self, name: &str, value: impl AsRef<[u8]>) -> Result<()> {
            imports::set_header(self.$message(), name, value.as_ref()).map_err(Error::new)
        }

        /// Adds a value to a header.
        pub fn append_header(&self, name: &str, value: impl AsRef<[u8]>) -> Result<()> {
            imports::append_header(self.$message(), name, value.as_ref()).map_err(Error::new)
        }

        /// Removes a header with all its values.
        pub fn remove_header(&self, name: &str) -> Result<()> {
            imports::remove_header(self.$message(), name).map_err(Error::new)
        }

        /// The whole body, from its hook on.
        pub fn body(&self) -> Option<Vec<u8>> {
            imports::body(self.$message())
        }

        /// Replaces the body, within its hook.
        pub fn set_body(&self, body: impl AsRef<[u8]>) -> Result<()> {
            imports::set_body(self.$message(), body.as_ref()).map_err(Error::new)
        }
    };
}

/// The client's request, or that of an attempt.
#[derive(Debug)]
pub struct Request(Message);

impl Request {
    fn message(&self) -> Message {
        self.0
    }

    /// The method.
    pub fn method(&self) -> String {
        imports::method(self.0).unwrap_or_default()
    }

    /// Another method.
    pub fn set_method(&self, method: &str) -> Result<()> {
        imports::set_method(self.0, method).map_err(Error::new)
    }

    /// The normalised path, still percent-encoded where it must be.
    pub fn path(&self) -> String {
        imports::path(self.0).unwrap_or_default()
    }

    /// Whether the path is `prefix` or lies below it, by whole segments: `/admin` has `/admin/users`
    /// below it, and not `/administration`.
    pub fn is_below(&self, prefix: &str) -> bool {
        lies_below(&self.path(), prefix)
    }

    /// Another path, with the query as it was. The route stays as chosen.
    pub fn set_path(&self, path: &str) -> Result<()> {
        imports::set_path(self.0, path).map_err(Error::new)
    }

    /// The query without its question mark.
    pub fn query(&self) -> Option<String> {
        imports::query(self.0)
    }

    /// Another query, without question mark; none to remove it.
    pub fn set_query(&self, query: Option<&str>) -> Result<()> {
        imports::set_query(self.0, query).map_err(Error::new)
    }

    /// The first query parameter of this name, decoded.
    pub fn query_param(&self, name: &str) -> Option<String> {
        imports::query_param(self.0, name)
    }

    /// The host that was asked for, lower case, without port.
    pub fn host(&self) -> String {
        imports::host(self.0).unwrap_or_default()
    }

    /// A cookie's value.
    pub fn cookie(&self, name: &str) -> Option<String> {
        imports::cookie(self.0, name)
    }

    headers!(message);
}

/// The response.
#[derive(Debug)]
pub struct Response(());

impl Response {
    fn message(&self) -> Message {
        Message::Response
    }

    /// The status; none if there is no response, as before `on_response` or when the client was
    /// gone first.
    pub fn status(&self) -> Option<u16> {
        imports::status()
    }

    /// Another status.
    pub fn set_status(&self, status: u16) -> Result<()> {
        imports::set_status(status).map_err(Error::new)
    }

    headers!(message);
}

/// Who is calling.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Principal {
    /// Stable identifier, e.g. a token's `sub` or a key's owner.
    pub id: String,
    /// Who vouches for it.
    pub issuer: String,
    /// Roles granted.
    pub roles: Vec<String>,
    /// OAuth scopes granted.
    pub scopes: Vec<String>,
    /// Everything else that is known.
    pub claims: Map<String, Value>,
}

/// Decodes what the gateway packs: per header a name with its length (u16, little endian) and a
/// value with its length (u32, little endian).
fn unpack(mut packed: &[u8]) -> Vec<(String, Vec<u8>)> {
    fn field<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (length, tail) = rest.split_first_chunk::<N>()?;
        let length = length.iter().rev().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let (field, tail) = tail.split_at_checked(length)?;
        *rest = tail;
        Some(field)
    }
    let mut headers = Vec::new();
    while let (Some(name), Some(value)) = (field::<2>(&mut packed), field::<4>(&mut packed)) {
        headers.push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
    }
    headers
}

fn lies_below(path: &str, prefix: &str) -> bool {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lie_below_a_prefix_by_whole_segments() {
        for (prefix, below, beside) in [
            ("/admin", ["/admin", "/admin/", "/admin/users"], ["/administration", "/", "/x/admin"]),
            ("/admin/", ["/admin", "/admin/", "/admin/users"], ["/administration", "/", "/x/admin"]),
        ] {
            assert!(below.iter().all(|path| lies_below(path, prefix)), "{prefix}");
            assert!(!beside.iter().any(|path| lies_below(path, prefix)), "{prefix}");
        }
        assert!(lies_below("/anything", "/") && lies_below("/", "/"));
    }

    #[test]
    fn packed_headers_are_decoded_and_a_short_end_is_left() {
        let packed = b"\x01\0a\x02\0\0\0hi\x02\0bc\0\0\0\0\x01\0x\x09\0\0\0cut";
        let headers = unpack(packed);
        assert_eq!(headers, [("a".into(), b"hi".to_vec()), ("bc".into(), Vec::new())]);
    }

    #[test]
    fn a_principal_needs_only_what_is_known() {
        let principal: Principal = serde_json::from_str(r#"{"id":"ann","roles":["admin"]}"#).unwrap();
        assert_eq!((principal.id.as_str(), principal.roles.len(), principal.issuer.as_str()), ("ann", 1, ""));
    }
}
