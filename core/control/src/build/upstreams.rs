//! Upstreams, and which of their endpoints stay the same.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::{hmac, rand};
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use portcullis_config::{self as config, join};
use portcullis_proxy::metrics::Metrics;
use portcullis_proxy::proxy_protocol::Version;
use portcullis_proxy::tls::Certificate;
use portcullis_proxy::upstream::{
    Adaptive, Address, Balance, Balancer, Breaker, ClientTls, Deadline, Ejection, Endpoint, HashBy, Hedge,
    HostHeader, Pending, Place, Protocol, Retries, Sticky, Timeouts, Tls, Upstream, Way, client_config,
};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::listeners::tls_version;
use super::routes::all_or_nothing;
use super::{Builder, Built};
use crate::dns::{Discovered, Found};
use crate::inputs::Digest;

/// Bytes of a sticky cookie's value: too many to guess.
const MARK_BYTES: usize = 16;

/// An upstream and what it was made of.
#[derive(Clone)]
pub(crate) struct BuiltUpstream {
    pub(crate) config: config::Upstream,
    pub(crate) upstream: Arc<Upstream>,
    /// Where its endpoints come from, if that is DNS.
    pub(crate) discovered: Option<Arc<Discovered>>,
    tls: Option<BuiltTls>,
    zone: Option<String>,
}

/// TLS towards endpoints, and a hash of what it was made of.
#[derive(Clone)]
struct BuiltTls {
    made_of: Digest,
    client: Arc<ClientConfig>,
}

/// What an upstream is made of besides its endpoints.
pub(crate) struct Recipe {
    config: config::Upstream,
    tls: Option<Arc<ClientConfig>>,
    /// The gateway's own.
    zone: Option<String>,
    metrics: Arc<Metrics>,
}

/// An endpoint as it is wanted.
struct Spot {
    way: Way,
    authority: String,
    host: String,
    place: Place,
}

/// A mistake, and the key below the upstream where it is.
type Mistake = (String, String);

impl Builder<'_> {
    pub(super) fn upstreams(&mut self) -> Vec<BuiltUpstream> {
        let upstreams = self.loaded.config.upstreams.iter();
        upstreams.filter_map(|upstream| self.upstream(upstream)).collect()
    }

    fn upstream(&mut self, config: &config::Upstream) -> Option<BuiltUpstream> {
        let path = join("upstreams", &config.name);
        let running = self.running.and_then(|running| running.upstream(&config.name));
        let zone = &self.loaded.config.zone;
        let tls = if speaks_tls(config) { Some(self.client_tls(&path, config, running)?) } else { None };
        let is_same = |running: &&BuiltUpstream| {
            running.config == *config
                && running.zone == *zone
                && running.tls.as_ref().map(|tls| tls.made_of) == tls.as_ref().map(|tls| tls.made_of)
        };
        if let Some(same) = running.filter(is_same) {
            return Some(same.clone());
        }
        let client = tls.as_ref().map(|tls| tls.client.clone());
        let (zone, metrics) = (zone.clone(), self.services.metrics.clone());
        let recipe = Recipe { config: config.clone(), tls: client, zone: zone.clone(), metrics };
        let built = match &config.dns {
            Some(dns) => Discovered::new(dns, recipe, running)
                .map(|discovered| (discovered.upstream().clone(), Some(Arc::new(discovered))))
                .map_err(|message| ("dns".to_owned(), message)),
            None => recipe.configured(running).map(|upstream| (Arc::new(upstream), None)),
        };
        match built {
            Ok((upstream, discovered)) => {
                Some(BuiltUpstream { config: config.clone(), upstream, discovered, tls, zone })
            }
            Err((key, message)) => {
                self.error(&format!("{path}.{key}"), message);
                None
            }
        }
    }

    /// TLS towards the endpoints of an upstream: as it runs, if it is made of the same.
    fn client_tls(
        &mut self,
        path: &str,
        config: &config::Upstream,
        running: Option<&BuiltUpstream>,
    ) -> Option<BuiltTls> {
        let path = format!("{path}.tls");
        let tls = config.tls.as_ref();
        let ca = tls.and_then(|tls| tls.ca.as_ref()).map(|file| self.pem(&format!("{path}.ca"), file));
        let certificate = tls.and_then(|tls| tls.certificate.as_ref()).map(|certificate| {
            let cert = self.pem(&format!("{path}.certificate.cert"), &certificate.cert);
            let key = self.pem(&format!("{path}.certificate.key"), &certificate.key);
            Some(Certificate { cert_pem: cert?, key_pem: key? })
        });
        let settings = ClientTls {
            ca_pem: ca.clone().flatten(),
            certificate: certificate.clone().flatten(),
            min_version: tls_version(tls.map_or_else(Default::default, |tls| tls.min_version)),
            verify: tls.is_none_or(|tls| tls.verify),
            protocol: protocol(config.protocol),
        };
        if all_or_nothing(ca).is_none() || all_or_nothing(certificate).is_none() {
            self.judge_parts_of(&path, &settings);
            return None;
        }
        let made_of = hash(&settings);
        let same = running.and_then(|running| running.tls.as_ref());
        if let Some(same) = same.filter(|same| same.made_of == made_of) {
            return Some(same.clone());
        }
        let client = client_config(&settings).ok();
        if client.is_none() {
            self.judge_parts_of(&path, &settings);
        }
        Some(BuiltTls { made_of, client: client? })
    }

    /// Judges authorities and certificate each alone: together they end at the first error.
    fn judge_parts_of(&mut self, path: &str, settings: &ClientTls) {
        let authorities = ClientTls { certificate: None, ..settings.clone() };
        let certificate = ClientTls { verify: false, ..settings.clone() };
        for error in [authorities, certificate].iter().filter_map(|part| client_config(part).err()) {
            self.error(&format!("{path}.{}", error.part), error.message);
        }
    }
}

