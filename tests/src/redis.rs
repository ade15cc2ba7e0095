//! A Redis of a test's own.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A Redis in a process of its own, which ends with this. What it holds, it holds in memory.
pub struct Redis {
    child: Child,
    dir: TempDir,
    port: u16,
    arguments: Vec<String>,
}

impl Redis {
    /// A Redis with these options, such as `--requirepass`; of `PORT` in them, its port is put in the place.
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Self {
        // The kernel gives a port that was given last to nobody else for long.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let arguments: Vec<_> =
            arguments.iter().map(|argument| argument.replace("PORT", &port.to_string())).collect();
        Redis { child: run(&dir, port, &arguments), dir, port, arguments }
    }

    /// Where it is.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it without a word.
    #[track_caller]
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again where it was.
    #[track_caller]
    pub fn restart(&mut self) {
        self.child = run(&self.dir, self.port, &self.arguments);
    }

    /// Sends it a signal, such as `STOP`.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }
}

#[track_caller]
fn run(dir: &TempDir, port: u16, arguments: &[String]) -> Child {
    let port = port.to_string();
    let own = ["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"];
    let mut command = Command::new("redis-server");
    // Options given later count.
    command.args(own).args(arguments).current_dir(dir.path()).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
