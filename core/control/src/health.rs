//! Health checks: the gateway asks endpoints how they are, independent of requests.
//!
//! One task per endpoint, on the control thread. What it finds is a flag of the endpoint, which workers
//! read without asking anybody. An endpoint counts as healthy until checks have said otherwise.

mod http2;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use portcullis_config::{HeaderName, Health};
use portcullis_proxy::upstream::{Endpoint, HostHeader, Transport, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::build::BuiltUpstream;

/// The status line is all that is read of an answer.
const LONGEST_STATUS_LINE: u64 = 256;

/// The checks of the running generation. They end with this value.
#[derive(Default)]
pub(crate) struct Checks {
    tasks: JoinSet<()>,
    upstreams: Vec<Checked>,
}

/// An upstream with the checks of its endpoints, by identity.
struct Checked {
    upstream: Arc<Upstream>,
    checks: Vec<(u32, AbortHandle)>,
}

impl Checks {
    /// Checks the endpoints that these upstreams have now. Those that are the same as before are not disturbed.
    pub(crate) fn follow(&mut self, built: &[BuiltUpstream]) {
        let mut before = std::mem::take(&mut self.upstreams);
        for BuiltUpstream { config, upstream, .. } in built {
            let same = before.iter().position(|known| Arc::ptr_eq(&known.upstream, upstream));
            let known = same.map_or_else(Vec::new, |at| before.swap_remove(at).checks);
            let checks = self.check(upstream, config.health.as_ref(), known);
            self.upstreams.push(Checked { upstream: upstream.clone(), checks });
        }
        before.iter().flat_map(|gone| &gone.checks).for_each(|(_, check)| check.abort());
        while self.tasks.try_join_next().is_some() {}
    }

    /// Goes on with the checks of endpoints that stay, and begins those of new ones.
    fn check(
        &mut self,
        upstream: &Arc<Upstream>,
        health: Option<&Health>,
        known: Vec<(u32, AbortHandle)>,
    ) -> Vec<(u32, AbortHandle)> {
        let current = upstream.current();
        let Some(health) = health else {
            // What checks said that are no more holds nobody back.
            for endpoint in &current.endpoints {
                current.check_said(endpoint, true);
            }
            return Vec::new();
        };
        let stays = |id: u32| current.endpoints.iter().any(|endpoint| endpoint.id == id);
        let (mut checks, gone): (Vec<_>, Vec<_>) = known.into_iter().partition(|(id, _)| stays(*id));
        gone.iter().for_each(|(_, check)| check.abort());
        for endpoint in &current.endpoints {
            if !checks.iter().any(|(id, _)| *id == endpoint.id) {
                let (upstream, endpoint) = (Arc::clone(&current), endpoint.clone());
                let (id, port) = (endpoint.id, health.port.map(NonZeroU16::get));
                let asked = port.and_then(|port| endpoint.at_port(port)).map(Arc::new);
                let asked = asked.unwrap_or_else(|| endpoint.clone());
                let check = Check { upstream, endpoint, asked, health: health.clone() };
                checks.push((id, self.tasks.spawn(check.run())));
            }
        }
        checks
    }
}

/// The check of one endpoint.
struct Check {
    upstream: Arc<Upstream>,
    endpoint: Arc<Endpoint>,
    /// The same, or at another port.
    asked: Arc<Endpoint>,
    health: Health,
}

/// What the checks so far amount to.
struct Opinion {
    healthy: bool,
    /// Results in a row that say otherwise.
    otherwise: u32,
}

impl Opinion {
    /// Takes a result in; true if it changes the opinion.
    fn learn(&mut self, good: bool, health: &Health) -> bool {
        self.otherwise = if good == self.healthy { 0 } else { self.otherwise + 1 };
        let needed = if self.healthy { health.unhealthy } else { health.healthy };
        let changes = self.otherwise >= needed.get();
        if changes {
            *self = Opinion { healthy: good, otherwise: 0 };
        }
        changes
    }
}

impl Check {
    async fn run(self) {
        let mut opinion = Opinion { healthy: self.endpoint.passes_checks(), otherwise: 0 };
        loop {
            let result = self.once().await;
            if opinion.learn(result.is_ok(), &self.health) {
                self.tell(&result);
            }
            sleep(jittered(self.health.interval.0)).await;
        }
    }

    fn tell(&self, result: &Result<(), String>) {
        if !self.upstream.check_said(&self.endpoint, result.is_ok()) {
            return;
        }
        let (upstream, endpoint) = (&*self.upstream.name, &*self.endpoint.authority);
        match result {
            Ok(()) => tracing::info!(upstream, endpoint, "endpoint is healthy again"),
            Err(why) => tracing::warn!(upstream, endpoint, %why, "endpoint is unhealthy"),
        }
    }

    async fn once(&self) -> Result<(), String> {
        let limit = self.health.timeout.0;
        timeout(limit, self.ask()).await.unwrap_or_else(|_| Err(format!("no answer in {limit:?}")))
    }

    /// A connection, and over it the answer to what is to be asked.
    async fn ask(&self) -> Result<(), String> {
        let stream = self.upstream.connect(&self.asked, None).await.map_err(|error| error.to_string())?;
        let host = match (&self.health.host, &self.upstream.host) {
            (Some(name), _) => name.as_str(),
            (None, HostHeader::Name(name)) => name.to_str().unwrap_or_default(),
            (None, HostHeader::Preserve | HostHeader::Endpoint) => {
                self.endpoint.host.to_str().unwrap_or_default()
            }
        };
        let question = Question { host, headers: &self.health.headers };
        let is_http2 = stream.is_http2(self.upstream.protocol);
        match (&self.health.path, &self.health.grpc) {
            (_, Some(service)) => {
                http2::serves(stream, &question, service).await?;
                self.asked.works();
                Ok(())
            }
            (None, None) => {
                self.asked.works();
                Ok(())
            }
            (Some(path), None) => {
                let path = path.as_str();
                let asked = if is_http2 {
                    http2::get(stream, &question, path).await
                } else {
                    get(stream, &question, path).await
                };
                let status = asked?;
                self.asked.works();
                if self.is_good(status) { Ok(()) } else { Err(format!("status {status}")) }
            }
        }
    }

    fn is_good(&self, status: u16) -> bool {
        match self.health.status.as_slice() {
            [] => (200..300).contains(&status),
            good => good.iter().any(|good| good.code() == status),
        }
    }
}

/// What a check says beside the path.
struct Question<'c> {
    host: &'c str,
    headers: &'c BTreeMap<HeaderName, String>,
}

