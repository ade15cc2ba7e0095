//! Servers that can be killed: the gateway itself, in a process of its own, which answers without an upstream.

use std::net::{SocketAddr, TcpListener};

use crate::{Gateway, Setup, wait_for};

/// An address at which nobody listens.
pub fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A server in a process of its own, which answers with its name. The port may be in use for a moment,
/// by a connection that the system made from it.
pub fn server(name: &str, address: SocketAddr) -> Gateway {
    let config = format!(
        "listeners: [{{ name: main, bind: \"{address}\" }}]\nroutes: [{{ respond: {{ body: {name} }} }}]\n"
    );
    wait_for("the server to start", || Setup::new(&config).try_start().ok())
}
