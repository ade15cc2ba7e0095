//! Ways to an endpoint: a TCP connection, with TLS or without, or a Unix socket.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Endpoint, Protocol, Upstream};
use crate::proxy_protocol::{self, Addresses, Version};
use crate::socket::keep_alive;

/// How long the addresses of a name are used: connections must not each wait for the system's resolver,
/// which has few threads and many ways to be slow.
const KEPT: Duration = Duration::from_secs(5);

/// How an endpoint is reached. A connection is of one way for as long as it lives.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    /// Where it is.
    pub address: Address,
    /// None for plain text.
    pub tls: Option<Tls>,
    /// Whether, and how, it is told whose connection it is.
    pub proxy_protocol: Option<Version>,
}

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// At this address.
    Socket(SocketAddr),
    /// At whatever `host:port` stands for when a connection is opened.
    Name(Box<str>),
    /// At a Unix socket.
    Unix(Box<Path>),
}

/// TLS to an endpoint.
#[derive(Clone)]
pub struct Tls {
    /// Authorities, versions, the gateway's own certificate.
    pub config: Arc<ClientConfig>,
    /// Whom the endpoint's certificate must name.
    pub name: ServerName<'static>,
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && self.name == other.name
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Address {
    /// Of `host:port`.
    pub fn of(authority: &str) -> Self {
        authority.parse().map_or_else(|_| Address::Name(authority.into()), Address::Socket)
    }
}

impl From<Address> for Way {
    fn from(address: Address) -> Self {
        Way { address, tls: None, proxy_protocol: None }
    }
}

/// Why no connection came about.
#[derive(Debug)]
pub enum ConnectError {
    /// Nobody is there.
    Unreachable(io::Error),
    /// Not in time.
    Timeout,
    /// Somebody is there, and TLS found fault: its certificate or ours, or what it speaks.
    Tls(io::Error),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Unreachable(error) => error.fmt(f),
            ConnectError::Timeout => f.write_str("no connection in time"),
            ConnectError::Tls(error) => write!(f, "TLS: {error}"),
        }
    }
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        ConnectError::Unreachable(error)
    }
}

/// Whether TLS is what failed on a connection: a server that wants another certificate from the gateway
/// says so after the handshake (RFC 8446, 4.4.2.4).
pub(super) fn is_of_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

/// The addresses of a name, and since when they are known.
#[derive(Debug, Default)]
pub(super) struct Resolved(Mutex<Option<(Instant, Arc<[SocketAddr]>)>>);

impl Resolved {
    async fn of(&self, name: &str) -> io::Result<Arc<[SocketAddr]>> {
        let known = self.known().filter(|(since, _)| since.elapsed() < KEPT);
        if let Some((_, addresses)) = known {
            return Ok(addresses);
        }
        let addresses: Arc<[_]> = lookup_host(name).await?.collect();
        self.put(Some((Instant::now(), addresses.clone())));
        Ok(addresses)
    }

    fn known(&self) -> Option<(Instant, Arc<[SocketAddr]>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, known: Option<(Instant, Arc<[SocketAddr]>)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }
}

impl Upstream {
    /// Opens a connection to an endpoint. Whose requests go over it, an endpoint that wants to know is
    /// told; none are the gateway's own.
    pub async fn connect(
        &self,
        endpoint: &Endpoint,
        client: Option<&Addresses>,
    ) -> Result<Transport, ConnectError> {
        let connected = self.connect_within(endpoint.connect(client, None)).await;
        if let Err(error) = &connected {
            self.note(endpoint, error);
        }
        connected
    }

    /// The same for HTTP/1 alone, which an endpoint of another protocol need not speak.
    pub(super) async fn connect_http1(
        &self,
        endpoint: &Endpoint,
        client: Option<&Addresses>,
    ) -> Result<Transport, ConnectError> {
        self.connect_within(endpoint.connect(client, Some(b"http/1.1"))).await
    }

    async fn connect_within(
        &self,
        connecting: impl Future<Output = Result<Transport, ConnectError>>,
    ) -> Result<Transport, ConnectError> {
        let connected = timeout(self.timeouts.connect, connecting).await;
        let connected = connected.unwrap_or(Err(ConnectError::Timeout))?;
        if let (Some(after), Some(stream)) = (self.keepalive, connected.tcp()) {
            keep_alive(stream, after);
        }
        Ok(connected)
    }

