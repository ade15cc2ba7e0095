//! A client that opens a connection for each request, with a full handshake if over TLS: wrk, asked to
//! close connections, resumes TLS sessions. It runs as a process of its own, `bench fresh ...`, like the
//! other load generators, and ends with the same line as `load.lua`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::Result;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The name in the contestants' certificate.
const SERVER: &str = "gateway.test";

/// What came back.
pub(crate) struct Reply {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
    /// Version, cipher suite and key exchange.
    pub(crate) tls: Option<String>,
}

impl Reply {
    /// A header's first value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// A client configuration that trusts an authority, never resumes a session, and offers one cipher suite
/// and one key exchange, so that all contestants do the same arithmetic.
pub(crate) fn trusting(ca: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384];
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    let builder = ClientConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// A request without a body; `close` ends the connection after it.
pub(crate) fn request(host: &str, path: &str, headers: &[(&str, &str)], close: bool) -> String {
    let fields: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let close = if close { "connection: close\r\n" } else { "" };
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{fields}{close}\r\n")
}

/// Opens a connection and finishes its handshake.
pub(crate) fn connect(
    address: SocketAddr,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<(TcpStream, Option<ClientConnection>)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let Some(config) = tls else { return Ok((stream, None)) };
    let mut session = ClientConnection::new(config.clone(), ServerName::try_from(SERVER)?)?;
    while session.is_handshaking() {
        session.complete_io(&mut stream)?;
    }
    Ok((stream, Some(session)))
}

/// Asks once, on a connection of its own.
pub(crate) fn ask(
    address: SocketAddr,
    tls: Option<&Arc<ClientConfig>>,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Reply> {
    let (status, answer, tls) = exchange(address, tls, &request(host, path, headers, true))?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("an answer without an end of its head")?;
    Ok(Reply { status, head: head.to_owned(), body: body.to_owned(), tls })
}

fn exchange(
    address: SocketAddr,
    tls: Option<&Arc<ClientConfig>>,
    request: &str,
) -> Result<(u16, Vec<u8>, Option<String>)> {
    let (mut stream, mut session) = connect(address, tls)?;
    let mut answer = Vec::with_capacity(1024);
    match &mut session {
        None => {
            stream.write_all(request.as_bytes())?;
            to_end(&mut stream, &mut answer)?;
        }
        Some(session) => {
            let mut stream = rustls::Stream::new(session, &mut stream);
            stream.write_all(request.as_bytes())?;
            to_end(&mut stream, &mut answer)?;
        }
    }
    let status = answer.get(9..12).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
    Ok((status.ok_or("no status line")?, answer, session.as_ref().map(described)))
}

fn to_end(stream: &mut impl Read, answer: &mut Vec<u8>) -> Result<()> {
    match stream.read_to_end(answer) {
        Ok(_) => Ok(()),
        // Not everybody says goodbye on the TLS layer; `Connection: close` and a length are enough.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !answer.is_empty() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn described(session: &ClientConnection) -> String {
    let version = session.protocol_version().map(|version| format!("{version:?}"));
    let suite = session.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()));
    let exchange = session.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name()));
    [version, suite, exchange].map(Option::unwrap_or_default).join(" ")
}

/// What the process is told: address, authority or `-`, connections at a time, seconds or 0, requests or
/// 0, path, the right status, and headers as `name:value`.
pub(crate) fn main(arguments: &[String]) -> Result<()> {
    let [address, ca, connections, seconds, count, path, right, headers @ ..] = arguments else {
        return Err("fresh ADDRESS CA CONNECTIONS SECONDS REQUESTS PATH STATUS [NAME:VALUE]...".into());
    };
    let (address, connections) = (address.parse()?, connections.parse::<usize>()?);
    let (seconds, count, right) = (seconds.parse()?, count.parse::<u64>()?, right.parse::<u16>()?);
    let tls = if ca == "-" { None } else { Some(trusting(Path::new(ca))?) };
    let headers: Vec<_> = headers.iter().filter_map(|header| header.split_once(':')).collect();
    let request = request(SERVER, path, &headers, true);
    let (begin, sent) = (Instant::now(), AtomicU64::new(0));
    let end = begin + Duration::from_secs(seconds);
    let goes_on = || match count {
        0 => Instant::now() < end,
        count => sent.fetch_add(1, Ordering::Relaxed) < count,
    };
    let work = || {
        let mut tally = Tally::default();
        while goes_on() {
            let start = Instant::now();
            match exchange(address, tls.as_ref(), &request) {
                Ok((status, ..)) if status == right => tally.micros.push(start.elapsed().as_micros() as u64),
                Ok(_) => tally.statuses += 1,
                Err(_) => tally.broken += 1,
            }
        }
        tally
    };
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(work)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    Tally::sum(tallies).print(begin.elapsed());
    Ok(())
}

#[derive(Default)]
struct Tally {
    /// How long each right answer took.
    micros: Vec<u64>,
    statuses: u64,
    broken: u64,
}

impl Tally {
    fn sum(tallies: Vec<Tally>) -> Tally {
        let mut sum = Tally::default();
        for tally in tallies {
            sum.micros.extend(tally.micros);
            sum.statuses += tally.statuses;
            sum.broken += tally.broken;
        }
        sum
    }

    fn print(mut self, elapsed: Duration) {
        let [p50, p99] = percentiles(&mut self.micros);
        println!(
            "result requests={} bytes=0 micros={} statuses={} broken={} p50={p50} p99={p99}",
            self.micros.len() as u64 + self.statuses,
            elapsed.as_micros(),
            self.statuses,
            self.broken
        );
    }
}

/// Half, and all but a hundredth, are not above these.
pub(crate) fn percentiles(values: &mut [u64]) -> [u64; 2] {
    values.sort_unstable();
    [50, 99].map(|percent| {
        let rank = (values.len() * percent).div_ceil(100).saturating_sub(1);
        values.get(rank).copied().unwrap_or(0)
    })
}
