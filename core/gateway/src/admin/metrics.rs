//! The metrics page, in Prometheus' text format 0.0.4.
//!
//! One function per subject, each naming its families once; [`Page`] knows the format.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::time::Duration;

use portcullis_control::{PluginStatus, UpstreamStatus};
use portcullis_plugin::{CounterReading, GaugeReading, HookName};
use portcullis_proxy::metrics::{
    BUCKETS, Counter, GivenUp, Histogram, Metrics, PluginMetrics, Refused, SHARES, ShadowMetrics,
};
use portcullis_proxy::upstream::Endpoint;

use crate::process::Usage;

/// The page's media type.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Status classes, in the order of `RouteMetrics::responses`.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// What is known beside the data plane's counters.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// When the process was started, since 1970.
    pub(crate) started: Duration,
    pub(crate) usage: Usage,
    pub(crate) draining: bool,
    /// Lines dropped by target.
    pub(crate) logs_dropped: Vec<(String, u64)>,
    /// None before the first generation.
    pub(crate) control: Option<ControlFacts>,
}

/// What the control plane tells.
#[derive(Debug, Clone, Default)]
pub(crate) struct ControlFacts {
    pub(crate) generation: u64,
    /// Reloads by outcome.
    pub(crate) reloads: Vec<(&'static str, u64)>,
    pub(crate) refused: bool,
    /// Upstreams of the running generation.
    pub(crate) upstreams: Vec<UpstreamStatus>,
    /// Its plugins.
    pub(crate) plugins: Vec<PluginStatus>,
}

/// The whole page.
pub(crate) fn render(metrics: &Metrics, facts: &Facts) -> String {
    let mut page = Page::default();
    process(&mut page, facts);
    gateway(&mut page, facts);
    control(&mut page, facts);
    connections(&mut page, metrics);
    routes(&mut page, metrics);
    plugins(&mut page, metrics);
    budgets(&mut page, metrics);
    quarantines(&mut page, metrics, facts);
    shadows(&mut page, metrics);
    plugins_own(&mut page, metrics);
    store(&mut page, metrics);
    mirrors(&mut page, metrics);
    upstreams(&mut page, metrics);
    states(&mut page, facts);
    endpoints(&mut page, facts);
    page.text
}

/// What Prometheus' client libraries say of every process, by the names that they have for it.
fn process(page: &mut Page, facts: &Facts) {
    let usage = &facts.usage;
    page.named("process_cpu_seconds_total", "counter", "CPU time that the process took")
        .sample(&[], usage.cpu_seconds);
    page.named("process_start_time_seconds", "gauge", "when the process was started, since 1970")
        .sample(&[], facts.started.as_secs_f64());
    let numbers = [
        ("process_resident_memory_bytes", "memory in use by the process", usage.resident_bytes),
        ("process_virtual_memory_bytes", "addresses in use by the process", usage.virtual_bytes),
        ("process_open_fds", "open file descriptors", usage.open_files),
        ("process_max_fds", "file descriptors that may be open", usage.open_files_limit),
        ("process_threads", "threads of the process", usage.threads),
    ];
    for (name, help, number) in numbers {
        if let Some(number) = number {
            page.named(name, "gauge", help).sample(&[], number);
        }
    }
}

fn gateway(page: &mut Page, facts: &Facts) {
    page.gauge("build_info", "version of the gateway, as a label")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.gauge("draining", "1 while the gateway shuts down").sample(&[], u8::from(facts.draining));
    let mut dropped = page
        .counter("log_dropped_total", "log lines dropped because their target was too slow or refused them");
    for (log, count) in &facts.logs_dropped {
        dropped.sample(&[("log", log)], count);
    }
}

fn control(page: &mut Page, facts: &Facts) {
    let Some(control) = &facts.control else { return };
    page.gauge("generation", "number of the running generation").sample(&[], control.generation);
    page.gauge("reload_refused", "1 while the files on disk were refused and an older generation runs")
        .sample(&[], u8::from(control.refused));
    let mut reloads = page.counter("reloads_total", "reloads by outcome");
    for (outcome, count) in &control.reloads {
        reloads.sample(&[("outcome", outcome)], count);
    }
}

fn store(page: &mut Page, metrics: &Metrics) {
    let store = &metrics.store;
    page.gauge("store_up", "1 while the store that plugins share can be reached")
        .sample(&[], u8::from(store.is_up()));
    let mut requests = page.counter("store_requests_total", "operations of the store, by what came of them");
    for (operation, result, count) in store.requests() {
        requests.sample(&[("op", operation), ("result", result)], count);
    }
    page.histogram("store_duration_seconds", "how long operations of the store took")
        .histogram(&[], &store.duration);
}

fn connections(page: &mut Page, metrics: &Metrics) {
    page.counter("connections_total", "client connections accepted").value(&metrics.connections);
    page.gauge("connections_open", "client connections open now").value(&metrics.connections_open);
    let mut refused = page.counter(
        "connections_refused_total",
        "client connections closed at once, by the limit that they were over, or dropped by a plugin",
    );
    for ((_, reason), count) in Refused::ALL.iter().zip(&metrics.connections_refused) {
        refused.sample(&[("reason", reason)], count.value());
    }
    let mut given_up = page.counter(
        "clients_given_up_total",
        "connections, streams and uploads that the gateway ended because of what their client did or did not do",
    );
    for ((_, reason), count) in GivenUp::ALL.iter().zip(&metrics.given_up) {
        given_up.sample(&[("reason", reason)], count.value());
    }
    page.counter(
        "proxy_protocol_failures_total",
        "client connections closed for their PROXY header, or because they came from elsewhere than their proxies",
    )
    .value(&metrics.proxy_protocol_failures);
    page.counter("tls_handshake_failures_total", "TLS handshakes that failed")
        .value(&metrics.handshake_failures);
    page.gauge("exchanges_open", "exchanges under way").value(&metrics.exchanges_open);
    page.counter("exchanges_refused_total", "requests refused because of `limits.exchanges`")
        .value(&metrics.exchanges_refused);
    let mut refusals = page.counter(
        "refusals_total",
        "answers that the gateway itself gave in place of an upstream, by reason; those of plugins count as theirs",
    );
    for (reason, count) in metrics.refusals() {
        refusals.sample(&[("reason", reason)], count.value());
    }
    page.gauge("tunnels_open", "exchanges that have become tunnels: WebSockets and other upgrades")
        .value(&metrics.tunnels_open);
    page.gauge("whole_bodies_bytes", "bytes of bodies held in memory; `limits.whole_bodies` bounds them")
        .sample(&[], metrics.whole_bodies.used());
    page.counter(
        "on_log_skipped_total",
        "exchanges whose on_log hooks could not run because their queue was full",
    )
    .value(&metrics.logs_dropped);
}

fn routes(page: &mut Page, metrics: &Metrics) {
    let routes = metrics.routes();
    let mut responses = page.counter(
        "responses_total",
        "responses by route and status class; `none` ended without one, an empty route was not found",
    );
    for (route, counted) in &routes {
        for (class, count) in CLASSES.iter().zip(&counted.responses) {
            // With thousands of routes, those without traffic would be megabytes of zeros.
            if count.value() > 0 {
                responses.sample(&[("route", route), ("class", class)], count.value());
            }
        }
    }
    let mut durations =
        page.histogram("request_duration_seconds", "from a request's head to the end of its response");
    for (route, counted) in &routes {
        if has_observed(&counted.duration) {
            durations.histogram(&[("route", route)], &counted.duration);
        }
    }
}

fn has_observed(histogram: &Histogram) -> bool {
    histogram.value().buckets.iter().any(|count| *count > 0)
}

fn plugins(page: &mut Page, metrics: &Metrics) {
    let plugins = metrics.plugins();
    let mut durations = page.histogram("plugin_hook_duration_seconds", "time spent in a plugin's hook");
    for (plugin, counted) in &plugins {
        for (hook, spent) in HookName::ALL.iter().zip(&counted.hooks) {
            // A hook that a plugin does not have would be 25 lines of zeros.
            if has_observed(spent) {
                let labels = [("plugin", &**plugin), ("kind", counted.kind), ("hook", hook.as_str())];
                durations.histogram(&labels, spent);
            }
        }
    }
    let mut responses = page.counter("plugin_responses_total", "requests that a plugin answered itself");
    for (plugin, counted) in &plugins {
        responses.sample(&[("plugin", plugin), ("kind", counted.kind)], counted.responses.value());
    }
    let mut drops = page.counter("plugin_drops_total", "connections and requests that a plugin dropped");
    for (plugin, counted) in &plugins {
        drops.sample(&[("plugin", plugin), ("kind", counted.kind)], counted.drops.value());
    }
    let mut errors =
        page.counter("plugin_errors_total", "failures of a plugin itself; `budget` counts overrun budgets");
    for (plugin, counted) in &plugins {
        for ((_, error), count) in PluginMetrics::ERRORS.iter().zip(&counted.errors) {
            errors.sample(&[("plugin", plugin), ("kind", counted.kind), ("error", error)], count.value());
        }
    }
}

/// What sandboxes use of what they may.
fn budgets(page: &mut Page, metrics: &Metrics) {
    let plugins = metrics.plugins();
    let mut used = page.histogram(
        "plugin_budget_used_ratio",
        "how much of a budget each call of a script or module used: its operations, its CPU time, its memory",
    );
    for (plugin, counted) in &plugins {
        for value in counted.budgets.value() {
            let labels = [("plugin", &**plugin), ("kind", counted.kind), ("budget", value.budget)];
            used.buckets(&labels, &SHARES, &value.buckets, value.sum);
        }
    }
}

/// Plugins that keep failing.
fn quarantines(page: &mut Page, metrics: &Metrics, facts: &Facts) {
    let mut out = page.gauge("plugin_quarantined", "1 while a plugin is not called because it keeps failing");
    for plugin in facts.control.iter().flat_map(|control| &control.plugins) {
        if let Some(quarantine) = &plugin.quarantine {
            out.sample(&[("plugin", &plugin.name), ("kind", plugin.kind)], u8::from(quarantine.is_out()));
        }
    }
    let plugins = metrics.plugins();
    let mut counters = |name, help, pick: fn(&PluginMetrics) -> &Counter| {
        let mut family = page.counter(name, help);
        for (plugin, counted) in &plugins {
            family.sample(&[("plugin", plugin), ("kind", counted.kind)], pick(counted).value());
        }
    };
    counters("plugin_quarantines_total", "times that a plugin was put into quarantine", |plugin| {
        &plugin.quarantines
    });
    counters(
        "plugin_quarantine_skips_total",
        "calls that were not made because the plugin was in quarantine; `meanwhile` says what became of them",
        |plugin| &plugin.quarantined,
    );
}

/// What plugins in shadow would have done.
fn shadows(page: &mut Page, metrics: &Metrics) {
    let plugins = metrics.plugins();
    let mut verdicts = page.counter(
        "shadow_verdicts_total",
        "what plugins in shadow would have answered at their hooks; `change` for one that went on and changed something",
    );
    for (plugin, counted) in plugins.iter().filter(|(_, counted)| counted.shadow.has_seen()) {
        for (verdict, count) in ShadowMetrics::VERDICTS.iter().zip(&counted.shadow.verdicts) {
            verdicts
                .sample(&[("plugin", plugin), ("kind", counted.kind), ("verdict", verdict)], count.value());
        }
    }
}

/// What plugins count themselves: a family per kind and counter, with the lines of all its instances.
fn plugins_own(page: &mut Page, metrics: &Metrics) {
    let plugins = metrics.plugins();
    let mut families: BTreeMap<_, Vec<(&str, CounterReading)>> = BTreeMap::new();
    for (plugin, counted) in &plugins {
        for reading in counted.own.read() {
            families.entry((counted.kind, reading.name)).or_default().push((plugin, reading));
        }
    }
    for ((kind, name), readings) in families {
        let help = readings.first().map_or("", |(_, reading)| reading.help);
        let mut family = page.counter(format!("plugin_{kind}_{name}_total"), help);
        for (plugin, reading) in &readings {
            let own = reading.labels.iter().map(|(name, value)| (*name, &**value));
            family.sample(&[("plugin", *plugin)].into_iter().chain(own).collect::<Vec<_>>(), reading.value);
        }
    }
    let mut gauges: BTreeMap<_, Vec<(&str, GaugeReading)>> = BTreeMap::new();
    for (plugin, counted) in &plugins {
        for reading in counted.own.read_gauges() {
            gauges.entry((counted.kind, reading.name)).or_default().push((plugin, reading));
        }
    }
    for ((kind, name), readings) in gauges {
        let help = readings.first().map_or("", |(_, reading)| reading.help);
        let mut family = page.gauge(format!("plugin_{kind}_{name}"), help);
        for (plugin, reading) in &readings {
            let generation = reading.generation.to_string();
            family.sample(&[("plugin", plugin), ("generation", &generation)], reading.value);
        }
    }
    let mut overflow = page.counter(
        "plugin_series_overflow_total",
        "combinations of labels beyond what one plugin may have, asked for and counted as `other`",
    );
    for (plugin, counted) in plugins.iter().filter(|(_, counted)| !counted.own.read().is_empty()) {
        overflow.sample(&[("plugin", plugin), ("kind", counted.kind)], counted.own.overflow());
    }
}

fn upstreams(page: &mut Page, metrics: &Metrics) {
    let upstreams = metrics.upstreams();
    let mut durations = page.histogram("upstream_duration_seconds", "from an attempt to the response's head");
    for (upstream, counted) in &upstreams {
        durations.histogram(&[("upstream", upstream)], &counted.duration);
    }
    let mut attempts = page.counter("upstream_attempts_total", "requests sent to an upstream");
    for (upstream, counted) in &upstreams {
        attempts.sample(&[("upstream", upstream)], counted.attempts());
    }
    let mut counters = |name, help, pick: fn(&portcullis_proxy::metrics::UpstreamMetrics) -> &Counter| {
        let mut family = page.counter(name, help);
        for (upstream, counted) in &upstreams {
            family.sample(&[("upstream", upstream)], pick(counted).value());
        }
    };
    counters("upstream_connects_total", "connections opened to an upstream", |upstream| &upstream.connects);
    counters(
        "upstream_shared_connects_total",
        "connections to an upstream that requests share, which is HTTP/2",
        |upstream| &upstream.http2_connects,
    );
    counters("upstream_connect_failures_total", "connections that could not be opened", |upstream| {
        &upstream.connect_failures
    });
    counters("upstream_lookups_total", "answers of DNS about the endpoints of an upstream", |upstream| {
        &upstream.lookups
    });
    counters(
        "upstream_lookup_failures_total",
        "questions about the endpoints of an upstream that DNS did not answer, or with nothing",
        |upstream| &upstream.lookup_failures,
    );
    counters(
        "upstream_failures_total",
        "attempts that failed on an open connection, timeouts and responses that broke off included",
        |upstream| &upstream.failures,
    );
    counters(
        "upstream_stale_total",
        "attempts that met a connection which was closed already, and were made once more over a new one",
        |upstream| &upstream.stale,
    );
    counters("upstream_retries_total", "attempts after the first", |upstream| &upstream.retries);
    counters(
        "upstream_retry_budget_exhausted_total",
        "attempts that were not made because too many retries were under way",
        |upstream| &upstream.retries_refused,
    );
    counters("upstream_hedges_total", "attempts beside one that took long", |upstream| &upstream.hedges);
    counters("upstream_hedges_won_total", "attempts beside one that were answered first", |upstream| {
        &upstream.hedges_won
    });
    counters(
        "upstream_overloads_total",
        "requests refused because of `max_requests` or `adaptive`, and `max_pending`",
        |upstream| &upstream.overloads,
    );
    counters(
        "upstream_pending_timeouts_total",
        "requests refused because they waited too long",
        |upstream| &upstream.pending_timeouts,
    );
    counters("upstream_circuit_opens_total", "times that the circuit opened", |upstream| {
        &upstream.circuit_opens
    });
    counters("upstream_circuit_refusals_total", "requests refused because of an open circuit", |upstream| {
        &upstream.circuit_refusals
    });
    let mut calls =
        page.counter("grpc_responses_total", "calls of gRPC by how an upstream said that they ended");
    for (upstream, counted) in &upstreams {
        for (code, count) in counted.calls() {
            calls.sample(&[("upstream", upstream), ("code", code)], count);
        }
    }
    let mut in_flight = page.gauge("upstream_in_flight", "requests under way to an upstream");
    for (upstream, counted) in &upstreams {
        in_flight.sample(&[("upstream", upstream)], counted.in_flight.value());
    }
    let mut pending = page.gauge("upstream_pending", "requests that wait for others to end");
    for (upstream, counted) in &upstreams {
        pending.sample(&[("upstream", upstream)], counted.slots.pending());
    }
}

/// The circuits and limits of the running generation.
fn states(page: &mut Page, facts: &Facts) {
    let upstreams = || facts.control.iter().flat_map(|control| &control.upstreams);
    let mut circuits =
        page.gauge("upstream_circuit", "0 if the circuit is closed, 1 if half open, 2 if open");
    for (name, of) in upstreams().filter_map(|upstream| Some((&upstream.name, upstream.circuit.as_ref()?))) {
        circuits.sample(&[("upstream", name)], of.0.metrics.circuit.state() as u8);
    }
    let mut limits = page.gauge("upstream_limit", "requests that may be under way to an upstream now");
    for (name, of) in upstreams().filter_map(|upstream| Some((&upstream.name, upstream.limit.as_ref()?))) {
        limits.sample(&[("upstream", name)], of.0.limit().unwrap_or_default());
    }
}

fn mirrors(page: &mut Page, metrics: &Metrics) {
    let mirrors = metrics.mirrors();
    let mut sent = page.counter("mirrored_total", "copies of a route's requests that were sent");
    for (route, counted) in &mirrors {
        sent.sample(&[("route", route)], counted.sent.value());
    }
    let mut skipped = page.counter(
        "mirror_skipped_total",
        "requests that were not copied: too many copies were under way or the upstream takes none (`busy`), the body was too long or broke off, or DNS has not told yet where the upstream is (`no_endpoints`)",
    );
    for (route, counted) in &mirrors {
        let reasons = [
            ("busy", &counted.busy),
            ("too_long", &counted.too_long),
            ("no_endpoints", &counted.nowhere),
            ("broken_off", &counted.broken_off),
        ];
        for (reason, count) in reasons {
            skipped.sample(&[("route", route), ("reason", reason)], count.value());
        }
    }
    let mut under_way = page.gauge("mirrors_in_flight", "copies of a route's requests under way");
    for (route, counted) in &mirrors {
        under_way.sample(&[("route", route)], counted.under_way());
    }
}

/// The endpoints of the running generation.
fn endpoints(page: &mut Page, facts: &Facts) {
    let upstreams = facts.control.iter().flat_map(|control| &control.upstreams);
    let endpoints: Vec<_> = upstreams
        .flat_map(|upstream| {
            let endpoints = upstream.endpoints.0.current().endpoints.clone();
            endpoints.into_iter().map(|endpoint| (&*upstream.name, endpoint))
        })
        .collect();
    let each = |mut family: Family<'_>, value: fn(&Endpoint) -> u64| {
        for (upstream, endpoint) in &endpoints {
            family.sample(&[("upstream", upstream), ("endpoint", &endpoint.authority)], value(endpoint));
        }
    };
    each(page.gauge("endpoint_healthy", "1 if the endpoint is neither ejected nor unhealthy"), |endpoint| {
        endpoint.state().is_healthy().into()
    });
    each(
        page.counter("endpoint_ejections_total", "times that requests showed that the endpoint fails"),
        Endpoint::ejections,
    );
    each(page.gauge("endpoint_in_flight", "requests under way to the endpoint"), Endpoint::in_flight);
}

