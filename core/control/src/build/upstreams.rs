//! Upstreams, and which of their endpoints stay the same.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::{hmac, rand};
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use portcullis_config as config;
use portcullis_proxy::metrics::Metrics;
use portcullis_proxy::upstream::{
    Balance, Balancer, Ejection, Endpoint, HashBy, HostHeader, Place, Protocol, Retries, Sticky, Timeouts,
    Upstream,
};

use super::Builder;

/// Bytes of a sticky cookie's value: too many to guess.
const MARK_BYTES: usize = 16;

/// An upstream and what it was made of.
pub(crate) struct BuiltUpstream {
    pub(crate) config: config::Upstream,
    pub(crate) upstream: Arc<Upstream>,
}

impl Builder<'_> {
    pub(super) fn upstreams(&mut self) -> Vec<BuiltUpstream> {
        let upstreams = self.loaded.config.upstreams.iter();
        upstreams.filter_map(|upstream| self.upstream(upstream)).collect()
    }

    fn upstream(&mut self, config: &config::Upstream) -> Option<BuiltUpstream> {
        let running = self.running.iter().flat_map(|running| &running.upstreams);
        let running = running.into_iter().find(|running| running.config.name == config.name);
        if let Some(same) = running.filter(|running| running.config == *config) {
            return Some(BuiltUpstream { config: config.clone(), upstream: same.upstream.clone() });
        }
        let path = format!("upstreams.{}", config.name);
        let mut endpoints = Vec::new();
        for (index, endpoint) in config.endpoints.iter().enumerate() {
            let running = running.map(|running| &*running.upstream);
            match identity(endpoint, running, &self.services.metrics) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(message) => self.error(&format!("{path}.endpoints[{index}]"), message),
            }
        }
        let host = host(&config.host).map_err(|message| self.error(&format!("{path}.host"), message));
        let rule =
            rule(config, &endpoints).map_err(|message| self.error(&format!("{path}.balance"), message));
        let places = config.endpoints.iter().map(place).collect();
        let upstream = Upstream {
            protocol: match config.protocol {
                config::Protocol::Http1 => Protocol::Http1,
                config::Protocol::Http2 => Protocol::Http2,
            },
            balancer: Balancer::new(rule.ok()?, places, config.min_healthy.0),
            slow_start: config.slow_start.map_or(Duration::ZERO, |length| length.0),
            ejection: ejection(&config.eject),
            max_requests: config.max_requests.map(Into::into),
            timeouts: Timeouts {
                connect: config.timeouts.connect.0,
                response: config.timeouts.response.0,
                idle: config.timeouts.idle.0,
                body: config.timeouts.body.0,
            },
            max_idle: config.max_idle as usize,
            retries: retries(&config.retries),
            host: host.ok()?,
            ..Upstream::new(&config.name, endpoints, self.services.metrics.upstream(&config.name))
        };
        Some(BuiltUpstream { config: config.clone(), upstream: Arc::new(upstream) })
    }
}

/// The endpoint as it runs already in this upstream, with its connections and what is known of it, or
/// a new one.
fn identity(
    config: &config::Endpoint,
    running: Option<&Upstream>,
    metrics: &Metrics,
) -> Result<Arc<Endpoint>, String> {
    let authority = if config.host.contains(':') {
        format!("[{}]:{}", config.host, config.port)
    } else {
        format!("{}:{}", config.host, config.port)
    };
    let mut running = running.iter().flat_map(|running| &running.endpoints);
    match running.find(|endpoint| *endpoint.authority == *authority) {
        Some(endpoint) => Ok(endpoint.clone()),
        None => Endpoint::new(&authority, metrics).map(Arc::new),
    }
}

fn place(endpoint: &config::Endpoint) -> Place {
    Place { weight: endpoint.weight.get(), priority: endpoint.priority }
}

fn rule(config: &config::Upstream, endpoints: &[Arc<Endpoint>]) -> Result<Balance, String> {
    Ok(match &config.balance {
        config::Balance::RoundRobin => Balance::RoundRobin,
        config::Balance::LeastRequest => Balance::LeastRequest,
        config::Balance::Random => Balance::Random,
        config::Balance::Hash(by) => Balance::Hash(match by {
            config::HashBy::Client => HashBy::Client,
            config::HashBy::Principal => HashBy::Principal,
            config::HashBy::Header(name) => HashBy::Header(
                HeaderName::try_from(name.as_str()).map_err(|_| format!("`{name}` is not a header name"))?,
            ),
            config::HashBy::Cookie(name) => HashBy::Cookie(name.clone()),
        }),
        config::Balance::Sticky(sticky) => Balance::Sticky(marked(&config.name, sticky, endpoints)?),
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

fn ejection(config: &config::Eject) -> Ejection {
    Ejection {
        failures: config.failures.get(),
        server_errors: config.server_errors,
        time: config.time.0,
        max_time: config.max_time.0,
        max_ejected: config.max_ejected.0,
    }
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
