//! What tests that start the program share.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command};

/// The program, free of what the environment of the tests may say.
pub(crate) fn command(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env("NO_COLOR", "1");
    for variable in
        ["PORTCULLIS_CONFIG", "PORTCULLIS_LOG", "PORTCULLIS_PORT", "PORTCULLIS_ADMIN_PORT", "NOTIFY_SOCKET"]
    {
        command.env_remove(variable);
    }
    command
}

pub(crate) fn get(address: &str, path: &str) -> String {
    ask(address, "GET", path)
}

pub(crate) fn post(address: &str, path: &str) -> String {
    ask(address, "POST", path)
}

/// Head and body of the answer to a request without body.
fn ask(address: &str, method: &str, path: &str) -> String {
    let mut stream = send(address, method, path);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Sends a request and leaves its answer to be read.
pub(crate) fn send(address: &str, method: &str, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

pub(crate) fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([format!("-{name}"), pid]).status().unwrap().success());
}
