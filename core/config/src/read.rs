//! The tree of a configuration file into its types, section by section, so that one mistake hides no other.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::config::{
    Action, Admin, ChainEntry, Config, InstanceOptions, Listener, Match, PluginEntry, RedirectHttps, Respond,
    Rewrite, Route, SideFile,
};
use crate::diagnostics::Span;
use crate::error::{NodeError, is_misspelt, nearest};
use crate::listen::ListenAddress;
use crate::node::{Key, Node, Value, join};
use crate::store::{Redis, Store, StoreFile, StoreRedis};
use crate::traffic::Target;
use crate::upstreams::{Eject, Endpoint, Retries, Upstream};
use crate::values::{Duration, Percent, positive};

/// Keys of a plugin entry that are not its kind: [`InstanceOptions`].
pub const INSTANCE_OPTIONS: [&str; 6] = ["name", "on_error", "timeout", "mode", "percent", "until"];

/// Reads the whole file. Every error is added to `errors`. What could not be read is left out or at its default,
/// but listeners, routes and plugins with errors keep their places, so that paths stay true.
pub(crate) fn config(root: &Node, errors: &mut Vec<NodeError>) -> Config {
    let default = Config::default();
    let Some(mut table) = Place::root(root, errors).table() else { return default };
    let config = Config {
        workers: table.optional("workers"),
        state_dir: table.optional("state_dir"),
        zone: table.optional("zone"),
        pid_file: table.optional("pid_file"),
        admin: table.with("admin", admin).unwrap_or(default.admin),
        log: table.optional("log").unwrap_or(default.log),
        records: table.optional("records").unwrap_or(default.records),
        drain: table.optional("drain").unwrap_or(default.drain),
        limits: table.optional("limits").unwrap_or(default.limits),
        store: table.with("store", store).unwrap_or_default(),
        trust: table.optional("trust"),
        trusted_proxies: table.items("trusted_proxies", |place| place.read()),
        listeners: table.items("listeners", listener),
        plugins: table.items("plugins", |place| Some(gateway_chain_entry(place))),
        policies: table.optional("policies"),
        reload: table.optional("reload").unwrap_or_default(),
        replay: table.optional("replay"),
        upstreams: table.with("upstreams", upstreams).unwrap_or_default(),
        routes: table.items("routes", route),
    };
    table.close();
    config
}

