//! Origins that are not ours, each in a process of its own: nginx, Node's `http`, Python's `http.server`. Their
//! programs are in `tests/origins`; each keeps what it saw.

use std::cell::Cell;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::corpus::{Seen, latin1};
use crate::here;

/// An origin that runs, and ends with this value.
pub struct Foreign {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
    /// Bytes of the log that were taken.
    taken: Cell<usize>,
    _dir: TempDir,
}

/// A request that it has seen whole.
#[derive(Debug)]
pub struct Logged {
    /// The connection on which it came.
    pub connection: String,
    /// What it was.
    pub seen: Seen,
}

impl Foreign {
    /// nginx, which keeps of a request's fields those of these names.
    pub fn nginx(names: &[String]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let field = |name: &String| format!(r#"["{name}","$http_{}"],"#, name.replace('-', "_"));
        let config = fs::read_to_string(program("nginx.conf")).unwrap();
        let config = config
            .replace("FIELDS", &names.iter().map(field).collect::<String>())
            .replace("ADDRESS", &address.to_string())
            .replace("DIR", dir.path().to_str().unwrap());
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let mut nginx = Command::new("nginx");
        nginx.args(["-e", "stderr", "-c"]).arg(dir.path().join("nginx.conf"));
        // As from a predecessor whose binary is upgraded: so the port is nobody else's in between.
        nginx.env("NGINX", "0;").stdin(OwnedFd::from(listener));
        Self::of(nginx.spawn().unwrap(), address, dir)
    }

    /// Node's `http`.
    pub fn node() -> Self {
        Self::interpreted("node", "node.js")
    }

    /// Python's `http.server`.
    pub fn python() -> Self {
        Self::interpreted("python3", "python.py")
    }

    /// A program that is told where to keep what it sees, and that tells its port.
    fn interpreted(interpreter: &str, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(interpreter);
        command.arg(program(name)).arg(dir.path().join("log")).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port.trim().parse().unwrap()));
        Self::of(child, address, dir)
    }

    fn of(child: Child, address: SocketAddr, dir: TempDir) -> Self {
        Foreign { child, address, log: dir.path().join("log"), taken: Cell::new(0), _dir: dir }
    }

    /// `host:port`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The whole requests that came since this was last asked, in the order in which they ended.
    pub fn take(&self) -> Vec<Logged> {
        let log = fs::read(&self.log).unwrap_or_default();
        let new = &log[self.taken.get()..];
        // The last line may be on its way.
        let end = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.taken.set(self.taken.get() + end);
        let text = latin1(&new[..end]);
        let lines = text.split_terminator('\n').map(|line| serde_json::from_str::<Value>(line).unwrap());
        let is_whole = |line: &Value| line["answered"].is_null() || line["answered"] == "200";
        lines.filter(is_whole).map(|line| logged(&line)).collect()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // Not killed, because nginx has a process that would stay. It may have ended by itself.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

fn program(name: &str) -> PathBuf {
    here().join(Path::new("origins")).join(name)
}

fn logged(line: &Value) -> Logged {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pairs = |fields: &Value| {
        let pairs = fields.as_array().unwrap().iter().map(|pair| (text(&pair[0]), text(&pair[1])));
        let mut pairs: Vec<_> = pairs.filter(|(name, _)| !name.is_empty()).collect();
        pairs.sort();
        pairs
    };
    let seen = Seen {
        method: text(&line["method"]),
        target: text(&line["target"]),
        headers: pairs(&line["headers"]),
        body: text(&line["body"]),
        trailers: pairs(&line["trailers"]),
    };
    Logged { connection: line["connection"].to_string(), seen }
}
