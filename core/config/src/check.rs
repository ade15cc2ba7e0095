//! What no single value shows: names used twice, references to nothing, contradictions.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use crate::config::{
    Action, Admin, ChainEntry, Config, Listener, Match, Rewrite, Route, TlsPolicy, TlsVersion,
};
use crate::error::{NodeError, is_misspelt, suggestion};
use crate::listen::ListenAddress;
use crate::node::{Node, join};
use crate::resilience::Deadline;
use crate::store::Store;
use crate::traffic::{Arm, Split, SplitBy, Target, When};
use crate::upstreams::{
    Balance, Dns, Endpoint, EndpointAddress, Health, HttpVersion, Scheme, Sticky, Upstream,
};
use crate::values::Duration;

/// What fits into the map that headers are kept in, with room for those that plugins add.
const HEADER_COUNT: RangeInclusive<u64> = 1..=10_000;
/// A head of less could hardly name its host; more is a body.
const HEADER_BYTES: RangeInclusive<u64> = 512..=16 << 20;
/// Headers that frame a message, or say where it goes or who sends it: not for times.
const TAKEN_HEADERS: [&str; 15] = [
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
];
/// Headers that a check sets itself.
const CHECK_HEADERS: [&str; 8] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];
/// Seconds that the system can count (Linux' `MAX_TCP_KEEPIDLE`).
const KEEPALIVE: RangeInclusive<u64> = 1..=32_767;
/// A key of less can be tried out (RFC 2104, 3).
const MIN_STICKY_KEY: usize = 16;
/// All streams together may hold a window each, and that is bounded (RFC 9113, 6.9.1).
const STREAMS: RangeInclusive<u64> = 1..=8_000;

/// Errors and warnings about a configuration. What could not be read is not missed: it has its error already.
pub(crate) fn check(config: &Config, root: &Node) -> (Vec<NodeError>, Vec<NodeError>) {
    let mut check = Check { root, errors: Vec::new(), warnings: Vec::new() };
    check.workers(config);
    check.store(config);
    check.listeners(config);
    check.chains(config);
    check.routes(config);
    for upstream in &config.upstreams {
        check.upstream(&join("upstreams", &upstream.name), upstream, config);
    }
    check.cookies(config);
    check.unused_upstreams(config);
    (check.errors, check.warnings)
}

struct Check<'c> {
    root: &'c Node,
    errors: Vec<NodeError>,
    warnings: Vec<NodeError>,
}

/// Finer shares than any rollout needs; all together fit into a number.
const MAX_WEIGHT: u32 = 1_000_000;
/// More workers than any machine has cores.
const MAX_WORKERS: u32 = 1024;

