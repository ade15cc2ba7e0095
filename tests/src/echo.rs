//! WebSocket servers and clients that are not ours: Python's `websockets`, and Node's HTTP/2 before it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::here;
use crate::tools::{PYTHON, tool};

/// A server that says what it hears, and ends with this value.
pub struct Echo {
    process: Child,
    address: SocketAddr,
}

impl Echo {
    /// Python's, over HTTP/1.1.
    pub fn start() -> Self {
        Self::serving(&[])
    }

    /// The same with a certificate and its key.
    pub fn serving(certificate: &[&str]) -> Self {
        let mut python = Command::new(PYTHON);
        python.arg(program("websocket.py")).arg("serve").args(certificate);
        Self::of(python)
    }

    /// Node's HTTP/2 server before this one, which takes handshakes in this way.
    pub fn behind_http2(&self, way: &str, certificate: &[&str]) -> Self {
        let mut node = Command::new("node");
        node.arg(program("http2.js")).args([&self.address.port().to_string(), way]).args(certificate);
        Self::of(node)
    }

    /// Node's HTTP/2 server, which takes no handshakes.
    pub fn none_behind_http2() -> Self {
        let mut node = Command::new("node");
        node.arg(program("http2.js")).args(["0", "none"]);
        Self::of(node)
    }

    /// A server that tells its port first.
    fn of(mut server: Command) -> Self {
        let mut process = server.stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Echo { process, address: ([127, 0, 0, 1], port.trim().parse().unwrap()).into() }
    }

    /// `host:port`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a client of Python's saw at a URL, who believes this authority.
    pub fn talk(url: &str, authority: &str) -> Value {
        let believes = format!("SSL_CERT_FILE={authority}");
        let seen = tool("env", &[&believes, PYTHON, program("websocket.py").to_str().unwrap(), "talk", url]);
        serde_json::from_str(&seen).unwrap()
    }

    /// What it sees if all goes well.
    pub fn conversation() -> Value {
        json!({
            "echo": "hello", "large": true, "many": true, "pong": true, "closed": 1000,
            "closed_by_server": [4001, "bye"],
        })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program(name: &str) -> PathBuf {
    here().join("peers").join(name)
}
