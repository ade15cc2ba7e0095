//! Messages to the service manager, by the protocol of `sd_notify(3)`: lines of `NAME=value` in one datagram.
//!
//! Without `NOTIFY_SOCKET` in the environment nobody listens and nothing is sent. A message that cannot be
//! sent is lost without harm: the gateway serves whether it is supervised or not.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::process;

/// Something the service manager should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// Started, or reloaded.
    Ready(&'a str),
    /// How it is; changes nothing else.
    Status(&'a str),
    /// Reloading begins.
    Reloading,
    /// Another process of the service is the one to look at from now on.
    MainPid(u32),
    /// Shutting down.
    Stopping(&'a str),
}

impl Message<'_> {
    fn text(&self) -> String {
        match self {
            Message::Ready(status) => format!("READY=1\nSTATUS={status}"),
            Message::Status(status) => format!("STATUS={status}"),
            Message::Reloading => format!("RELOADING=1\nMONOTONIC_USEC={}", process::monotonic_micros()),
            Message::MainPid(pid) => format!("MAINPID={pid}"),
            Message::Stopping(status) => format!("STOPPING=1\nSTATUS={status}"),
        }
    }
}

/// Tells the service manager, if there is one.
pub(crate) fn tell(message: &Message<'_>) {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(&socket, &message.text())
    {
        tracing::warn!(target: "portcullis::notify", %error, "the service manager can't be told");
    }
}

/// Sends to a path, or to an abstract name, which begins with `@`.
fn send(to: &OsStr, text: &str) -> io::Result<()> {
    let address = match to.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(to)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(text.as_bytes(), &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_socket_at_a_path_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), &Message::Ready("generation 1").text()).unwrap();
        assert_eq!(received(&socket), "READY=1\nSTATUS=generation 1");
    }

    #[test]
    fn an_abstract_socket_is_told() {
        let name = format!("portcullis-notify-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(OsStr::new(&format!("@{name}")), &Message::Stopping("draining").text()).unwrap();
        assert_eq!(received(&socket), "STOPPING=1\nSTATUS=draining");
    }

    #[test]
    fn a_reload_carries_its_time() {
        let text = Message::Reloading.text();
        let micros = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(micros.parse::<u64>().unwrap() > 0);
    }

    #[test]
    fn nobody_there_is_an_error_and_no_harm() {
        assert!(send(OsStr::new("/nonexistent/notify"), "READY=1").is_err());
    }
}