/// A time that is longer than zero.
#[derive(Deserialize)]
struct Wait(#[serde(deserialize_with = "positive")] Duration);

/// Reads the file beside a policy.
pub(crate) fn side_file(root: &Node, errors: &mut Vec<NodeError>) -> SideFile {
    let mut side = SideFile { options: InstanceOptions::default(), config: root.empty_table() };
    let Some(mut table) = Place::root(root, errors).table() else { return side };
    side.options = InstanceOptions {
        name: table.optional("name"),
        on_error: table.optional("on_error").unwrap_or_default(),
        timeout: table.optional("timeout").map(|Wait(wait)| wait),
        mode: table.optional("mode").unwrap_or_default(),
        percent: table.optional("percent").unwrap_or(Percent(100)),
        until: table.optional("until"),
    };
    if let Some(config) = table.with("config", |place| Some(place.node.clone())) {
        side.config = config;
    }
    table.close();
    side
}

fn admin(place: Place<'_, '_>) -> Option<Admin> {
    match place.node.text() {
        Some("off" | "false") => Some(Admin::Off),
        Some("on" | "true") => Some(Admin::default()),
        _ => place.read().map(Admin::On),
    }
}

/// How long an operation of a store may take, unless it is said: far longer than any takes, and a wait that clients bear.
const STORE_TIMEOUT: Duration = Duration(std::time::Duration::from_millis(250));

fn store(place: Place<'_, '_>) -> Option<Store> {
    match place.node.text() {
        Some("memory") => return Some(Store::Memory),
        Some(_) => return place.expected("`memory`, or a table with `file` or `redis`"),
        None => {}
    }
    let mut table = place.table()?;
    let span = table.span;
    let file = table.optional("file");
    let redis = table.with("redis", redis);
    let timeout = table.optional("timeout").map_or(STORE_TIMEOUT, |Wait(wait)| wait);
    let said = ["file", "redis"].map(|key| table.node.child(key).is_some_and(|node| !node.is_absent()));
    if said[0] == said[1] {
        return table.fail(span, "a store is either `file` or `redis`, or the word `memory`");
    }
    if !table.close() {
        return None;
    }
    match (file, redis) {
        (Some(path), _) => Some(Store::File(StoreFile { path, timeout })),
        (None, redis) => Some(Store::Redis(Box::new(StoreRedis { redis: redis?, timeout }))),
    }
}

fn redis(place: Place<'_, '_>) -> Option<Redis> {
    match place.node.text() {
        Some(_) => place.read().map(Redis::at),
        None => place.read(),
    }
}

fn listener(place: Place<'_, '_>) -> Option<Listener> {
    let unread = Listener { name: place.path.clone(), ..Listener::default() };
    let Some(mut table) = place.table() else { return Some(unread) };
    let name = table.optional("name");
    let bind = table.required("bind", addresses).unwrap_or_default();
    let socket_mode = table.optional("socket_mode");
    let proxy_protocol = table.optional("proxy_protocol");
    let tls = table.optional("tls");
    let redirect_https = table.with("redirect_https", redirect_https).flatten();
    let http2 = table.optional("http2").unwrap_or_default();
    let limits = table.optional("limits").unwrap_or_default();
    let plugins = table.items("plugins", |place| Some(chain_entry(place)));
    table.close();
    let name = name.or_else(|| bind.first().map(ListenAddress::to_string)).unwrap_or(unread.name);
    Some(Listener { name, bind, socket_mode, proxy_protocol, tls, redirect_https, http2, limits, plugins })
}

/// One address or a list of them.
fn addresses(place: Place<'_, '_>) -> Option<Vec<ListenAddress>> {
    match place.node.items() {
        Some([]) => place.fail("expected at least one address"),
        Some(_) => place.all(),
        None => place.read().map(|address| vec![address]),
    }
}

fn redirect_https(place: Place<'_, '_>) -> Option<Option<RedirectHttps>> {
    if place.node.entries().is_some() {
        return place.read().map(Some);
    }
    let wanted: bool = place.read()?;
    Some(wanted.then(RedirectHttps::default))
}

fn upstreams(place: Place<'_, '_>) -> Option<Vec<Upstream>> {
    let table = place.table()?;
    Some(table.each(upstream))
}

fn upstream(name: &str, place: Place<'_, '_>) -> Option<Upstream> {
    let mut upstream = Upstream::named(name);
    // One with errors is there all the same: nobody who names it is wrong.
    let Some(mut table) = place.table() else { return Some(upstream) };
    let is_named = table.node.child("dns").is_some_and(|dns| !dns.is_absent());
    let endpoints =
        if is_named { table.with("endpoints", endpoints) } else { table.required("endpoints", endpoints) };
    upstream.endpoints = endpoints.unwrap_or_default();
    upstream.dns = table.optional("dns");
    upstream.protocol = table.optional("protocol").unwrap_or_default();
    upstream.tls = table.optional("tls");
    upstream.proxy_protocol = table.optional("proxy_protocol");
    upstream.balance = table.optional("balance").unwrap_or_default();
    upstream.min_healthy = table.optional("min_healthy").unwrap_or(upstream.min_healthy);
    upstream.slow_start = table.optional("slow_start");
    upstream.eject = table.with("eject", eject).unwrap_or_default();
    upstream.health = table.optional("health");
    upstream.breaker = table.optional("breaker");
    upstream.max_requests = table.optional("max_requests");
    upstream.adaptive = table.optional("adaptive");
    upstream.max_pending = table.optional("max_pending").unwrap_or_default();
    upstream.timeouts = table.optional("timeouts").unwrap_or_default();
    upstream.max_idle = table.optional("max_idle").unwrap_or(upstream.max_idle);
    upstream.max_connection_age = table.optional("max_connection_age").map(|Wait(age)| age);
    upstream.tcp_keepalive = table.optional("tcp_keepalive");
    upstream.retries = table.with("retries", retries).unwrap_or_default();
    upstream.hedge = table.optional("hedge");
    upstream.deadline = table.optional("deadline");
    upstream.host = table.optional("host").unwrap_or_default();
    table.close();
    Some(upstream)
}

fn eject(place: Place<'_, '_>) -> Option<Eject> {
    match place.node.text() {
        Some("off" | "false") => Some(Eject { max_ejected: Percent(0), ..Eject::default() }),
        Some("on" | "true") => Some(Eject::default()),
        _ => place.read(),
    }
}

/// A number, or a table of everything.
fn retries(place: Place<'_, '_>) -> Option<Retries> {
    if place.node.entries().is_some() {
        return place.read();
    }
    place.read().map(|attempts| Retries { attempts, ..Retries::default() })
}

fn endpoints(place: Place<'_, '_>) -> Option<Vec<Endpoint>> {
    let none = place.node.is_null() || place.node.items().is_some_and(<[Node]>::is_empty);
    if none { place.fail("expected at least one endpoint") } else { place.all() }
}

fn route(place: Place<'_, '_>) -> Option<Route> {
    let mut route = Route {
        name: format!("route-{}", place.index),
        matches: Match::default(),
        plugins: Vec::new(),
        rewrite: Rewrite::default(),
        upgrades: Vec::new(),
        action: Action::Respond(Respond::default()),
        timeout: None,
        mirror: None,
        whole: false,
        captures_known: false,
    };
    let whole = !place.node.has_unset();
    let Some(mut table) = place.table() else { return Some(route) };
    let errors = table.errors.len();
    route.name = table.optional("name").unwrap_or(route.name);
    route.matches = table.with("match", matches).unwrap_or_default();
    route.captures_known = route.matches.path.is_some() || has_no_path(table.node);
    route.rewrite = table.optional("rewrite").unwrap_or_default();
    route.upgrades = table.list("upgrades");
    route.action = action(&mut table).unwrap_or(route.action);
    route.timeout = table.optional("timeout").map(|Wait(length)| length);
    route.mirror = table.optional("mirror");
    let read = table.errors.len() == errors;
    route.plugins = table.items("plugins", |place| Some(chain_entry(place)));
    route.whole = table.close() && read && whole;
    Some(route)
}

/// Whether a route says nothing about its path, not even something that cannot be read.
fn has_no_path(route: &Node) -> bool {
    match route.child("match").filter(|found| !found.is_absent()) {
        Some(found) => {
            found.entries().is_some() && found.child("path").is_none() && !is_misspelt("path", found)
        }
        None => !is_misspelt("match", route),
    }
}

/// Item by item where there are many of a kind.
fn matches(place: Place<'_, '_>) -> Option<Match> {
    let mut table = place.table()?;
    let matches = Match {
        hosts: table.list("hosts"),
        path: table.optional("path"),
        prefix: table.optional("prefix"),
        methods: table.list("methods"),
        headers: table.optional("headers").unwrap_or_default(),
        query: table.optional("query").unwrap_or_default(),
    };
    table.close();
    Some(matches)
}

/// Exactly one of the three.
fn action(table: &mut Table<'_, '_>) -> Option<Action> {
    let present = |key| (key, table.node.entry(key).filter(|(_, node)| !node.is_absent()));
    let present = ["upstream", "redirect", "respond"].map(present);
    let actions = [
        table.with("upstream", target).map(Action::Upstream),
        table.optional("redirect").map(Action::Redirect),
        table.optional("respond").map(Action::Respond),
    ];
    let mut present = present.into_iter().filter_map(|(name, entry)| Some((name, entry?)));
    match (present.next(), present.next()) {
        (None, _) if ["upstream", "redirect", "respond"].iter().any(|key| is_misspelt(key, table.node)) => {
            None
        }
        (None, _) => table.fail(table.span, "a route needs one of `upstream`, `redirect`, `respond`"),
        (Some(_), None) => actions.into_iter().flatten().next(),
        (Some((first, _)), Some((second, (key, _)))) => {
            table.fail(key.span, &format!("a route has one action: either `{first}` or `{second}`"))
        }
    }
}

/// The name of an upstream, or a table of several.
fn target(place: Place<'_, '_>) -> Option<Target> {
    match place.node.entries() {
        Some(_) => place.read().map(Target::Split),
        None => place.read().map(Target::Upstream),
    }
}

/// An entry of the gateway's own list, the only one in which the policy directory can have its place.
fn gateway_chain_entry(place: Place<'_, '_>) -> ChainEntry {
    if place.node.text() == Some("policies") {
        return ChainEntry::Policies(place.node.span);
    }
    chain_entry(place)
}

fn chain_entry(place: Place<'_, '_>) -> ChainEntry {
    let entry = if place.node.text() == Some("policies") {
        place.fail("`policies` can only stand in the gateway's own list of plugins")
    } else {
        plugin_entry(place)
    };
    entry.map_or(ChainEntry::Unread, |entry| ChainEntry::Plugin(Box::new(entry)))
}

/// A bare kind, or a table of one kind and instance options.
fn plugin_entry(mut place: Place<'_, '_>) -> Option<PluginEntry> {
    let span = place.node.span;
    if let Some(kind) = place.node.text() {
        return Some(PluginEntry {
            kind: kind.to_owned(),
            kind_span: span,
            options: InstanceOptions::default(),
            table: place.node.empty_table(),
            path: join(&place.path, kind),
            span,
        });
    }
    let Some(entries) = place.node.entries() else {
        return place.fail("expected a plugin: `- kind` or `- kind: { ... }`");
    };
    let (options, kinds): (Vec<_>, Vec<_>) =
        entries.iter().cloned().partition(|(key, _)| INSTANCE_OPTIONS.contains(&key.text.as_str()));
    let (misspelt, kinds): (Vec<_>, Vec<_>) = kinds.into_iter().partition(|(key, _)| {
        entries.len() > 1 && nearest(&key.text, INSTANCE_OPTIONS.into_iter()).is_some()
    });
    misspelt.iter().for_each(|(key, _)| place.misspelt_option(key));
    let options = place.instance_options(Node { span, value: Value::Table(options) });
    let mut kinds = kinds.into_iter();
    let Some((key, value)) = kinds.next() else {
        return place.fail("this entry names no plugin: write `- kind: { ... }`");
    };
    let extras: Vec<_> = kinds.collect();
    extras.iter().for_each(|(extra, _)| place.second_kind(&key, extra));
    if !extras.is_empty() && value.is_null() {
        // Its table is those other keys, and nobody knows which of them.
        return None;
    }
    Some(PluginEntry {
        table: plugin_table(&key, value),
        path: join(&place.path, &key.text),
        kind: key.text,
        kind_span: key.span,
        options,
        span,
    })
}

/// A plugin's table stands where its kind stands: that is the place to say what it lacks.
fn plugin_table(key: &Key, value: Node) -> Node {
    if value.is_null() {
        return Node { span: key.span, value: Value::Table(Vec::new()) };
    }
    Node { span: key.span, ..value }
}

/// A value to be read, its place, and where errors go.
struct Place<'n, 'e> {
    node: &'n Node,
    path: String,
    /// The key, for a value of a table.
    key: Option<Span>,
    /// The position, for an item of a list.
    index: usize,
    errors: &'e mut Vec<NodeError>,
}

/// A table of which keys are asked for one by one; those asked for are the known ones.
struct Table<'n, 'e> {
    node: &'n Node,
    path: String,
    /// Where to say that something is missing.
    span: Span,
    known: Vec<&'static str>,
    errors: &'e mut Vec<NodeError>,
}

impl<'n, 'e> Place<'n, 'e> {
    fn root(node: &'n Node, errors: &'e mut Vec<NodeError>) -> Self {
        Self { node, path: String::new(), key: None, index: 0, errors }
    }

    /// The value, without what is wrong in it where that leaves one.
    fn read<T: DeserializeOwned>(mut self) -> Option<T> {
        let node = self.node;
        self.read_part(node)
    }

    /// Reads a part of this value that was taken out of it.
    fn read_part<T: DeserializeOwned>(&mut self, part: &Node) -> Option<T> {
        let (value, errors) = part.read_partly(&self.path);
        self.errors.extend(errors);
        value
    }

    /// The items of a list; a key whose items are all commented out holds none.
    fn items<T>(self, mut read: impl FnMut(Place<'n, '_>) -> Option<T>) -> Vec<T> {
        if self.node.is_null() {
            return Vec::new();
        }
        let Some(items) = self.node.items() else {
            self.expected::<T>("a list");
            return Vec::new();
        };
        let place = |(index, node)| {
            let path = format!("{}[{index}]", self.path);
            read(Place { node, path, key: None, index, errors: &mut *self.errors })
        };
        items.iter().enumerate().filter_map(place).collect()
    }

    /// The items of a list, if every one can be read.
    fn all<T: DeserializeOwned>(self) -> Option<Vec<T>> {
        let wanted = self.node.items().map(<[Node]>::len);
        let items = self.items(|place| place.read());
        (Some(items.len()) == wanted).then_some(items)
    }

    /// The instance options of a plugin entry. Without its name it must not look like another one.
    fn instance_options(&mut self, options: Node) -> InstanceOptions {
        let read: InstanceOptions = self.read_part(&options).unwrap_or_default();
        if options.entries().is_some_and(<[_]>::is_empty) || read.name.is_some() {
            return read;
        }
        let name = options.child("name").filter(|name| !name.is_absent()).map(|_| self.path.clone());
        InstanceOptions { name, ..read }
    }

    fn table(self) -> Option<Table<'n, 'e>> {
        if self.node.entries().is_none() && !self.node.is_null() {
            return self.expected("a table");
        }
        let span = self.key.unwrap_or(self.node.span);
        Some(Table { node: self.node, path: self.path, span, known: Vec::new(), errors: self.errors })
    }

    fn expected<T>(self, what: &str) -> Option<T> {
        let message = format!("expected {what}, found {}", self.node.describe());
        self.fail(&message)
    }

    /// Notes what is wrong. Of an unset value nothing is known that could be.
    fn fail<T>(self, message: &str) -> Option<T> {
        if self.node.value != Value::Unset {
            self.errors.push(NodeError::new(self.node.span, &self.path, message));
        }
        None
    }

    fn misspelt_option(&mut self, key: &Key) {
        self.errors.push(NodeError::unknown_key(key, &self.path, INSTANCE_OPTIONS.into_iter()));
    }

    /// A second key that is no instance option: probably an option of the plugin, not indented.
    fn second_kind(&mut self, kind: &Key, extra: &Key) {
        let message = format!("`{}` stands beside the plugin `{}`", extra.text, kind.text);
        let help = format!(
            "options of `{}` go below it, further indented; a second plugin begins with `-`",
            kind.text
        );
        self.errors.push(NodeError::new(extra.span, &self.path, message).with_help(help));
    }
}

impl<'n> Table<'n, '_> {
    /// The value of a key, read by a function of its own, which must add an error whenever it returns `None`.
    fn with<T>(&mut self, key: &'static str, read: impl FnOnce(Place<'n, '_>) -> Option<T>) -> Option<T> {
        self.known.push(key);
        let (found, node) = self.node.entry(key).filter(|(_, node)| !node.is_absent())?;
        let path = join(&self.path, key);
        read(Place { node, path, key: Some(found.span), index: 0, errors: self.errors })
    }

    fn optional<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<T> {
        self.with(key, |place| place.read())
    }

    fn required<T>(&mut self, key: &'static str, read: impl FnOnce(Place<'n, '_>) -> Option<T>) -> Option<T> {
        if self.node.child(key).is_none_or(Node::is_absent) && !is_misspelt(key, self.node) {
            self.errors.push(NodeError::missing_key(self.span, &self.path, key));
        }
        self.with(key, read)
    }

    fn items<T>(&mut self, key: &'static str, read: impl FnMut(Place<'n, '_>) -> Option<T>) -> Vec<T> {
        self.with(key, |place| Some(place.items(read))).unwrap_or_default()
    }

    /// A list whose items are read one by one. Unlike [`Table::items`] it must not have lost its content.
    fn list<T: DeserializeOwned>(&mut self, key: &'static str) -> Vec<T> {
        let list = |place: Place<'n, '_>| match place.node.items() {
            Some(_) => Some(place.items(|place| place.read())),
            None => place.read(),
        };
        self.with(key, list).unwrap_or_default()
    }

    /// Reads every entry of a table whose keys are names.
    fn each<T>(self, read: impl Fn(&str, Place<'n, '_>) -> Option<T>) -> Vec<T> {
        let entry = |(index, (key, node)): (usize, &'n (Key, Node))| {
            let path = join(&self.path, &key.text);
            read(&key.text, Place { node, path, key: Some(key.span), index, errors: &mut *self.errors })
        };
        self.node.entries().unwrap_or_default().iter().enumerate().filter_map(entry).collect()
    }

    fn fail<T>(&mut self, span: Span, message: &str) -> Option<T> {
        self.errors.push(NodeError::new(span, &self.path, message));
        None
    }

    /// Refuses the keys that nobody asked for; false if there are any.
    fn close(self) -> bool {
        let before = self.errors.len();
        let unknown = self.node.entries().unwrap_or_default().iter();
        let unknown = unknown.filter(|(key, _)| !self.known.contains(&key.text.as_str()));
        let known = self.known.iter().copied();
        self.errors.extend(unknown.map(|(key, _)| NodeError::unknown_key(key, &self.path, known.clone())));
        self.errors.len() == before
    }
}
