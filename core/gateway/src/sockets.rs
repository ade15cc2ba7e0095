//! Sockets that the process was started with: by a service manager (`systemd.socket(5)`, `sd_listen_fds(3)`), or by the
//! process that it takes over from ([`upgrade`](crate::upgrade)).

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::RawFd;
use std::str::FromStr;

use portcullis_config::Config;
use portcullis_control::listen_address;
use portcullis_proxy::{Address, Listening, Sockets};

use crate::process;
use crate::upgrade::Predecessor;

/// The variable that tells a successor of its sockets: the process that hands them over and a colon, then
/// `descriptor=purpose`, each on a line of its own.
pub(crate) const HANDED: &str = "PORTCULLIS_SOCKETS";

/// The first descriptor that a service manager hands over.
const FIRST: RawFd = 3;

/// What the process was started with.
#[derive(Default)]
pub(crate) struct Inherited {
    sockets: Vec<(Socket, Listening)>,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    Admin(SocketAddr),
    Listener(Address),
    /// The same, of a socket that a service manager opened.
    Managed(Address),
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
        match purpose {
            "admin" => address.parse().map(Purpose::Admin).map_err(|_| ()),
            "listener" => address.parse().map(Purpose::Listener),
            "managed" => address.parse().map(Purpose::Managed),
            _ => Err(()),
        }
    }
}

impl Inherited {
    /// Takes what the environment tells of. To be called once, before the process opens anything.
    pub(crate) fn take() -> Result<Self, String> {
        let variable = |name: &str| std::env::var(name).ok();
        // The variable stays in the environment of whatever the process starts.
        let parent = std::os::unix::process::parent_id().to_string();
        let handed = variable(HANDED);
        let handed = handed.as_deref().and_then(|handed| handed.strip_prefix(&parent)?.strip_prefix(':'));
        if let Some(handed) = handed {
            let sockets = handed.lines().map(handed_socket).collect::<Result<_, _>>()?;
            let predecessor = Predecessor::new().map_err(|error| format!("no predecessor: {error}"))?;
            return Ok(Inherited { sockets, predecessor: Some(predecessor) });
        }
        let own = std::process::id().to_string();
        let count = variable("LISTEN_FDS").filter(|_| variable("LISTEN_PID").is_some_and(|pid| pid == own));
        let count = count.map_or(Ok(0), |count| count.parse());
        let count: RawFd = count.map_err(|_| "LISTEN_FDS is not a number".to_owned())?;
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        let names = names.split(':').chain(std::iter::repeat(""));
        let mut sockets = Vec::new();
        for (descriptor, name) in (FIRST..FIRST.saturating_add(count)).zip(names) {
            sockets.push((Socket::Managed(name.to_owned()), listening(descriptor)?));
        }
        Ok(Inherited { sockets, predecessor: None })
    }

    /// The admin interface's socket at this address.
    pub(crate) fn admin(&mut self, bind: SocketAddr) -> Option<TcpListener> {
        let is_it =
            |(socket, _): &(Socket, _)| matches!(socket, Socket::Handed(Purpose::Admin(at)) if *at == bind);
        let found = self.sockets.iter().position(is_it)?;
        match self.sockets.swap_remove(found) {
            (_, Listening::Tcp(socket)) => Some(socket),
            (_, Listening::Unix(_)) => None,
        }
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

fn handed_socket(text: &str) -> Result<(Socket, Listening), String> {
    let (descriptor, purpose) = text.split_once('=').unwrap_or_default();
    match (descriptor.parse(), purpose.parse()) {
        (Ok(descriptor), Ok(purpose)) => Ok((Socket::Handed(purpose), listening(descriptor)?)),
        _ => Err(format!("`{text}` in {HANDED} is no socket")),
    }
}

fn listening(descriptor: RawFd) -> Result<Listening, String> {
    let wrong =
        |error| format!("descriptor {descriptor}, which was handed over, is no socket to listen at: {error}");
    process::inherited(descriptor).and_then(Listening::inherited).map_err(wrong)
}

/// The configured address that a service manager's socket is for: its own, or that of the listener with its name.
fn configured(config: &Config, name: &str, socket: &Listening) -> Option<Address> {
    let own = socket.address()?;
    if config.listeners.iter().flat_map(|listener| &listener.bind).any(|at| listen_address(at) == own) {
        return Some(own);
    }
    let named = config.listeners.iter().find(|listener| listener.name == name);
    if let Some([only]) = named.map(|listener| &*listener.bind) {
        return Some(listen_address(only));
    }
    tracing::warn!(target: "portcullis::run", address = %own, name, "a socket was handed over that no listener wants");
    // A reload may bring one.
    Some(own)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn purposes_are_read_as_they_are_written() {
        let (v4, v6) = (SocketAddr::from(([0, 0, 0, 0], 80)), "[::1]:0".parse().unwrap());
        let unix = "unix:/run/a b.sock".parse::<Address>().unwrap();
        for purpose in [
            Purpose::Admin(v4),
            Purpose::Listener(Address::Tcp(v6)),
            Purpose::Managed(v4.into()),
            Purpose::Listener(unix),
        ] {
            assert_eq!(purpose.to_string().parse(), Ok(purpose));
        }
        for wrong in ["", "admin", "admin/", "root/[::1]:1"] {
            assert!(wrong.parse::<Purpose>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_managed_socket_belongs_to_its_address_or_its_name() {
        let socket = Listening::Tcp(TcpListener::bind("127.0.0.1:0").unwrap());
        let own = socket.address().unwrap();
        let find = |listeners: &str, name: &str| {
            let text = format!("listeners: {listeners}\nroutes: [{{ respond: {{}} }}]\n");
            let loaded = portcullis_config::parse(Path::new("x.yaml"), &text, &|_| None).unwrap();
            configured(&loaded.config, name, &socket)
        };
        assert_eq!(find(&format!("[{{ name: a, bind: \"{own}\" }}]"), "b"), Some(own.clone()));
        let other = SocketAddr::from(([0, 0, 0, 0], 1));
        assert_eq!(find("[{ name: a, bind: 0.0.0.0:1 }]", "a"), Some(other.into()));
        // Of several addresses nobody knows which.
        assert_eq!(find("[{ name: a, bind: [0.0.0.0:1, 0.0.0.0:2] }]", "a"), Some(own));
    }
}