impl Check<'_> {
    fn workers(&mut self, config: &Config) {
        if config.workers.is_some_and(|workers| workers.get() > MAX_WORKERS) {
            self.error(
                "workers",
                &format!("more than {MAX_WORKERS} workers"),
                Some("one for each core is best"),
            );
        }
    }

    fn store(&mut self, config: &Config) {
        let Store::Redis(store) = &config.store else { return };
        let redis = &store.redis;
        if redis.urls.is_empty() {
            self.error("store.redis.urls", "at least one URL is needed", None);
        }
        if redis.cluster && redis.sentinel.is_some() {
            let help = "a cluster sees by itself who is a primary";
            self.error("store.redis.sentinel", "a cluster has no sentinels", Some(help));
        }
        let is_single = !redis.cluster && redis.sentinel.is_none();
        if is_single && redis.urls.len() > 1 {
            let help = "say `cluster: true`, or name the primary with `sentinel`";
            self.error("store.redis.urls", "several servers are a cluster, or sentinels", Some(help));
        }
        let mut urls = redis.urls.iter();
        if let Some(first) = urls.next()
            && urls.any(|url| (url.tls, url.database) != (first.tls, first.database))
        {
            self.error("store.redis.urls", "these differ in more than the server", None);
        }
        if redis.cluster && redis.urls.iter().any(|url| url.database > 0) {
            self.error("store.redis.urls", "a cluster has no databases", None);
        }
        if redis.ca.is_some() && redis.urls.iter().all(|url| !url.tls) {
            self.error("store.redis.ca", "nothing of it is TLS", Some("TLS is `rediss://`"));
        }
    }

    fn listeners(&mut self, config: &Config) {
        if self.says_nothing("listeners") {
            self.error(
                "listeners",
                "at least one listener is needed",
                Some("`listeners: [{ bind: 0.0.0.0:8080 }]`"),
            );
        }
        let names = config.listeners.iter().enumerate();
        self.unique(
            names.map(|(index, listener)| (format!("listeners[{index}].name"), listener.name.as_str())),
        );
        self.addresses(config);
        for (index, listener) in config.listeners.iter().enumerate() {
            self.listener(&format!("listeners[{index}]"), listener);
        }
    }

    fn listener(&mut self, path: &str, listener: &Listener) {
        let has_socket = listener.bind.iter().any(|address| matches!(address, ListenAddress::Unix(_)));
        if listener.socket_mode.is_some() && !has_socket {
            self.error(&format!("{path}.socket_mode"), "it is for Unix sockets, and there is none", None);
        }
        let limits = &listener.limits;
        for (key, value, range) in [
            ("limits.header_count", u64::from(limits.header_count.get()), HEADER_COUNT),
            ("http2.max_streams", u64::from(listener.http2.max_streams.get()), STREAMS),
        ] {
            if !range.contains(&value) {
                let message = format!("`{value}` is not between {} and {}", range.start(), range.end());
                self.error(&format!("{path}.{key}"), &message, None);
            }
        }
        if !HEADER_BYTES.contains(&limits.header_bytes.0) {
            let message = format!("`{}` is not between 512B and 16MiB", limits.header_bytes);
            self.error(&format!("{path}.limits.header_bytes"), &message, None);
        }
        self.keepalive(&format!("{path}.limits.tcp_keepalive"), limits.tcp_keepalive);
        if listener.proxy_protocol.as_ref().is_some_and(|proxies| proxies.from.is_empty()) {
            let message = "without a proxy nobody could connect";
            self.error(&format!("{path}.proxy_protocol.from"), message, None);
        }
        let Some(tls) = &listener.tls else { return };
        let explicit = self.root.at(&format!("{path}.tls.min_version"));
        if explicit.is_some() && (tls.policy, tls.min_version) == (TlsPolicy::Modern, TlsVersion::V1_2) {
            let message = "`policy: modern` accepts TLS 1.3 only";
            let warning = self.at(&format!("{path}.tls.min_version"), message);
            self.warnings.push(warning.with_help("`policy: intermediate` accepts TLS 1.2"));
        }
        if listener.redirect_https.is_some() {
            let message = "a listener with TLS would redirect to itself";
            self.error(
                &format!("{path}.redirect_https"),
                message,
                Some("redirect from a plain-text listener"),
            );
        }
        if tls.certificates.is_empty() {
            self.error(&format!("{path}.tls.certificates"), "at least one certificate is needed", None);
        }
        if tls.alpn.is_empty() {
            self.error(&format!("{path}.tls.alpn"), "at least one protocol is needed", None);
        }
    }

    /// Port 0 is a fresh port each time, so it cannot be taken; but only its address tells which it is.
    fn addresses(&mut self, config: &Config) {
        let mut users = HashMap::new();
        if let Admin::On(admin) = config.admin
            && admin.bind.0.port() != 0
        {
            users.insert(ListenAddress::Tcp(admin.bind.0), "the admin interface".to_owned());
        }
        for (index, listener) in config.listeners.iter().enumerate() {
            for (position, address) in listener.bind.iter().enumerate() {
                if let Some(user) = users.get(address) {
                    let path = format!("listeners[{index}].bind[{position}]");
                    let is_any = matches!(address, ListenAddress::Tcp(address) if address.port() == 0);
                    let help = is_any.then_some("two of them need ports that are named");
                    self.error(&path, &format!("{address} is already used by {user}"), help);
                }
                users.entry(address.clone()).or_insert_with(|| format!("listener `{}`", listener.name));
            }
        }
    }

    fn chains(&mut self, config: &Config) {
        self.chain("plugins", &config.plugins);
        for (index, listener) in config.listeners.iter().enumerate() {
            self.chain(&format!("listeners[{index}].plugins"), &listener.plugins);
        }
        for (index, route) in config.routes.iter().enumerate() {
            self.chain(&format!("routes[{index}].plugins"), &route.plugins);
        }
        let placed = config.plugins.iter().position(|entry| matches!(entry, ChainEntry::Policies(_)));
        if let Some(position) = placed.filter(|_| self.says_nothing("policies")) {
            let help = "name it: `policies: { dir: policies }`";
            self.error(&format!("plugins[{position}]"), "there is no policy directory", Some(help));
        }
    }

    /// State belongs to kind and name, so two plugins of one list must not share both.
    fn chain(&mut self, path: &str, chain: &[ChainEntry]) {
        let mut seen = Vec::new();
        for (index, entry) in chain.iter().enumerate() {
            let (kind, name) = match entry {
                ChainEntry::Policies(_) => ("policies", None),
                ChainEntry::Plugin(plugin) => (plugin.kind.as_str(), plugin.options.name.as_deref()),
                ChainEntry::Unread => continue,
            };
            if seen.contains(&(kind, name.unwrap_or(kind))) {
                let path = format!("{path}[{index}]");
                match (entry, name) {
                    (ChainEntry::Policies(_), _) => self.error(&path, "`policies` stands here twice", None),
                    (_, Some(name)) => self.error(&path, &format!("a second `{kind}` named `{name}`"), None),
                    (_, None) => {
                        let help = format!("tell them apart: `- {{ name: ..., {kind}: ... }}`");
                        self.error(&path, &format!("a second `{kind}` without a name"), Some(&help));
                    }
                }
            }
            seen.push((kind, name.unwrap_or(kind)));
        }
    }

    fn routes(&mut self, config: &Config) {
        let names = config.routes.iter().enumerate();
        self.unique(names.map(|(index, route)| (format!("routes[{index}].name"), route.name.as_str())));
        let mut matches: HashMap<String, &str> = HashMap::new();
        for (index, route) in config.routes.iter().enumerate() {
            let path = format!("routes[{index}]");
            self.route(&path, route, config);
            if !route.whole {
                continue;
            }
            let canonical = canonical(&route.matches);
            if let Some(first) = matches.get(&canonical) {
                let message = format!("never reached: route `{first}` has the same match");
                self.error(&format!("{path}.match"), &message, None);
            }
            matches.entry(canonical).or_insert(&route.name);
        }
    }

    fn route(&mut self, path: &str, route: &Route, config: &Config) {
        if route.matches.path.is_some() && route.matches.prefix.is_some() {
            let help = "`path: /static/**` matches both";
            self.error(&format!("{path}.match.prefix"), "a match has either `path` or `prefix`", Some(help));
        }
        let rewrite = &route.rewrite;
        if rewrite.path.is_some() && (rewrite.strip_prefix.is_some() || rewrite.add_prefix.is_some()) {
            let message = "a rewrite has either `path`, or `strip_prefix` and `add_prefix`";
            self.error(&format!("{path}.rewrite.path"), message, None);
        }
        if rewrite.path.as_ref().is_some_and(|template| template.as_str().ends_with("/**")) {
            let help = "give the rest a name, here and in `match.path`: `/{rest**}`";
            self.error(&format!("{path}.rewrite.path"), "nothing says what `**` stands for", Some(help));
        }
        if *rewrite != Rewrite::default() && route.whole && !matches!(route.action, Action::Upstream(_)) {
            self.error(&format!("{path}.rewrite"), "only what is sent to an upstream can be rewritten", None);
        }
        if !route.upgrades.is_empty() && route.whole && !matches!(route.action, Action::Upstream(_)) {
            let message = "only an upstream can speak something else";
            self.error(&format!("{path}.upgrades"), message, None);
        }
        if route.timeout.is_some() && route.whole && !matches!(route.action, Action::Upstream(_)) {
            let message = "only what is sent to an upstream takes time";
            self.error(&format!("{path}.timeout"), message, None);
        }
        match &route.action {
            Action::Upstream(target) => {
                for (place, name) in target.upstreams() {
                    self.upstream_exists(&format!("{path}.{place}"), name, config);
                }
                if let Target::Split(split) = target {
                    self.split(&format!("{path}.upstream.split"), split);
                }
            }
            Action::Respond(respond) if respond.body.is_some() && respond.json.is_some() => {
                self.error(&format!("{path}.respond.json"), "a response has either `body` or `json`", None);
            }
            _ => {}
        }
        if let Some(mirror) = &route.mirror {
            self.upstream_exists(&format!("{path}.mirror.upstream"), &mirror.upstream, config);
            if route.whole && !matches!(route.action, Action::Upstream(_)) {
                let message = "only what is sent to an upstream can be copied";
                self.error(&format!("{path}.mirror"), message, None);
            }
            if matches!(&route.action, Action::Upstream(Target::Upstream(name)) if *name == mirror.upstream) {
                let message = "the copy would go where the request goes";
                self.error(&format!("{path}.mirror.upstream"), message, None);
            }
        }
    }

    fn split(&mut self, path: &str, split: &Split) {
        if split.split.is_empty() {
            return self.error(path, "at least one upstream is needed", None);
        }
        for (index, arm) in split.split.iter().enumerate() {
            let path = format!("{path}[{index}]");
            match arm {
                Arm { weight: Some(_), when: Some(_), .. } => {
                    self.error(&format!("{path}.weight"), "an upstream has either `when` or `weight`", None);
                }
                Arm { weight: Some(weight), .. } if *weight > MAX_WEIGHT => {
                    self.error(&format!("{path}.weight"), &format!("more than {MAX_WEIGHT}"), None);
                }
                Arm { when: Some(when), .. } if *when == When::default() => {
                    let help = "name `headers`, `principals` or `roles`, or leave `when` out";
                    self.error(&format!("{path}.when"), "this fits every request", Some(help));
                }
                _ => {}
            }
        }
        if split.split.iter().all(|arm| arm.share() == 0) {
            let message = "no upstream takes requests that fit no `when`";
            self.error(path, message, Some("add one without `when`"));
        }
    }

    fn upstream_exists(&mut self, path: &str, name: &str, config: &Config) {
        let unread = config.upstreams.is_empty() && !self.says_nothing("upstreams");
        let known = config.upstreams.iter().map(|upstream| upstream.name.as_str());
        if !unread && !known.clone().any(|known| known == name) {
            let help = suggestion(name, known, "known upstreams");
            self.error(path, &format!("there is no upstream `{name}`"), help.as_deref());
        }
    }

    fn upstream(&mut self, path: &str, upstream: &Upstream, config: &Config) {
        self.endpoints(path, upstream);
        self.zones(path, upstream, config);
        self.keepalive(&format!("{path}.tcp_keepalive"), upstream.tcp_keepalive);
        self.limits(path, upstream);
        if let Some(deadline) = &upstream.deadline {
            self.deadline(&format!("{path}.deadline"), deadline, config);
        }
        if let Some(health) = &upstream.health {
            self.health(&format!("{path}.health"), health, upstream);
        }
        if let Balance::Sticky(Sticky { key: Some(key), .. }) = &upstream.balance
            && key.len() < MIN_STICKY_KEY
        {
            let message = format!("a key has {MIN_STICKY_KEY} characters or more");
            self.error(
                &format!("{path}.balance.sticky.key"),
                &message,
                Some("`openssl rand -hex 16` makes one"),
            );
        }
        if upstream.proxy_protocol.is_some() && upstream.protocol != HttpVersion::Http1 {
            let message =
                "clients share the connections of HTTP/2, so endpoints can't be told whose they are";
            self.error(&format!("{path}.proxy_protocol"), message, Some("`protocol: http1`"));
        }
        if let Some(dns) = &upstream.dns {
            self.dns(path, upstream, dns);
        }
        self.tls(path, upstream);
    }

    /// What is known of an endpoint belongs to its address, so there is one of each; more turns are a weight.
    fn endpoints(&mut self, path: &str, upstream: &Upstream) {
        let mut seen = HashSet::new();
        for (index, endpoint) in upstream.endpoints.iter().enumerate() {
            let address = match &endpoint.address {
                EndpointAddress::Tcp { host, port, .. } => (host.as_str().into(), Some(port)),
                EndpointAddress::Unix(path) => (path.to_string_lossy(), None),
            };
            if !seen.insert(address) {
                let path = format!("{path}.endpoints[{index}]");
                let help = "for a larger share: `{ url: ..., weight: 2 }`";
                self.error(&path, "this endpoint stands here twice", Some(help));
            }
        }
    }

    /// Which zone is near is a matter of where the gateway is.
    fn zones(&mut self, path: &str, upstream: &Upstream, config: &Config) {
        let placed = upstream.endpoints.iter().position(|endpoint| endpoint.zone.is_some());
        if let Some(index) = placed.filter(|_| config.zone.is_none()) {
            let help = "`zone: ${ZONE}` at the top of the file";
            let path = format!("{path}.endpoints[{index}].zone");
            self.error(&path, "the gateway does not know in which zone it is itself", Some(help));
        }
    }

    /// What would do nothing is a mistake, and so is what a single failure, or none, would set off.
    fn limits(&mut self, path: &str, upstream: &Upstream) {
        let is_limited = upstream.max_requests.is_some() || upstream.adaptive.is_some();
        if upstream.max_pending > 0 && !is_limited {
            let message = "nothing waits without `max_requests` or `adaptive`";
            self.error(&format!("{path}.max_pending"), message, None);
        }
        let rates = [
            ("eject", upstream.eject.error_rate),
            ("breaker", upstream.breaker.as_ref().map(|breaker| breaker.error_rate)),
        ];
        for (key, _) in rates.iter().filter(|(_, rate)| rate.is_some_and(|rate| rate.0 == 0)) {
            let help = "leave it out where failures are not to count";
            self.error(&format!("{path}.{key}.error_rate"), "`0%` is reached without a failure", Some(help));
        }
    }

    fn deadline(&mut self, path: &str, deadline: &Deadline, config: &Config) {
        if *deadline == Deadline::default() {
            self.error(path, "expected `read`, `tell` or both", None);
        }
        for (key, name) in [("read", &deadline.read), ("tell", &deadline.tell)] {
            if let Some(name) = name.as_ref().filter(|name| TAKEN_HEADERS.contains(&name.as_str())) {
                self.error(&format!("{path}.{key}"), &format!("`{name}` has a meaning already"), None);
            }
        }
        if deadline.read.is_some() && config.trusted_proxies.is_empty() && !self.is_said("trusted_proxies") {
            let message = "nobody is trusted to say it, so it is taken out of every request";
            let warning = self.at(&format!("{path}.read"), message);
            self.warnings.push(warning.with_help("`trusted_proxies: [10.0.0.0/8]` names who is"));
        }
    }

    fn keepalive(&mut self, path: &str, after: Option<Duration>) {
        if after.is_some_and(|after| !KEEPALIVE.contains(&after.0.as_secs())) {
            let message = format!("not between {}s and {}s", KEEPALIVE.start(), KEEPALIVE.end());
            self.error(path, &message, None);
        }
    }

    fn health(&mut self, path: &str, health: &Health, upstream: &Upstream) {
        if health.grpc.is_some() && health.path.is_some() {
            let message = "a check asks for a path or for a gRPC service, not for both";
            self.error(&format!("{path}.grpc"), message, None);
        }
        if health.path.is_none() && self.is_said(&format!("{path}.status")) {
            let help = "`path: /healthz` names what is to be asked for";
            self.error(&format!("{path}.status"), "without `path` no status is seen", Some(help));
        }
        let asks = health.path.is_some() || health.grpc.is_some();
        for key in ["host", "headers"] {
            let key = format!("{path}.{key}");
            if !asks && self.is_said(&key) {
                self.error(&key, "without `path` or `grpc` nothing is sent", None);
            }
        }
        for (name, value) in &health.headers {
            let key = format!("{path}.headers.{name}");
            if CHECK_HEADERS.contains(&name.as_str()) {
                let help = (name.as_str() == "host").then_some("`health.host` names it");
                self.error(&key, "a check sets this header itself", help);
            } else if value.chars().any(|c| c.is_control() || !c.is_ascii()) {
                self.error(&key, "this cannot be sent as a header", None);
            }
        }
        let has_socket = |endpoint: &Endpoint| matches!(endpoint.address, EndpointAddress::Unix(_));
        if health.port.is_some() && upstream.endpoints.iter().any(has_socket) {
            self.error(&format!("{path}.port"), "a Unix socket has no port", None);
        }
        if health.grpc.is_some() && upstream.protocol == HttpVersion::Http1 {
            let message = "gRPC is spoken over HTTP/2, and this upstream speaks HTTP/1.1";
            self.error(&format!("{path}.grpc"), message, Some("`protocol: http2`"));
        }
    }

    fn tls(&mut self, path: &str, upstream: &Upstream) {
        let has = |wanted: Scheme| {
            upstream.endpoints.iter().any(|endpoint| {
                matches!(endpoint.address, EndpointAddress::Tcp { scheme, .. } if scheme == wanted)
            })
        };
        if has(Scheme::Https) && has(Scheme::Http) {
            let message = "some of the endpoints get requests in the clear";
            let warning = self.at(&format!("{path}.endpoints"), message);
            self.warnings.push(warning.with_help("write `https://` for all of them, or make two upstreams"));
        }
        let by_dns = upstream.dns.as_ref().is_some_and(|dns| dns.scheme == Scheme::Https);
        let Some(tls) = &upstream.tls else { return };
        if !by_dns && !has(Scheme::Https) {
            let help = "write `https://` where an endpoint speaks TLS";
            self.error(&format!("{path}.tls"), "no endpoint of this upstream speaks TLS", Some(help));
        }
        if !tls.verify {
            let message = "any server is believed to be the right one, whatever it shows";
            let warning = self.at(&format!("{path}.tls.verify"), message);
            let help = "`ca` names who signs its certificate, `server_name` whom that is for";
            self.warnings.push(warning.with_help(help));
        }
    }

    /// Cookies are for a whole site, so two that are set under one name overwrite each other.
    fn cookies(&mut self, config: &Config) {
        let upstreams = config.upstreams.iter().filter_map(|upstream| match &upstream.balance {
            Balance::Sticky(sticky) => {
                Some((format!("{}.balance.sticky.cookie", join("upstreams", &upstream.name)), &sticky.cookie))
            }
            _ => None,
        });
        let routes = config.routes.iter().enumerate().filter_map(|(index, route)| match &route.action {
            Action::Upstream(Target::Split(Split { by: SplitBy::Sticky { cookie }, .. })) => {
                Some((format!("routes[{index}].upstream.by.sticky.cookie"), cookie))
            }
            _ => None,
        });
        let mut seen = HashSet::new();
        for (path, cookie) in upstreams.chain(routes) {
            if !seen.insert(cookie) {
                let message = format!("the cookie `{cookie}` is set for something else already");
                self.error(&path, &message, None);
            }
        }
    }

    fn dns(&mut self, path: &str, upstream: &Upstream, dns: &Dns) {
        let path_of = |key: &str| format!("{path}.dns.{key}");
        if self.root.at(&format!("{path}.endpoints")).is_some() {
            let message = "an upstream has either `endpoints` or `dns`";
            self.error(&format!("{path}.dns"), message, None);
        }
        match (&dns.host, &dns.srv) {
            (None, None) if !self.is_said(&path_of("host")) && !self.is_said(&path_of("srv")) => {
                self.error(&format!("{path}.dns"), "`dns` needs a name to ask for: `host` or `srv`", None);
            }
            (Some(_), Some(_)) => {
                self.error(&path_of("srv"), "`dns` asks for either `host` or `srv`", None);
            }
            (_, Some(_)) if dns.port.is_some() => {
                self.error(&path_of("port"), "SRV records say the port", None);
            }
            _ => {}
        }
        // Whoever answers for the records could name a host of their own, and show its certificate.
        let has_name = upstream.tls.as_ref().is_some_and(|tls| tls.server_name.is_some());
        if dns.srv.is_some() && dns.scheme == Scheme::Https && !has_name {
            let help = "`tls: { server_name: api.example.com }` says whom they are for";
            let message = "SRV records do not say whom certificates must be for";
            self.error(&path_of("scheme"), message, Some(help));
        }
        if dns.min_ttl.0 > dns.max_ttl.0 {
            self.error(&path_of("min_ttl"), "is longer than `max_ttl`", None);
        }
    }

    fn is_said(&self, path: &str) -> bool {
        self.root.at(path).is_some()
    }

    /// Plugins may send requests to an upstream too, which cannot be seen here; so only a warning, and only
    /// where no plugin is configured.
    fn unused_upstreams(&mut self, config: &Config) {
        let chains = config.routes.iter().map(|route| &route.plugins);
        let chains = chains.chain(config.listeners.iter().map(|listener| &listener.plugins));
        if config.policies.is_some()
            || !config.plugins.is_empty()
            || chains.into_iter().any(|c| !c.is_empty())
        {
            return;
        }
        for upstream in &config.upstreams {
            let used = |route: &Route| {
                let copied = route.mirror.as_ref().is_some_and(|mirror| mirror.upstream == upstream.name);
                let sent = matches!(&route.action, Action::Upstream(target)
                    if target.upstreams().iter().any(|(_, name)| *name == upstream.name));
                copied || sent
            };
            if !config.routes.iter().any(used) {
                let path = join("upstreams", &upstream.name);
                let message = format!("no route uses upstream `{}`", upstream.name);
                self.warnings.push(self.at(&path, &message));
            }
        }
    }

    /// Whether a key of the file is missing, or has neither items nor entries nor anything else.
    fn says_nothing(&self, key: &str) -> bool {
        if is_misspelt(key, self.root) {
            return false;
        }
        self.root.child(key).is_none_or(|node| {
            let items = node.items().map(<[Node]>::len).or(node.entries().map(<[_]>::len));
            node.is_null() || items == Some(0)
        })
    }

    fn unique<'n>(&mut self, names: impl Iterator<Item = (String, &'n str)>) {
        let mut seen = HashSet::new();
        for (path, name) in names {
            if name.is_empty() {
                self.error(&path, "a name is needed", None);
            } else if !seen.insert(name) {
                self.error(&path, &format!("the name `{name}` is taken"), None);
            }
        }
    }

    fn error(&mut self, path: &str, message: &str, help: Option<&str>) {
        let error = self.at(path, message);
        self.errors.push(match help {
            Some(help) => error.with_help(help),
            None => error,
        });
    }

    fn at(&self, path: &str, message: &str) -> NodeError {
        let message = self.root.redact(message.to_owned());
        NodeError::new(self.root.locate(path), path, message)
    }
}

/// A text that is equal for matches that take the same requests.
fn canonical(matches: &Match) -> String {
    let mut matches = matches.clone();
    matches.hosts.sort();
    matches.hosts.dedup();
    matches.methods.sort();
    matches.methods.dedup();
    let path = matches.path.take().map(|path| path.shape());
    format!("{path:?} {matches:?}")
}