impl Built {
    fn upstream(&self, name: &str) -> Option<&BuiltUpstream> {
        self.upstreams.iter().find(|built| built.config.name == name)
    }
}

fn hash(settings: &ClientTls) -> Digest {
    let shape = format!("{:?} {} {:?}", settings.min_version, settings.verify, settings.protocol);
    let certificate = settings.certificate.iter();
    let files = certificate.flat_map(|certificate| [&certificate.cert_pem[..], &certificate.key_pem[..]]);
    let ca = settings.ca_pem.iter().map(|ca| &ca[..]);
    // Which of both there are tells what a part is.
    let kinds = [settings.ca_pem.is_some().into(), settings.certificate.is_some().into()];
    Digest::of_parts([shape.as_bytes(), &kinds].into_iter().chain(files).chain(ca))
}

fn speaks_tls(config: &config::Upstream) -> bool {
    use config::{EndpointAddress::Tcp, Scheme::Https};
    config.dns.as_ref().is_some_and(|dns| dns.scheme == Https)
        || config.endpoints.iter().any(|endpoint| matches!(endpoint.address, Tcp { scheme: Https, .. }))
}

impl Recipe {
    /// The upstream with the endpoints of the configuration.
    fn configured(&self, running: Option<&BuiltUpstream>) -> Result<Upstream, Mistake> {
        let endpoints = self.config.endpoints.iter().enumerate();
        let spot = |(index, endpoint)| {
            self.spot(endpoint).map_err(|message| (format!("endpoints[{index}]"), message))
        };
        let spots = endpoints.map(spot).collect::<Result<Vec<_>, _>>()?;
        let running = running.map(|running| running.upstream.current());
        self.upstream(&spots, running.as_deref().map(|running| &**running))
    }

    /// The upstream with the endpoints of an answer.
    pub(crate) fn upstream_of(
        &self,
        found: &[Found],
        running: Option<&Upstream>,
    ) -> Result<Upstream, String> {
        let scheme = self.config.dns.as_ref().map_or_else(Default::default, |dns| dns.scheme);
        let spot = |found: &Found| {
            Ok(Spot {
                way: self.way(Address::Socket(found.address), scheme, &found.host)?,
                authority: found.address.to_string(),
                host: authority(&found.host, found.address.port()),
                place: Place { weight: found.weight, priority: found.priority.into() },
            })
        };
        let spots = found.iter().map(spot).collect::<Result<Vec<_>, String>>()?;
        self.upstream(&spots, running).map_err(|(key, message)| format!("{key}: {message}"))
    }

    fn spot(&self, endpoint: &config::Endpoint) -> Result<Spot, String> {
        let place = Place { weight: endpoint.weight.get(), priority: self.priority(endpoint) };
        match &endpoint.address {
            config::EndpointAddress::Tcp { scheme, host, port } => {
                let authority = authority(host, *port);
                let way = self.way(Address::of(&authority), *scheme, host)?;
                Ok(Spot { way, host: authority.clone(), authority, place })
            }
            config::EndpointAddress::Unix(path) => {
                let way = self.way(Address::Unix(path.as_path().into()), config::Scheme::Http, "")?;
                let authority = format!("unix:{}", path.display());
                Ok(Spot { way, authority, host: "localhost".to_owned(), place })
            }
        }
    }

