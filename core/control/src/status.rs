//! What runs, for people and machines that ask.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use portcullis_config::{Diagnostics, Mode, Moment};
use portcullis_proxy::Address;
use portcullis_proxy::quarantine::{Health, Quarantine};
use portcullis_proxy::upstream::{Endpoint, Upstream};
use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use crate::build::{Built, BuiltPlugin, Scope};
use crate::dns::Discovered;
use crate::inputs::Inputs;
use crate::reload::Trigger;

/// What runs, and what became of the last attempt to change it. Times are seconds since 1970.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Number of the generation; counts up from 1 with every reload that was applied.
    pub generation: u64,
    /// Content hash of everything it was built from.
    pub version: Arc<str>,
    /// When the control plane started.
    pub started: u64,
    /// When this generation was applied.
    pub applied: u64,
    /// How long it took to build and apply, milliseconds.
    pub build_ms: u64,
    /// The configuration file.
    pub config: PathBuf,
    /// The policy directory, if there is one.
    pub policies: Option<PathBuf>,
    /// Listeners, in the order of the configuration.
    pub listeners: Vec<ListenerStatus>,
    /// Number of routes.
    pub routes: usize,
    /// Plugin instances: the gateway's with the policies, the listeners', the routes'.
    pub plugins: Vec<PluginStatus>,
    /// Upstreams, in the order of the configuration.
    pub upstreams: Vec<UpstreamStatus>,
    /// What is odd about what runs, though it works.
    pub warnings: Diagnostics,
    /// When the policy inputs that run were accepted, if this process has found only broken ones on disk so
    /// far and serves the last good ones instead.
    pub last_good: Option<u64>,
    /// Why what is on disk does not run; none if the last reload succeeded.
    pub last_error: Option<LastError>,
    /// Files whose content on disk is not what runs. Filled in by
    /// [`Control::status`](crate::Control::status) only, because it takes reading them all.
    pub drift: Vec<PathBuf>,
    /// What became of reloads since the start.
    pub reloads: ReloadCounts,
    #[serde(skip)]
    pub(crate) inputs: Arc<Inputs>,
}

/// A listener.
#[derive(Debug, Clone, Serialize)]
pub struct ListenerStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Its addresses.
    pub addresses: Vec<AddressStatus>,
    /// Whether it terminates TLS.
    pub tls: bool,
}

/// An address that is listened at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AddressStatus {
    /// As configured.
    #[serde(serialize_with = "as_text")]
    pub configured: Address,
    /// As it is: port 0 has become a real one.
    #[serde(serialize_with = "as_text")]
    pub actual: Address,
}

fn as_text<S: Serializer>(address: &Address, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(address)
}

/// A plugin instance.
#[derive(Debug, Clone, Serialize)]
pub struct PluginStatus {
    /// Its name, unique in the process.
    pub name: Arc<str>,
    /// Its kind.
    pub kind: &'static str,
    /// Content hash of its table and files.
    pub version: Arc<str>,
    /// `gateway`, `listener <name>` or `route <name>`.
    pub scope: String,
    /// The file that it runs or reads, if any.
    pub file: Option<PathBuf>,
    /// `enforce`, `shadow` or `off`.
    pub mode: Mode,
    /// When the mode becomes another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Moment>,
    /// Whether it is called, if it may be put into quarantine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<QuarantineStatus>,
}

/// A plugin that may be put into quarantine; how it is is read when it is asked for: `well`, `probing`, or `resting`
/// with the milliseconds that are left of its rest.
#[derive(Clone)]
pub struct QuarantineStatus(pub Quarantine);

impl QuarantineStatus {
    /// Whether the plugin is out.
    pub fn is_out(&self) -> bool {
        self.0.health() != Health::Well
    }
}

impl std::fmt::Debug for QuarantineStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.health().fmt(f)
    }
}

impl Serialize for QuarantineStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (state, left) = match self.0.health() {
            Health::Well => ("well", None),
            Health::Probing => ("probing", None),
            Health::Resting(left) => ("resting", u64::try_from(left.as_millis()).ok()),
        };
        let mut fields = serializer.serialize_struct("QuarantineStatus", 2)?;
        fields.serialize_field("state", state)?;
        fields.serialize_field("left_ms", &left)?;
        fields.end()
    }
}

/// An upstream.
#[derive(Debug, Clone, Serialize)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Whether requests are sent to it, if it has a breaker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit: Option<CircuitStatus>,
    /// How many requests may be under way now, if that is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitStatus>,
    /// What they speak: `http1`, `http2`, or `auto`: what they choose.
    pub protocol: &'static str,
    /// Its endpoints, in the order of the configuration.
    pub endpoints: Endpoints,
    /// Where they come from, if that is DNS.
    pub dns: Option<DnsStatus>,
}

/// The endpoints of an upstream, which may change; they are read when they are asked for.
#[derive(Debug, Clone)]
pub struct Endpoints(pub Arc<Upstream>);

