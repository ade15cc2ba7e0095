//! The sockets that clients connect to: of TCP, or in the file system (`unix(7)`).

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Connections that wait in a socket's queue, per worker; the kernel may allow fewer.
pub(crate) const BACKLOG: i32 = 4096;

/// The address of clients of Unix sockets, who have none, and of what they connect to. Nobody connects over TCP from it.
pub(crate) const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Where is listened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// At an address of TCP.
    Tcp(SocketAddr),
    /// At a socket in the file system.
    Unix(Arc<Path>),
}

/// A socket that listens.
#[derive(Debug)]
pub enum Listening {
    /// Of TCP.
    Tcp(std::net::TcpListener),
    /// In the file system.
    Unix(std::os::unix::net::UnixListener),
}

/// The same, of a worker.
pub(crate) enum Acceptor {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

/// A connection that was accepted.
#[derive(Debug)]
pub(crate) enum Accepted {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Address::Unix(Path::new(path).into())),
            None => text.parse().map(Address::Tcp).map_err(|_| ()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Address::Tcp(address)
    }
}

impl Address {
    /// The port, which is what several sockets share.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Address::Tcp(address) => Some(address.port()).filter(|port| *port != 0),
            Address::Unix(_) => None,
        }
    }
}

impl Listening {
    /// At an address of TCP; with others there, if it is shared.
    pub(crate) fn tcp(address: SocketAddr, shared: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            // `[::]` and `0.0.0.0` are configured apart.
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Listening::Tcp(socket.into()))
    }

    /// At a path. Nobody but root can connect until its file is [opened](open_file).
    pub(crate) fn unix(path: &Path) -> io::Result<Self> {
        remove_stale(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // What a socket may do is what its file may, if that is said before there is one: afterwards would be too late
        // for who was faster.
        let socket = File::from(OwnedFd::from(socket));
        socket.set_permissions(Permissions::from_mode(0o0))?;
        let socket = Socket::from(OwnedFd::from(socket));
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(path)?)?;
        socket.listen(BACKLOG)?;
        Ok(Listening::Unix(OwnedFd::from(socket).into()))
    }

    /// One that whoever started the process left open for it.
    pub fn inherited(descriptor: OwnedFd) -> io::Result<Self> {
        let socket = SockRef::from(&descriptor);
        if socket.r#type()? != Type::STREAM {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has no connections"));
        }
        match socket.domain()? {
            Domain::IPV4 | Domain::IPV6 => Ok(Listening::Tcp(descriptor.into())),
            Domain::UNIX => Ok(Listening::Unix(descriptor.into())),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is of another kind")),
        }
    }

    /// Where it listens: port 0 has become a real one. None if that has no name.
    pub fn address(&self) -> Option<Address> {
        match self {
            Listening::Tcp(socket) => socket.local_addr().ok().map(Address::Tcp),
            Listening::Unix(socket) => Some(Address::Unix(socket.local_addr().ok()?.as_pathname()?.into())),
        }
    }

    /// Another handle on it.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Listening::Tcp(socket) => socket.try_clone().map(Listening::Tcp),
            Listening::Unix(socket) => socket.try_clone().map(Listening::Unix),
        }
    }

    /// For a worker.
    pub(crate) fn acceptor(self) -> io::Result<Acceptor> {
        match self {
            Listening::Tcp(socket) => {
                // One that was inherited may block.
                socket.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(socket).map(Acceptor::Tcp)
            }
            Listening::Unix(socket) => {
                socket.set_nonblocking(true)?;
                tokio::net::UnixListener::from_std(socket).map(Acceptor::Unix)
            }
        }
    }

    /// A connection that waits in its queue.
    pub(crate) fn accept(&self) -> io::Result<(Accepted, SocketAddr)> {
        match self {
            Listening::Tcp(socket) => {
                let (stream, peer) = socket.accept()?;
                stream.set_nonblocking(true)?;
                Ok((Accepted::Tcp(tokio::net::TcpStream::from_std(stream)?), peer))
            }
            Listening::Unix(socket) => {
                let (stream, _) = socket.accept()?;
                stream.set_nonblocking(true)?;
                Ok((Accepted::Unix(tokio::net::UnixStream::from_std(stream)?), NOWHERE))
            }
        }
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listening::Tcp(socket) => socket.as_fd(),
            Listening::Unix(socket) => socket.as_fd(),
        }
    }
}