#[derive(Default)]
struct Page {
    text: String,
}

/// A metric's name, under which its samples are added.
struct Family<'p> {
    page: &'p mut Page,
    name: String,
}

impl Page {
    fn counter(&mut self, name: impl Display, help: &str) -> Family<'_> {
        self.family(name, "counter", help)
    }

    fn gauge(&mut self, name: impl Display, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    fn histogram(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "histogram", help)
    }

    fn family(&mut self, name: impl Display, kind: &str, help: &str) -> Family<'_> {
        self.named(format!("portcullis_{name}"), kind, help)
    }

    /// A family whose name is not the gateway's own.
    fn named(&mut self, name: impl Into<String>, kind: &str, help: &str) -> Family<'_> {
        let name = name.into();
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
        Family { page: self, name }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{line}");
    }
}

impl Family<'_> {
    fn value(&mut self, counter: &Counter) {
        self.sample(&[], counter.value());
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, value);
    }

    fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let value = histogram.value();
        self.buckets(labels, &BUCKETS, &value.buckets, value.sum);
    }

    /// Buckets are counted apart and shown cumulated.
    fn buckets(&mut self, labels: &[(&str, &str)], bounds: &[f64], buckets: &[u64], sum: f64) {
        let mut count = 0;
        let bounds = bounds.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
        for (bound, observed) in bounds.zip(buckets) {
            count += observed;
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.line("_bucket", &labels, count);
        }
        self.line("_sum", labels, sum);
        self.line("_count", labels, count);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let name = &self.name;
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        match labels.as_slice() {
            [] => self.page.line(format_args!("{name}{suffix} {value}")),
            labels => self.page.line(format_args!("{name}{suffix}{{{}}} {value}", labels.join(","))),
        }
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests;