    /// Notes why an endpoint could not be used. What is wrong with TLS will not pass by itself, so that is
    /// said, once until the endpoint could be used again.
    pub(super) fn note(&self, endpoint: &Endpoint, error: &ConnectError) {
        let (upstream, at) = (&*self.name, &*endpoint.authority);
        match (error, endpoint.has_trouble(error.to_string())) {
            (ConnectError::Tls(error), true) => {
                tracing::warn!(upstream, endpoint = at, %error, "TLS to an endpoint failed");
            }
            _ => tracing::debug!(upstream, endpoint = at, %error, "connect failed"),
        }
    }
}

impl Endpoint {
    /// With TLS this protocol is offered, if it is to be another one than was configured.
    async fn connect(
        &self,
        client: Option<&Addresses>,
        protocol: Option<&[u8]>,
    ) -> Result<Transport, ConnectError> {
        let mut transport = match &self.way.address {
            Address::Socket(address) => tcp(TcpStream::connect(address).await?),
            Address::Name(name) => tcp(self.connect_by_name(name).await?),
            Address::Unix(path) => Transport::Unix(UnixStream::connect(path).await?),
        };
        if let Some(version) = self.way.proxy_protocol {
            transport.write_all(&proxy_protocol::header(version, client)).await?;
        }
        match (&self.way.tls, transport) {
            // Boxed, because a handshake is large and the rest of an attempt is not.
            (Some(tls), Transport::Tcp(stream)) => Box::pin(secure(tls, stream, protocol)).await,
            (_, transport) => Ok(transport),
        }
    }

    async fn connect_by_name(&self, name: &str) -> io::Result<TcpStream> {
        let addresses = self.resolved.of(name).await?;
        let connected = TcpStream::connect(&*addresses).await;
        if connected.is_err() {
            // It may have moved.
            self.resolved.put(None);
        }
        connected
    }

    /// The addresses that its name stood for when a connection was opened last.
    pub fn resolved(&self) -> Option<Arc<[SocketAddr]>> {
        self.resolved.known().map(|(_, addresses)| addresses)
    }
}

fn tcp(stream: TcpStream) -> Transport {
    // Fails only on a dead socket, which the first use will notice.
    let _ = stream.set_nodelay(true);
    Transport::Tcp(stream)
}

async fn secure(tls: &Tls, stream: TcpStream, protocol: Option<&[u8]>) -> Result<Transport, ConnectError> {
    let connector = TlsConnector::from(tls.config.clone());
    let connected = match protocol {
        None => connector.connect(tls.name.clone(), stream).await,
        Some(name) => connector.with_alpn(vec![name.to_vec()]).connect(tls.name.clone(), stream).await,
    };
    connected.map(|stream| Transport::Tls(Box::new(stream))).map_err(ConnectError::Tls)
}

/// An open connection to an endpoint.
#[derive(Debug)]
pub enum Transport {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Transport {
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Transport::Tcp(io) => Some(io),
            Transport::Tls(io) => Some(io.get_ref().0),
            Transport::Unix(_) => None,
        }
    }

    /// Whether HTTP/2 is spoken over it: TLS has settled that, plain text goes by what was configured.
    pub fn is_http2(&self, protocol: Protocol) -> bool {
        match self {
            Transport::Tls(io) => io.get_ref().1.alpn_protocol() == Some(b"h2"),
            Transport::Tcp(_) | Transport::Unix(_) => protocol == Protocol::Http2,
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Transport::Tls(io) => {
                // A write is over when TLS has taken it, not when the socket has. Whoever waits for an
                // answer reads; if this fails, so does that.
                if io.get_ref().1.wants_write() {
                    let _ = Pin::new(&mut *io).poll_flush(cx);
                }
                Pin::new(io).poll_read(cx, buf)
            }
            Transport::Unix(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Transport::Tls(io) => Pin::new(io).poll_write(cx, buf),
            Transport::Unix(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Tcp(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Transport::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Transport::Unix(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Transport::Tcp(io) => io.is_write_vectored(),
            Transport::Tls(io) => io.is_write_vectored(),
            Transport::Unix(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(io) => Pin::new(io).poll_flush(cx),
            Transport::Tls(io) => Pin::new(io).poll_flush(cx),
            Transport::Unix(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Transport::Tls(io) => Pin::new(io).poll_shutdown(cx),
            Transport::Unix(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_addresses_of_a_name_are_kept_for_a_short_while() {
        let resolved = Resolved::default();
        let first = resolved.of("localhost:1").await.unwrap();
        assert!(Arc::ptr_eq(&first, &resolved.of("localhost:1").await.unwrap()));
        let long_ago = Instant::now().checked_sub(KEPT).unwrap();
        resolved.put(Some((long_ago, first.clone())));
        assert!(!Arc::ptr_eq(&first, &resolved.of("localhost:1").await.unwrap()));
    }
}
