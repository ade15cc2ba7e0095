//! The admin interface of a running gateway, as commands ask it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use portcullis_config::{Admin, Config, Diagnostic};
use serde_json::Value;
use tokio::task::JoinSet;

use super::{ConfigOption, Failure, check};
use crate::{places, server};

/// An answer has this long; the interface answers from memory, apart from looking at the files on disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// Thousands of plugins fit, and of records.
const LARGEST: usize = 16 << 20;

/// Where a gateway's admin interface is.
pub(super) struct Interface(SocketAddr);

/// The interface at the address that is given, else the one of the configuration.
pub(super) fn interface(config: &ConfigOption, admin: Option<SocketAddr>) -> Result<Interface, Failure> {
    admin.map_or_else(|| configured(config), Ok).map(Interface)
}

impl Interface {
    /// The status and the JSON, or the text, that it answers a `GET` with.
    pub(super) fn ask(&self, path: &str) -> Result<(StatusCode, Value), Failure> {
        let Interface(address) = self;
        ask(reachable(*address), path).map_err(|error| {
            Failure::Run(format!(
                "no answer from the admin interface at {address}: {error}; is the gateway running?"
            ))
        })
    }
}

fn configured(config: &ConfigOption) -> Result<SocketAddr, Failure> {
    let file = check::file(config)?;
    let path = file.path();
    match running(&path)?.admin {
        Admin::On(options) => Ok(options.bind.0),
        Admin::Off => Err(Failure::Usage(format!("`{}` turns the admin interface off", path.display()))),
    }
}

/// The configuration by which a gateway runs, whose file may have errors by now.
fn running(path: &Path) -> Result<Config, Failure> {
    let env = |name: &str| std::env::var(name).ok();
    let text = portcullis_config::read_text(path).map_err(Failure::Files)?;
    let mut errors = match portcullis_config::parse_partly(path, &text, &env) {
        Ok((loaded, _)) => return Ok(loaded.config),
        Err(errors) => errors,
    };
    let kept = places::last_good(path, None).config().ok();
    if let Some(loaded) = kept.and_then(|text| portcullis_config::parse(path, &text, &env).ok()) {
        return Ok(loaded.config);
    }
    let unknown = Diagnostic::error(path, "it does not say where the admin interface is");
    errors.push(unknown.with_help("say it: `--admin ADDRESS`"));
    Err(Failure::Files(errors))
}

/// An address to connect to where one to listen on is given.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, address.port())),
        _ => address,
    }
}

fn ask(address: SocketAddr, path: &str) -> Result<(StatusCode, Value), String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let answer = tokio::time::timeout(PATIENCE, fetch(address, path)).await;
        answer.map_err(|_| format!("it took longer than {} s", PATIENCE.as_secs()))?
    })
}

async fn fetch(address: SocketAddr, path: &str) -> Result<(StatusCode, Value), String> {
    let stream = tokio::net::TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let code = answer.status();
    let body = server::whole(answer.into_body(), LARGEST).await?;
    let text = || Value::from(String::from_utf8_lossy(&body).trim());
    Ok((code, serde_json::from_slice(&body).unwrap_or_else(|_| text())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_listen_on_becomes_one_to_connect_to() {
        let reached = |address: &str| reachable(address.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:9901"), "127.0.0.1:9901");
        assert_eq!(reached("[::]:9901"), "[::1]:9901");
        assert_eq!(reached("10.0.0.1:9901"), "10.0.0.1:9901");
    }
}
