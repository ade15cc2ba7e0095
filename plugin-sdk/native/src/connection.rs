//! The client's connection, as plugins see it.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

/// Whether a connection may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Read from it.
    Accept,
    /// Close it without a byte.
    Drop,
}

/// A client's connection.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Name of the listener that accepted it.
    pub listener: Arc<str>,
    /// The address that connected: the client's or a proxy's.
    pub peer: SocketAddr,
    /// The address that was connected to.
    pub local: SocketAddr,
    /// What TLS settled; none on a plain connection, and before the handshake.
    pub tls: Option<TlsSession>,
}

/// What a TLS handshake settled.
#[derive(Debug, Clone, Default)]
pub struct TlsSession {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The server name that the client asked for.
    pub server_name: Option<Box<str>>,
    /// The verified client certificate chain, DER, leaf first; empty without one.
    pub client_chain: Vec<Bytes>,
}