    /// Those of another zone come between those of the gateway's own and the next priority, so that one rule says when
    /// either is needed.
    fn priority(&self, endpoint: &config::Endpoint) -> u16 {
        let is_elsewhere = self.zone.is_some() && endpoint.zone != self.zone;
        2 * u16::from(endpoint.priority) + u16::from(is_elsewhere)
    }

    /// How an endpoint is reached whose certificate is for `host`, unless the configuration says for whom.
    fn way(&self, address: Address, scheme: config::Scheme, host: &str) -> Result<Way, String> {
        let named = self.config.tls.as_ref().and_then(|tls| tls.server_name.as_ref());
        let tls = self.tls.as_ref().filter(|_| scheme == config::Scheme::Https).map(|client| {
            let name = named.map_or(host, |name| name.as_str()).to_owned();
            let wrong = format!("no certificate can be for `{name}`");
            let name = ServerName::try_from(name).map_err(|_| wrong)?;
            Ok::<_, String>(Tls { config: client.clone(), name })
        });
        let proxy_protocol = self.config.proxy_protocol.map(|version| match version {
            config::ProxyProtocol::V1 => Version::V1,
            config::ProxyProtocol::V2 => Version::V2,
        });
        Ok(Way { address, tls: tls.transpose()?, proxy_protocol })
    }

    /// The upstream with these endpoints. Those that it had before, reached in the same way, stay the same.
    fn upstream(&self, spots: &[Spot], before: Option<&Upstream>) -> Result<Upstream, Mistake> {
        let config = &self.config;
        let at = |key: &'static str| move |message: String| (key.to_owned(), message);
        let endpoint = |spot| identity(spot, before, &self.metrics);
        let endpoints = spots.iter().map(endpoint).collect::<Result<Vec<_>, _>>().map_err(at("endpoints"))?;
        let places = spots.iter().map(|spot| spot.place).collect();
        let rule = rule(config, &endpoints).map_err(at("balance"))?;
        let deadline = config.deadline.as_ref().map(deadline).transpose().map_err(at("deadline"))?;
        Ok(Upstream {
            protocol: protocol(config.protocol),
            balancer: Balancer::new(rule, &endpoints, places, config.min_healthy.0),
            slow_start: config.slow_start.map_or(Duration::ZERO, |length| length.0),
            ejection: ejection(&config.eject),
            breaker: config.breaker.as_ref().map(breaker),
            max_requests: config.max_requests.map(Into::into),
            adaptive: config.adaptive.as_ref().map(adaptive),
            pending: Pending { most: config.max_pending, timeout: config.timeouts.pending.0 },
            timeouts: Timeouts {
                connect: config.timeouts.connect.0,
                response: config.timeouts.response.0,
                total: config.timeouts.total.map(|total| total.0),
                idle: config.timeouts.idle.0,
                body: config.timeouts.body.0,
                tunnel: config.timeouts.tunnel.0,
            },
            max_idle: config.max_idle as usize,
            max_age: config.max_connection_age.map(|age| age.0),
            keepalive: config.tcp_keepalive.map(|after| after.0),
            retries: retries(&config.retries),
            hedge: config.hedge.as_ref().map(hedge),
            deadline,
            host: host(&config.host).map_err(at("host"))?,
            ..Upstream::new(&config.name, endpoints, self.metrics.upstream(&config.name))
        })
    }
}