/// Removes what a process left behind that did not end by itself. What somebody listens at stays, and so does what is
/// no socket.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        return Ok(());
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // One whose queue is full is in use.
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Ok(()),
    }
}

/// Lets those connect that its file's permissions say.
pub(crate) fn open_file(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// The file of a socket. It is removed with this value, if it is still the same, and this process's to remove.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: Arc<Path>,
    /// Device and number.
    id: Option<(u64, u64)>,
    is_ours: Arc<AtomicBool>,
}

impl SocketFile {
    pub(crate) fn new(path: Arc<Path>, is_ours: Arc<AtomicBool>) -> Self {
        SocketFile { id: id(&path), path, is_ours }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours.load(Relaxed) && self.id.is_some() && id(&self.path) == self.id {
            // If it can't be removed, the next process will find it stale.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn id(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

impl Acceptor {
    pub(crate) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Accepted, SocketAddr)>> {
        Poll::Ready(match self {
            Acceptor::Tcp(socket) => {
                ready!(socket.poll_accept(cx)).map(|(stream, peer)| (Accepted::Tcp(stream), peer))
            }
            Acceptor::Unix(socket) => {
                ready!(socket.poll_accept(cx)).map(|(stream, _)| (Accepted::Unix(stream), NOWHERE))
            }
        })
    }

    pub(crate) fn into_listening(self) -> io::Result<Listening> {
        match self {
            Acceptor::Tcp(socket) => socket.into_std().map(Listening::Tcp),
            Acceptor::Unix(socket) => socket.into_std().map(Listening::Unix),
        }
    }
}

/// Has the system ask the other side whether it is there, once it has said nothing for so long, and as often as it does by
/// itself (nine times) in as long again.
pub(crate) fn keep_alive(stream: &tokio::net::TcpStream, after: Duration) {
    let interval = (after / 9).max(Duration::from_secs(1));
    let keepalive = TcpKeepalive::new().with_time(after).with_interval(interval);
    // Fails only on a dead socket, which the first use will notice.
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

impl Accepted {
    /// What the client connected to.
    pub(crate) fn local(&self) -> Option<SocketAddr> {
        match self {
            Accepted::Tcp(stream) => stream.local_addr().ok(),
            Accepted::Unix(_) => Some(NOWHERE),
        }
    }

    /// Has pieces sent as they are written.
    pub(crate) fn set_nodelay(&self) {
        if let Accepted::Tcp(stream) = self {
            // Fails only on a dead socket, which the first read will notice.
            let _ = stream.set_nodelay(true);
        }
    }

    /// Has the system ask the client whether it is there, once it has said nothing for so long.
    pub(crate) fn keep_alive(&self, after: Duration) {
        if let Accepted::Tcp(stream) = self {
            keep_alive(stream, after);
        }
    }

    /// Has its end be a reset, where there are such.
    pub(crate) fn spoil(&self) {
        if let Accepted::Tcp(stream) = self {
            // Without it the end is as it would be without this.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Accepted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Accepted::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Accepted::Unix(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Accepted::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Accepted::Unix(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Accepted::Tcp(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Accepted::Unix(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Accepted::Tcp(io) => Pin::new(io).poll_flush(cx),
            Accepted::Unix(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Accepted::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Accepted::Unix(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_may_connect_before_it_is_said_who_may() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let socket = Listening::unix(&path).unwrap();
        assert_eq!(mode(), 0);
        open_file(&path, 0o666).unwrap();
        assert_eq!((mode(), socket.address()), (0o666, Some(Address::Unix(path.as_path().into()))));
        let error = Listening::unix(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(socket);
        assert!(Listening::unix(&path).is_ok(), "what is left of another is replaced");
    }
}
