//! Listeners: addresses, TLS, limits, and the chains of what arrives there.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use ipnet::IpNet;
use portcullis_config as config;
use portcullis_proxy::generation::{ClientLimits, Listener, ListenerLimits, Rate, RedirectHttps};
use portcullis_proxy::tls::{
    Certificate, ClientAuth, TlsError, TlsPolicy, TlsSettings, TlsVersion, server_config,
};
use portcullis_proxy::{Address, Gate};
use rustls::ServerConfig;

use super::plugins::Lists;
use super::routes::all_or_nothing;
use super::{Builder, BuiltPlugin, Scope};
use crate::inputs::{Digest, absolute};

/// The TLS of a listener and a hash of what it was made of. Kept over reloads, because session
/// tickets end with it.
pub(crate) struct BuiltTls {
    listener: String,
    made_of: Digest,
    /// A hash of what it asks of clients, whichever certificate it shows them.
    terms: Digest,
    server: Arc<ServerConfig>,
}

/// Permissions of a Unix socket's file: its own user may connect.
const SOCKET_MODE: u32 = 0o600;

/// The setting that errors about the authorities of client certificates are about.
const AUTHORITIES: &str = "client_auth.ca";

impl Builder<'_> {
    pub(super) fn tls(&mut self) -> Vec<BuiltTls> {
        let mut built = Vec::new();
        for (index, listener) in self.loaded.config.listeners.iter().enumerate() {
            if let Some(tls) = &listener.tls {
                let path = format!("listeners[{index}].tls");
                built.extend(self.listener_tls(&path, &listener.name, tls));
            }
        }
        built
    }

    fn listener_tls(&mut self, path: &str, listener: &str, tls: &config::Tls) -> Option<BuiltTls> {
        let certificates = self.certificates(&format!("{path}.certificates"), &tls.certificates);
        let client_auth = tls.client_auth.as_ref().map(|auth| {
            let ca_pem = self.pem(&format!("{path}.{AUTHORITIES}"), &auth.ca)?;
            Some(ClientAuth { required: auth.mode == config::ClientAuthMode::Required, ca_pem })
        });
        let read: Option<Vec<_>> = certificates.iter().cloned().collect();
        let (Some(client_auth), Some(read)) = (all_or_nothing(client_auth.clone()), read) else {
            self.judge_parts(path, tls, &certificates, client_auth.flatten());
            return None;
        };
        let settings = settings(tls, read, client_auth);
        let made_of = hash(tls, &settings);
        let mut running = self.running.iter().flat_map(|running| &running.tls);
        let same = running.find(|running| running.listener == listener && running.made_of == made_of);
        let server = match same {
            Some(same) => same.server.clone(),
            None => match server_config(&settings) {
                Ok(server) => server,
                Err(error) => {
                    if !self.judge_parts(path, tls, &certificates, settings.client_auth) {
                        self.tls_error(path, error);
                    }
                    return None;
                }
            },
        };
        let terms = terms(tls, &settings);
        Some(BuiltTls { listener: listener.to_owned(), made_of, terms, server })
    }

    /// The files of each certificate; none where they cannot be read.
    fn certificates(&mut self, path: &str, config: &[config::Certificate]) -> Vec<Option<Certificate>> {
        let read = |(index, certificate): (usize, &config::Certificate)| {
            let cert = self.pem(&format!("{path}[{index}].cert"), &certificate.cert);
            let key = self.pem(&format!("{path}[{index}].key"), &certificate.key);
            Some(Certificate { cert_pem: cert?, key_pem: key? })
        };
        config.iter().enumerate().map(read).collect()
    }

    /// Judges the authorities and each certificate alone: together they end at the first error. Whether there are
    /// errors.
    fn judge_parts(
        &mut self,
        path: &str,
        tls: &config::Tls,
        certificates: &[Option<Certificate>],
        client_auth: Option<ClientAuth>,
    ) -> bool {
        let mut errors = Vec::new();
        let authorities = server_config(&settings(tls, Vec::new(), client_auth));
        // That there is no certificate is the other error that this ends with.
        errors.extend(authorities.err().filter(|error| error.part == AUTHORITIES));
        for (index, certificate) in certificates.iter().enumerate() {
            let alone = certificate.clone().map(|certificate| settings(tls, vec![certificate], None));
            if let Some(Err(error)) = alone.map(|settings| server_config(&settings)) {
                errors.push(TlsError { certificate: error.certificate.map(|_| index), ..error });
            }
        }
        let found = !errors.is_empty();
        errors.into_iter().for_each(|error| self.tls_error(path, error));
        found
    }

    pub(super) fn pem(&mut self, path: &str, file: &Path) -> Option<Bytes> {
        let content = self.files.read_data(&absolute(&self.dir, file));
        content.map(|content| content.bytes).map_err(|message| self.error(path, message)).ok()
    }

    fn tls_error(&mut self, path: &str, error: TlsError) {
        let path = match error.certificate {
            Some(index) => format!("{path}.certificates[{index}].{}", error.part),
            None => format!("{path}.{}", error.part),
        };
        self.error(&path, error.message);
    }

    pub(super) fn listeners(&self, plugins: &[BuiltPlugin], tls: &[BuiltTls]) -> Vec<Arc<Listener>> {
        let config = &self.loaded.config;
        let lists = Lists::new(plugins);
        let mut given = Vec::new();
        let listener = |listener: &config::Listener| {
            let scope = Scope::Listener(listener.name.as_str().into());
            let chain = lists.chain(&[&Scope::Gateway, &scope]);
            let of_route = |route: &config::Route| {
                let own = Scope::Route(route.name.as_str().into());
                if lists.is_empty(&own) {
                    chain.clone()
                } else {
                    lists.chain(&[&Scope::Gateway, &scope, &own])
                }
            };
            let tls = tls.iter().find(|tls| tls.listener == listener.name);
            let bind: Vec<_> = listener.bind.iter().map(listen_address).collect();
            Arc::new(Listener {
                name: listener.name.as_str().into(),
                gate: self.gate(&bind, &mut given),
                bind,
                socket_mode: listener.socket_mode.map_or(SOCKET_MODE, |mode| mode.0),
                proxies: listener.proxy_protocol.as_ref().map(proxies),
                tls: tls.map(|tls| tls.server.clone()),
                terms: {
                    let mut hasher = DefaultHasher::new();
                    let proxies = listener.proxy_protocol.as_ref().map(proxies);
                    (tls.map(|tls| tls.terms), proxies).hash(&mut hasher);
                    hasher.finish()
                },
                redirect_https: listener.redirect_https.map(redirect_https),
                limits: limits(listener),
                client_limits: client_limits(&listener.limits),
                route_chains: config.routes.iter().map(of_route).collect(),
                chain,
            })
        };
        config.listeners.iter().map(listener).collect()
    }

    /// The door of a listener: connections are counted on where they came in, whatever it is called by now. Of two
    /// listeners that were one, the first has it.
    fn gate(&self, bind: &[Address], given: &mut Vec<Arc<Gate>>) -> Arc<Gate> {
        let running = self.running.iter().flat_map(|running| &running.generation.listeners);
        let mut at_these = running.filter(|listener| listener.bind.iter().any(|at| bind.contains(at)));
        let is_free = |gate: &Arc<Gate>| !given.iter().any(|other| Arc::ptr_eq(other, gate));
        let gate = at_these.find_map(|listener| Some(&listener.gate).filter(|gate| is_free(gate)));
        let gate = gate.cloned().unwrap_or_default();
        given.push(gate.clone());
        gate
    }
}