/// The status of the answer to a `GET` over HTTP/1.
async fn get(mut stream: Transport, question: &Question<'_>, path: &str) -> Result<u16, String> {
    let failed = |error: std::io::Error| error.to_string();
    let Question { host, headers } = question;
    let lines = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: portcullis-health\r\n{}connection: close\r\n\r\n",
        lines.collect::<String>()
    );
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let line = status_line(&mut stream).await.map_err(failed)?;
    status(&line).ok_or_else(|| "the answer is not HTTP/1".to_owned())
}

async fn status_line(stream: &mut Transport) -> std::io::Result<Vec<u8>> {
    let (mut line, mut rest) = (Vec::new(), stream.take(LONGEST_STATUS_LINE));
    while !line.contains(&b'\n') && rest.read_buf(&mut line).await? > 0 {}
    Ok(line)
}

/// The code of a status line (RFC 9112, 4).
fn status(line: &[u8]) -> Option<u16> {
    let rest = line.strip_prefix(b"HTTP/1.1 ").or_else(|| line.strip_prefix(b"HTTP/1.0 "))?;
    let code = std::str::from_utf8(rest.get(..3)?).ok()?;
    let ends = rest.get(3).is_some_and(|next| matches!(next, b' ' | b'\r' | b'\n'));
    code.parse().ok().filter(|_| ends)
}

/// A tenth more or less, so that checks of many endpoints do not stay in step.
fn jittered(interval: Duration) -> Duration {
    let lot = RandomState::new().hash_one(()) % 1000;
    interval.mul_f64(0.9 + 0.2 * lot as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opinion_changes_after_so_many_results_in_a_row() {
        let three = std::num::NonZeroU32::new(3).unwrap();
        let health = Health { unhealthy: three, ..Health::default() };
        let mut opinion = Opinion { healthy: true, otherwise: 0 };
        let mut learn = |good| opinion.learn(good, &health);
        assert_eq!(
            [false, false, true, false, false, false].map(&mut learn),
            [false, false, false, false, false, true]
        );
        assert_eq!([true, false, true, true, true].map(&mut learn), [false, false, false, true, false]);
    }

    #[test]
    fn only_a_status_line_is_one() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        assert_eq!(status(b"HTTP/1.0 200\r\n"), Some(200));
        for wrong in [&b"HTTP/1.1 2000 \r\n"[..], b"HTTP/2 200 \r\n", b"HTTP/1.1 20", b"SSH-2.0-x\r\n", b""] {
            assert_eq!(status(wrong), None, "{}", String::from_utf8_lossy(wrong));
        }
    }

    #[test]
    fn intervals_differ_by_a_tenth_at_most() {
        let lengths: Vec<_> = (0..100).map(|_| jittered(Duration::from_secs(10)).as_millis()).collect();
        assert!(lengths.iter().all(|length| (9_000..=11_000).contains(length)));
        assert!(lengths.iter().any(|length| *length != lengths[0]));
    }
}
