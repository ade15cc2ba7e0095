//! Sockets that the process was started with: by a service manager (`systemd.socket(5)`), or by the process that it
//! takes over from ([`upgrade`](crate::upgrade)). Both hand them over as `sd_listen_fds(3)` describes.

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::str::FromStr;

use listenfd::ListenFd;
use portcullis_config::Config;
use portcullis_proxy::Sockets;

use crate::upgrade::Predecessor;

/// What the sockets are for that a process hands to its successor, in the order of their descriptors.
pub(crate) const PURPOSES: &str = "PORTCULLIS_SOCKETS";

/// What the process was started with.
#[derive(Default)]
pub(crate) struct Inherited {
    sockets: Vec<(Socket, TcpListener)>,
    /// Who handed them over, unless it was a service manager.
    pub(crate) predecessor: Option<Predecessor>,
}

/// What is known of a socket.
enum Socket {
    /// Its name in the unit.
    Managed(String),
    Handed(Purpose),
}

/// What a socket is for, by the address of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Admin(SocketAddr),
    Listener(SocketAddr),
    /// The same, of a socket that a service manager opened.
    Managed(SocketAddr),
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Purpose::Admin(address) => write!(f, "admin/{address}"),
            Purpose::Listener(address) => write!(f, "listener/{address}"),
            Purpose::Managed(address) => write!(f, "managed/{address}"),
        }
    }
}

impl FromStr for Purpose {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (purpose, address) = text.split_once('/').ok_or(())?;
        let address = address.parse().map_err(|_| ())?;
        match purpose {
            "admin" => Ok(Purpose::Admin(address)),
            "listener" => Ok(Purpose::Listener(address)),
            "managed" => Ok(Purpose::Managed(address)),
            _ => Err(()),
        }
    }
}

impl Inherited {
    /// Takes what the environment tells of. To be called once, before there is another thread.
    pub(crate) fn take() -> Result<Self, String> {
        let mut given = ListenFd::from_env();
        if given.len() == 0 {
            return Ok(Inherited::default());
        }
        let purposes = std::env::var(PURPOSES).ok();
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut inherited = Inherited::default();
        for at in 0..given.len() {
            let wrong = |why: &dyn fmt::Display| format!("socket {at} that was handed over: {why}");
            let socket = given.take_tcp_listener(at).map_err(|error| wrong(&error))?;
            let socket = socket.ok_or_else(|| wrong(&"it is not there"))?;
            // The descriptor itself would stay open in every program that this one starts.
            let socket = socket.try_clone().map_err(|error| wrong(&error))?;
            let known = match &purposes {
                Some(purposes) => {
                    let purpose = purposes.split(' ').nth(at).and_then(|purpose| purpose.parse().ok());
                    Socket::Handed(purpose.ok_or_else(|| wrong(&"nobody says what it is for"))?)
                }
                None => Socket::Managed(names.split(':').nth(at).unwrap_or_default().to_owned()),
            };
            inherited.sockets.push((known, socket));
        }
        if purposes.is_some() {
            let predecessor = Predecessor::new();
            inherited.predecessor = Some(predecessor.map_err(|error| format!("no predecessor: {error}"))?);
        }
        Ok(inherited)
    }

    /// The admin interface's socket at this address.
    pub(crate) fn admin(&mut self, bind: SocketAddr) -> Option<TcpListener> {
        let is_it =
            |(socket, _): &(Socket, _)| matches!(socket, Socket::Handed(Purpose::Admin(at)) if *at == bind);
        let found = self.sockets.iter().position(is_it)?;
        Some(self.sockets.swap_remove(found).1)
    }

    /// The listeners' sockets, by the addresses of the configuration.
    pub(crate) fn listeners(self, config: &Config) -> Vec<Sockets> {
        let mut listeners: Vec<Sockets> = Vec::new();
        for (known, socket) in self.sockets {
            let (configured, is_managed) = match known {
                Socket::Handed(Purpose::Admin(_)) => continue,
                Socket::Handed(Purpose::Listener(configured)) => (configured, false),
                Socket::Handed(Purpose::Managed(configured)) => (configured, true),
                Socket::Managed(name) => match configured(config, &name, &socket) {
                    Some(configured) => (configured, true),
                    None => continue,
                },
            };
            match listeners.iter_mut().find(|sockets| sockets.configured == configured) {
                Some(sockets) => sockets.sockets.push(socket),
                None => listeners.push(Sockets { configured, is_managed, sockets: vec![socket] }),
            }
        }
        listeners
    }
}

/// The configured address that a service manager's socket is for: its own, or that of the listener with its name.
fn configured(config: &Config, name: &str, socket: &TcpListener) -> Option<SocketAddr> {
    let own = socket.local_addr().ok()?;
    let addresses = || config.listeners.iter().flat_map(|listener| &listener.bind);
    let named = config.listeners.iter().find(|listener| listener.name == name);
    let by_name = match named.map(|listener| &*listener.bind) {
        Some([only]) if !addresses().any(|address| address.0 == own) => Some(only.0),
        _ => None,
    };
    if by_name.is_none() && !addresses().any(|address| address.0 == own) {
        tracing::warn!(target: "portcullis::run", address = %own, name, "no listener has the address or the name of a socket that was handed over");
    }
    // A reload may bring a listener with its address.
    Some(by_name.unwrap_or(own))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn purposes_are_read_as_they_are_written() {
        let (v4, v6) = (SocketAddr::from(([0, 0, 0, 0], 80)), "[::1]:0".parse().unwrap());
        for purpose in [Purpose::Admin(v4), Purpose::Listener(v6), Purpose::Managed(v4)] {
            assert_eq!(purpose.to_string().parse(), Ok(purpose));
        }
        for wrong in ["", "admin", "admin/", "root/[::1]:1"] {
            assert!(wrong.parse::<Purpose>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_managed_socket_belongs_to_its_address_or_its_name() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = socket.local_addr().unwrap();
        let find = |listeners: &str, name: &str| {
            let text = format!("listeners: {listeners}\nroutes: [{{ respond: {{}} }}]\n");
            let loaded = portcullis_config::parse(Path::new("x.yaml"), &text, &|_| None).unwrap();
            configured(&loaded.config, name, &socket)
        };
        assert_eq!(find(&format!("[{{ name: a, bind: \"{own}\" }}]"), "b"), Some(own));
        assert_eq!(find("[{ name: a, bind: 0.0.0.0:1 }]", "a"), Some(([0, 0, 0, 0], 1).into()));
        // Of several addresses nobody knows which.
        assert_eq!(find("[{ name: a, bind: [0.0.0.0:1, 0.0.0.0:2] }]", "a"), Some(own));
    }
}
