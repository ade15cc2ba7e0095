//! An OpenID provider that is not ours: `oidc-provider` for Node, which `tests/oidc/install` installs.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::{Answer, Http, Request, here, repository, request, tools};

/// A provider that runs, and ends with this value. It has one client, `shop`, whose tokens are for `orders`.
pub struct Oidc {
    child: Child,
    address: SocketAddr,
}

impl Oidc {
    /// A provider on loopback; none if it is not installed and the test is to be left out.
    #[track_caller]
    pub fn start() -> Option<Self> {
        tools::installed("target/oidc/node_modules/oidc-provider/package.json")?;
        let dir = repository().join("target/oidc");
        let mut command = Command::new("node");
        command.arg(here().join("oidc/provider.mjs")).arg(dir);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Some(Oidc { child, address: ([127, 0, 0, 1], port.trim().parse().unwrap()).into() })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its name, as tokens have it.
    pub fn issuer(&self) -> String {
        format!("http://{}", self.address)
    }

    #[track_caller]
    fn ask(&self, request: &Request) -> Answer {
        Http::connect(self.address).unwrap().ask(request).unwrap()
    }

    /// A new token of the client's with this scope.
    #[track_caller]
    pub fn token(&self, scope: &str) -> String {
        let login = request("POST", "/token")
            .header("authorization", "Basic c2hvcDphJTIwc2VjcmV0JTIwb2YlMjB0aGUlMjBzaG9w")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("grant_type=client_credentials&scope={scope}"));
        let answer = self.ask(&login);
        answer.json()["access_token"].as_str().unwrap_or_else(|| panic!("{}", answer.text())).to_owned()
    }

    /// Has tokens signed with a new key from now on.
    #[track_caller]
    pub fn rotate(&self, forget: bool) {
        let target = if forget { "/rotate?old=forget" } else { "/rotate" };
        assert_eq!(self.ask(&request("POST", target)).status, 200);
    }

    /// How often its keys were fetched.
    #[track_caller]
    pub fn fetches(&self) -> u64 {
        let answer = self.ask(&request("GET", "/fetches"));
        answer.json()["fetches"].as_u64().unwrap()
    }
}

impl Drop for Oidc {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
