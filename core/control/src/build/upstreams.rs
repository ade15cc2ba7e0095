//! Upstreams, and which of their endpoints stay the same.

use std::sync::Arc;

use http::header::HeaderValue;
use portcullis_config as config;
use portcullis_proxy::upstream::{Endpoint, HostHeader, Timeouts, Upstream};

use super::Builder;

/// An upstream and what it was made of.
pub(crate) struct BuiltUpstream {
    config: config::Upstream,
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
            match identity(endpoint, running.map(|running| &*running.upstream)) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(message) => self.error(&format!("{path}.endpoints[{index}]"), message),
            }
        }
        let host = host(&config.host).map_err(|message| self.error(&format!("{path}.host"), message));
        let weights: Vec<u32> = config.endpoints.iter().map(|endpoint| endpoint.weight.get()).collect();
        let upstream = Upstream {
            name: config.name.as_str().into(),
            endpoints,
            turns: Upstream::turns(&weights),
            timeouts: Timeouts {
                connect: config.timeouts.connect.0,
                response: config.timeouts.response.0,
                idle: config.timeouts.idle.0,
                body: config.timeouts.body.0,
            },
            max_idle: config.max_idle as usize,
            retries: config.retries.into(),
            host: host.ok()?,
            metrics: self.services.metrics.upstream(&config.name),
        };
        Some(BuiltUpstream { config: config.clone(), upstream: Arc::new(upstream) })
    }
}

/// The endpoint as it runs already in this upstream, with its connections, or a new one.
fn identity(config: &config::Endpoint, running: Option<&Upstream>) -> Result<Arc<Endpoint>, String> {
    let authority = if config.host.contains(':') {
        format!("[{}]:{}", config.host, config.port)
    } else {
        format!("{}:{}", config.host, config.port)
    };
    let mut running = running.iter().flat_map(|running| &running.endpoints);
    match running.find(|endpoint| *endpoint.authority == *authority) {
        Some(endpoint) => Ok(endpoint.clone()),
        None => Endpoint::new(&authority).map(Arc::new),
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
