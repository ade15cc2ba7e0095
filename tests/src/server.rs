//! Servers that can be killed: the gateway itself, in a process of its own, which answers without an upstream.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

use crate::{Gateway, Setup};

/// An address at which nobody listens, until the test has somebody do so. It is the test's to its end: the system
/// gives the port to nobody else, but lets those have it who ask for it by number.
pub fn nobody() -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    address
}

/// A server in a process of its own, which answers with its name.
pub fn server(name: &str, address: SocketAddr) -> Gateway {
    let config = format!(
        "listeners: [{{ name: main, bind: \"{address}\" }}]\nroutes: [{{ respond: {{ body: {name} }} }}]\n"
    );
    Setup::new(&config).start()
}