/// The endpoint as it runs already in this upstream, with its connections and what is known of it, or
/// a new one.
fn identity(spot: &Spot, before: Option<&Upstream>, metrics: &Metrics) -> Result<Arc<Endpoint>, String> {
    let same = |endpoint: &&Arc<Endpoint>| {
        *endpoint.authority == *spot.authority
            && endpoint.host == spot.host
            && endpoint.is_reached_by(&spot.way)
    };
    match before.and_then(|before| before.endpoints.iter().find(same)) {
        Some(endpoint) => Ok(endpoint.clone()),
        None => Endpoint::by(spot.way.clone(), &spot.authority, &spot.host, metrics).map(Arc::new),
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn rule(config: &config::Upstream, endpoints: &[Arc<Endpoint>]) -> Result<Balance, String> {
    Ok(match &config.balance {
        config::Balance::RoundRobin => Balance::RoundRobin,
        config::Balance::LeastRequest => Balance::LeastRequest,
        config::Balance::Random => Balance::Random,
        config::Balance::Hash(by) => Balance::Hash(hash_by(by)?),
        config::Balance::Sticky(sticky) => Balance::Sticky(marked(&config.name, sticky, endpoints)?),
    })
}

pub(super) fn hash_by(config: &config::HashBy) -> Result<HashBy, String> {
    Ok(match config {
        config::HashBy::Client => HashBy::Client,
        config::HashBy::Principal => HashBy::Principal,
        config::HashBy::Header(name) => HashBy::Header(
            HeaderName::try_from(name.as_str()).map_err(|_| format!("`{name}` is not a header name"))?,
        ),
        config::HashBy::Cookie(name) => HashBy::Cookie(name.clone()),
    })
}

/// Cookie values that a client can neither read an address from nor guess.
fn marked(upstream: &str, config: &config::Sticky, endpoints: &[Arc<Endpoint>]) -> Result<Sticky, String> {
    let key = match &config.key {
        Some(key) => hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()),
        None => random_key()?.clone(),
    };
    let value = |endpoint: &Arc<Endpoint>| {
        let named = format!("{upstream}\n{}", endpoint.authority);
        let tag = hmac::sign(&key, named.as_bytes());
        tag.as_ref().iter().take(MARK_BYTES).map(|byte| format!("{byte:02x}")).collect()
    };
    let values = endpoints.iter().map(value).collect();
    Sticky::new(&config.cookie, values).ok_or_else(|| format!("`{}` is not a cookie name", config.cookie))
}

/// The key of this process, so that reloads leave clients where they are.
fn random_key() -> Result<&'static hmac::Key, String> {
    static KEY: LazyLock<Option<hmac::Key>> =
        LazyLock::new(|| hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new()).ok());
    KEY.as_ref().ok_or_else(|| "the system has no random numbers".to_owned())
}

fn protocol(config: config::HttpVersion) -> Protocol {
    match config {
        config::HttpVersion::Http1 => Protocol::Http1,
        config::HttpVersion::Http2 => Protocol::Http2,
        config::HttpVersion::Auto => Protocol::Auto,
    }
}

fn ejection(config: &config::Eject) -> Ejection {
    Ejection {
        failures: config.failures.get(),
        server_errors: config.server_errors,
        error_rate: config.error_rate.map(|share| share.0),
        latency_factor: config.latency_factor.map(Into::into),
        window: config.window.0,
        min_requests: config.min_requests.get(),
        time: config.time.0,
        max_time: config.max_time.0.max(config.time.0),
        max_ejected: config.max_ejected.0,
    }
}

fn breaker(config: &config::Breaker) -> Breaker {
    Breaker {
        error_rate: config.error_rate.0,
        min_requests: config.min_requests.get(),
        window: config.window.0,
        server_errors: config.server_errors,
        time: config.time.0,
        probes: config.probes.get(),
    }
}

fn adaptive(config: &config::Adaptive) -> Adaptive {
    Adaptive { min: config.min.get(), tolerance: config.tolerance.get() }
}

fn hedge(config: &config::Hedge) -> Hedge {
    match config.after {
        config::HedgeAfter::Time(time) => Hedge::After(time.0),
        config::HedgeAfter::P95 => Hedge::P95,
    }
}

fn deadline(config: &config::Deadline) -> Result<Box<Deadline>, String> {
    let name = |name: &Option<config::HeaderName>| name.as_ref().map(header_name).transpose();
    Ok(Box::new(Deadline { read: name(&config.read)?, tell: name(&config.tell)? }))
}

fn header_name(name: &config::HeaderName) -> Result<HeaderName, String> {
    HeaderName::try_from(name.as_str()).map_err(|_| format!("`{name}` is not a header name"))
}

fn retries(config: &config::Retries) -> Retries {
    use config::RetryOn;
    let status = |on: &RetryOn| match on {
        RetryOn::Status(code) => StatusCode::from_u16(*code).ok(),
        RetryOn::Connect | RetryOn::Timeout | RetryOn::Broken => None,
    };
    Retries {
        attempts: config.attempts.into(),
        per_try: config.per_try_timeout.map(|timeout| timeout.0),
        total: config.timeout.map(|timeout| timeout.0),
        backoff: config.backoff.0,
        on_connect: config.on.contains(&RetryOn::Connect),
        on_timeout: config.on.contains(&RetryOn::Timeout),
        on_broken: config.on.contains(&RetryOn::Broken),
        on_status: config.on.iter().filter_map(status).collect(),
        share: config.budget.share.0,
        min: config.budget.min,
    }
}

fn host(config: &config::HostHeader) -> Result<HostHeader, String> {
    Ok(match config {
        config::HostHeader::Preserve => HostHeader::Preserve,
        config::HostHeader::Endpoint => HostHeader::Endpoint,
        config::HostHeader::Name(name) => HostHeader::Name(
            HeaderValue::try_from(name).map_err(|_| format!("`{name}` cannot be sent as a header"))?,
        ),
    })
}
