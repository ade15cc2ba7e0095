//! SDK for policies compiled to Wasm.
//!
//! A policy is a type with a configuration and the hooks it wants. [`export!`] names those hooks;
//! the gateway calls no other, and a hook it does not call costs nothing.
//!
//! ```
//! use portcullis_guest::*;
//!
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     prefix: String,
//! }
//!
//! struct Block(Config);
//!
//! impl Policy for Block {
//!     type Config = Config;
//!
//!     fn new(config: Config) -> Result<Self> {
//!         Ok(Block(config))
//!     }
//!
//!     fn on_request(&mut self, exchange: &Exchange) -> Result<Verdict> {
//!         if exchange.request().is_below(&self.0.prefix) {
//!             return deny(403, "block.prefix");
//!         }
//!         proceed()
//!     }
//! }
//!
//! export!(Block: on_request);
//! # fn main() {}
//! ```
//!
//! Built with `cargo build --release --target wasm32-unknown-unknown` (crate type `cdylib`), the
//! `.wasm` file goes into the policy directory, or into a chain as
//! `- wasm: { file: block.wasm, config: { prefix: /internal } }`.
//!
//! An instance lives for one exchange unless the gateway's configuration says otherwise, so what a
//! policy keeps in itself goes from hook to hook of one exchange and never to the next client.

#[doc(hidden)]
pub mod bindings;
mod capabilities;
mod config;
mod exchange;
#[doc(hidden)]
pub mod export;

use std::fmt;

use serde::de::DeserializeOwned;

pub use bindings::portcullis::policy::exchange::Message;
pub use bindings::portcullis::policy::host::Level;
pub use bindings::portcullis::policy::types::{
    Admission, Attempt, Connection, Decider, Denial, Header, Outcome, Reply, TlsSession, Verdict,
};
pub use capabilities::{
    Call, CallAnswer, Taken, cached, call, count, hmac_sha256, is_secret, keep, now, random, store,
    store_add, store_delete, store_replace, stored, take,
};
pub use exchange::{Exchange, Principal, Request, Response};
pub use {serde, serde_json};

/// A policy: its configuration and its hooks. A hook runs only if [`export!`] names it.
pub trait Policy: Sized + 'static {
    /// The `config:` table; `()` for none. An error in it refuses the load of the policy.
    type Config: DeserializeOwned;

    /// Makes an instance; an error refuses the load of the policy. With the path of a key in front,
    /// `rules[2].name: what is wrong`, it is shown at that place of the gateway's configuration.
    ///
    /// Fresh instances begin with a copy of what this made at load, unless it looks at the clock; so it
    /// may be as slow as it likes (parse, sort, compile patterns) at no cost per exchange.
    fn new(config: Self::Config) -> Result<Self>;

    /// A client connected; nothing has been read. There is no exchange yet. Default: accept.
    fn on_connection(&mut self, connection: Connection) -> Result<Admission> {
        let _ = connection;
        Ok(Admission::Accept)
    }

    /// The request's head is read and the route chosen. May change the request or answer it.
    fn on_request(&mut self, exchange: &Exchange) -> Result<Verdict> {
        let _ = exchange;
        proceed()
    }

    /// The whole request body is in [`Request::body`]; nothing has been sent upstream.
    fn on_request_body(&mut self, exchange: &Exchange) -> Result<Verdict> {
        let _ = exchange;
        proceed()
    }

    /// An attempt is about to be sent; [`Exchange::outgoing`] is what goes out, this time only.
    fn on_upstream(&mut self, exchange: &Exchange) -> Result<Verdict> {
        let _ = exchange;
        proceed()
    }

    /// The response's head is there. May change or replace it.
    fn on_response(&mut self, exchange: &Exchange) -> Result<Verdict> {
        let _ = exchange;
        proceed()
    }

    /// The whole response body is in [`Response::body`]; nothing has been sent to the client.
    fn on_response_body(&mut self, exchange: &Exchange) -> Result<Verdict> {
        let _ = exchange;
        proceed()
    }

    /// The exchange is over and [`Exchange::outcome`] is known. Observes.
    fn on_log(&mut self, exchange: &Exchange) -> Result<()> {
        let _ = exchange;
        Ok(())
    }
}

/// Go on.
pub fn proceed() -> Result<Verdict> {
    Ok(Verdict::Continue)
}

/// Refuse with a status (400 to 599) and a short stable reason code, `<policy>.<what>`. The client
/// sees a problem document with the status only.
pub fn deny(status: u16, reason: impl Into<String>) -> Result<Verdict> {
    Ok(Verdict::Deny(Denial { status, reason: reason.into() }))
}

/// Answer with this instead.
pub fn respond(reply: Reply) -> Result<Verdict> {
    Ok(Verdict::Respond(reply))
}

impl Reply {
    /// A reply that is no refusal, without headers and body.
    pub fn new(status: u16) -> Self {
        Reply { status, reason: None, headers: Vec::new(), body: Vec::new() }
    }

    /// The same with one header more.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push(Header { name: name.into(), value: value.into() });
        self
    }

    /// The same with a body and its media type.
    #[must_use]
    pub fn body(mut self, media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.header("content-type", media_type)
    }
}

/// Writes to the gateway's log; the number of lines per hook call and their length are bounded.
pub fn log(level: Level, message: &str) {
    bindings::portcullis::policy::host::log(level, message);
}

/// The policy's own failure, as opposed to a refusal: what follows is for `on_error` of the
/// gateway's configuration to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

/// What the SDK's functions and the hooks return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure; `message` is for the operator: what failed.
    pub fn new(message: impl Into<String>) -> Self {
        Error(message.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// `Error` is deliberately no `std::error::Error`, so that `?` takes every type that is one.
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        Error(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_other_crates_become_the_policys() {
        fn parse(text: &str) -> Result<u32> {
            Ok(text.parse()?)
        }
        assert_eq!(parse("7"), Ok(7));
        assert_eq!(parse("x").unwrap_err().to_string(), "invalid digit found in string");
    }

    #[test]
    fn a_reply_is_put_together() {
        let reply = Reply::new(302).header("location", "/x").body("text/plain", "moved");
        let names: Vec<_> = reply.headers.iter().map(|header| header.name.as_str()).collect();
        assert_eq!(
            (reply.status, names, &*reply.body),
            (302, vec!["location", "content-type"], &b"moved"[..])
        );
    }
}