impl Serialize for Endpoints {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.current().endpoints.iter().cloned().map(EndpointStatus))
    }
}

/// How DNS answers; read when it is asked for.
#[derive(Debug, Clone)]
pub struct DnsStatus(Arc<Discovered>);

impl Serialize for DnsStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (ttl, last_error) = self.0.outlook();
        let mut fields = serializer.serialize_struct("DnsStatus", 3)?;
        fields.serialize_field("name", self.0.name())?;
        fields.serialize_field("ttl_ms", &u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))?;
        fields.serialize_field("last_error", &last_error)?;
        fields.end()
    }
}

/// An upstream whose circuit may open; its state is read when it is asked for.
#[derive(Debug, Clone)]
pub struct CircuitStatus(pub Arc<Upstream>);

impl Serialize for CircuitStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.metrics.circuit.state().as_str())
    }
}

/// An upstream whose requests are limited; the limit is read when it is asked for.
#[derive(Debug, Clone)]
pub struct LimitStatus(pub Arc<Upstream>);

impl Serialize for LimitStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.limit().serialize(serializer)
    }
}

/// An endpoint; how it is is read when it is asked for.
#[derive(Debug, Clone)]
struct EndpointStatus(Arc<Endpoint>);

impl Serialize for EndpointStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let EndpointStatus(endpoint) = self;
        let mut fields = serializer.serialize_struct("EndpointStatus", 6)?;
        fields.serialize_field("address", &*endpoint.authority)?;
        fields.serialize_field("resolved", &endpoint.resolved())?;
        fields.serialize_field("state", endpoint.state().as_str())?;
        fields.serialize_field("in_flight", &endpoint.in_flight())?;
        fields.serialize_field("ejections", &endpoint.ejections())?;
        fields.serialize_field("last_error", &endpoint.trouble())?;
        fields.end()
    }
}

/// A reload that was refused.
#[derive(Debug, Clone, Serialize)]
pub struct LastError {
    /// When it was refused.
    pub at: u64,
    /// What had asked for it.
    pub trigger: Trigger,
    /// What is wrong.
    pub diagnostics: Diagnostics,
}

/// Reloads since the start; the first generation is not one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ReloadCounts {
    /// Put into effect.
    pub applied: u64,
    /// Refused because of errors.
    pub refused: u64,
    /// Asked for, but nothing had changed.
    pub unchanged: u64,
}

impl Status {
    /// The status of a generation that was just applied.
    pub(crate) fn new(config: &Path, built: &Built, addresses: &[(Address, Address)]) -> Self {
        let generation = &built.generation;
        let actual = |configured: &Address| {
            let found = addresses.iter().find(|(address, _)| address == configured);
            AddressStatus {
                configured: configured.clone(),
                actual: found.map_or(configured, |(_, actual)| actual).clone(),
            }
        };
        let listeners = generation.listeners.iter().map(|listener| ListenerStatus {
            name: listener.name.clone(),
            addresses: listener.bind.iter().map(actual).collect(),
            tls: listener.tls.is_some(),
        });
        let upstreams = built.upstreams.iter().map(|built| UpstreamStatus {
            name: built.upstream.name.clone(),
            circuit: built.upstream.breaker.map(|_| CircuitStatus(built.upstream.clone())),
            limit: built.upstream.limit().map(|_| LimitStatus(built.upstream.clone())),
            protocol: built.upstream.protocol.as_str(),
            endpoints: Endpoints(built.upstream.clone()),
            dns: built.discovered.clone().map(DnsStatus),
        });
        Status {
            generation: generation.number,
            version: generation.version.clone(),
            started: now(),
            applied: now(),
            build_ms: 0,
            config: config.to_owned(),
            policies: built.policies.clone(),
            listeners: listeners.collect(),
            routes: generation.routes.len(),
            plugins: built.plugins.iter().map(plugin).collect(),
            upstreams: upstreams.collect(),
            warnings: built.warnings.clone(),
            last_good: None,
            last_error: None,
            drift: Vec::new(),
            reloads: ReloadCounts::default(),
            inputs: Arc::new(built.inputs.clone()),
        }
    }
}

fn plugin(built: &BuiltPlugin) -> PluginStatus {
    PluginStatus {
        name: built.instance.name.clone(),
        kind: built.instance.kind,
        version: built.instance.version.clone(),
        scope: match &built.scope {
            Scope::Gateway => "gateway".to_owned(),
            Scope::Listener(name) => format!("listener {name}"),
            Scope::Route(name) => format!("route {name}"),
        },
        file: built.file().cloned(),
        mode: built.terms.mode,
        until: built.terms.until.map(Moment),
        quarantine: built.instance.quarantine.clone().map(QuarantineStatus),
    }
}

/// A time in seconds since 1970, as RFC 3339 writes it; none after the year 9999.
pub fn utc(seconds: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_told_by_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (13_569_465_600, "2400-01-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), expected);
        }
        let _ = utc(u64::MAX);
    }
}