/// An address of the configuration as the data plane has it.
pub fn listen_address(address: &config::ListenAddress) -> Address {
    match address {
        config::ListenAddress::Tcp(address) => Address::Tcp(*address),
        config::ListenAddress::Unix(path) => Address::Unix(path.as_path().into()),
    }
}

fn settings(
    tls: &config::Tls,
    certificates: Vec<Certificate>,
    client_auth: Option<ClientAuth>,
) -> TlsSettings {
    let protocol = |alpn: &config::Alpn| match alpn {
        config::Alpn::H2 => b"h2".to_vec(),
        config::Alpn::Http1 => b"http/1.1".to_vec(),
    };
    TlsSettings {
        certificates,
        min_version: tls_version(tls.min_version),
        policy: match tls.policy {
            config::TlsPolicy::Modern => TlsPolicy::Modern,
            config::TlsPolicy::Intermediate => TlsPolicy::Intermediate,
        },
        alpn: tls.alpn.iter().map(protocol).collect(),
        client_auth,
    }
}

pub(super) fn tls_version(version: config::TlsVersion) -> TlsVersion {
    match version {
        config::TlsVersion::V1_2 => TlsVersion::V12,
        config::TlsVersion::V1_3 => TlsVersion::V13,
    }
}

fn hash(tls: &config::Tls, settings: &TlsSettings) -> Digest {
    let shape = format!("{tls:?}");
    let certificates = settings.certificates.iter();
    let files = certificates.flat_map(|certificate| [&certificate.cert_pem[..], &certificate.key_pem[..]]);
    let ca = settings.client_auth.iter().map(|auth| &auth.ca_pem[..]);
    Digest::of_parts([shape.as_bytes()].into_iter().chain(files).chain(ca))
}

fn terms(tls: &config::Tls, settings: &TlsSettings) -> Digest {
    let shape = format!("{:?} {:?} {:?}", tls.min_version, tls.policy, tls.client_auth);
    let ca = settings.client_auth.iter().map(|auth| &auth.ca_pem[..]);
    Digest::of_parts([shape.as_bytes()].into_iter().chain(ca))
}

fn proxies(config: &config::Proxies) -> Arc<[IpNet]> {
    config.from.iter().map(|network| network.0).collect()
}

fn redirect_https(config: config::RedirectHttps) -> RedirectHttps {
    RedirectHttps {
        port: Some(config.port.get()).filter(|port| *port != 443),
        status: StatusCode::from_u16(config.status.code()).unwrap_or(StatusCode::PERMANENT_REDIRECT),
    }
}

fn client_limits(limits: &config::ListenerLimits) -> ClientLimits {
    ClientLimits {
        connections: limits.connections_per_client.map(NonZeroU32::get),
        handshakes: limits.handshakes_per_client.map(|rate| Rate { count: rate.count, per: rate.per }),
    }
}

fn limits(listener: &config::Listener) -> ListenerLimits {
    let limits = &listener.limits;
    ListenerLimits {
        connections: limits.connections.get() as usize,
        header_bytes: usize::try_from(limits.header_bytes.0).unwrap_or(usize::MAX),
        header_count: limits.header_count.get() as usize,
        header_timeout: limits.header_timeout.0,
        body_timeout: limits.body_timeout.0,
        write_timeout: limits.write_timeout.0,
        min_rate: limits.min_rate.0,
        idle_timeout: limits.idle_timeout.0,
        keepalive: limits.tcp_keepalive.map(|after| after.0),
        http2_streams: listener.http2.max_streams.get(),
    }
}
