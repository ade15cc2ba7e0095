//! The configuration file's types. Their field docs become the descriptions of the JSON Schema.

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ceiling::Ceiling;
use crate::diagnostics::Span;
use crate::forms::host_and_port;
use crate::listen::{FileMode, ListenAddress, ListenerLimits};
use crate::node::Node;
use crate::on_error::OnError;
use crate::reload::{Reload, Replay};
use crate::schema;
use crate::store::{Store, Trust};
use crate::traffic::{Mirror, Target};
use crate::upstreams::Upstream;
use crate::values::{
    Address, ByteSize, Duration, HeaderName, HostPattern, Method, Moment, Network, PathPrefix, PathTemplate,
    Pattern, Percent, Protocol, SizeLimit, some_positive,
};

/// A whole configuration file.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields, default, extend("required" = ["listeners"]))]
pub struct Config {
    /// Worker threads, each with its own listeners and connection pools. Default: the number of cores. Fixed for
    /// the life of the process, at most 1024. Example: `4`.
    pub workers: Option<NonZeroU32>,
    /// Directory for what survives a restart: accepted inputs, compiled modules, stores. Default: a directory of
    /// the user's own. Example: `/var/lib/portcullis`.
    pub state_dir: Option<PathBuf>,
    /// Where the gateway itself is: of endpoints with the same `priority`, those of this `zone` serve first. Default: none.
    /// Example: `eu-1a`.
    pub zone: Option<String>,
    /// File that holds the process id while the gateway runs. Default: none. Example: `/run/portcullis.pid`.
    pub pid_file: Option<PathBuf>,
    /// The admin interface, or `off`. Default: on, at `127.0.0.1:9901`.
    #[schemars(schema_with = "schema::admin")]
    pub admin: Admin,
    /// What is logged on standard error, and how.
    pub log: Log,
    /// What is remembered of requests that have ended, for `portcullis explain`.
    pub records: Records,
    /// How long running requests may take to end at shutdown, and at an upgrade to another version. Default `30s`.
    pub drain: Duration,
    /// Limits of the whole process.
    pub limits: Limits,
    /// Where plugins keep what several requests share: `memory`, or a table with `file` or `redis`. Default `memory`.
    #[schemars(schema_with = "schema::store", default)]
    pub store: Store,
    /// Run only signed code. Default: what it is not said who has signed, runs.
    pub trust: Option<Trust>,
    /// Networks whose `X-Forwarded-*` headers are believed; `Forwarded` is written, never read. `unix` stands for whoever
    /// connects to a Unix socket. Default: none. Example: `[10.0.0.0/8, "::1"]`.
    pub trusted_proxies: Vec<Network>,
    /// Where the gateway accepts connections; at least one.
    #[schemars(length(min = 1))]
    pub listeners: Vec<Listener>,
    /// The plugins every request passes first. The bare word `policies` places the policy directory's plugins;
    /// without it they come last.
    #[schemars(schema_with = "schema::chain", default)]
    pub plugins: Vec<ChainEntry>,
    /// The policy directory, whose files apply without being named here. Default: none.
    pub policies: Option<Policies>,
    /// What a reload has to pass before it applies.
    pub reload: Reload,
    /// Requests that are recorded as they came, to try other configurations on. Default: none.
    pub replay: Option<Replay>,
    /// Where requests are sent, by name. Default: none.
    #[schemars(with = "BTreeMap<String, Upstream>")]
    pub upstreams: Vec<Upstream>,
    /// Which request goes where. The order does not matter: the most specific match wins. Default: none, everything is
    /// answered with 404.
    pub routes: Vec<Route>,
}

/// The admin interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admin {
    /// Served at this address.
    On(AdminOptions),
    /// Not served.
    Off,
}

/// Options of the admin interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdminOptions {
    /// Address of the admin interface. It has no authentication of its own: keep it on loopback. Default
    /// `127.0.0.1:9901`.
    pub bind: Address,
}

/// The execution log: what the gateway does. What passes it is the `access_log` plugin's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The least important level that is logged. Default `info`.
    pub level: LogLevel,
    /// `text` for people, `json` for machines, one object a line. Default `text`.
    pub format: LogFormat,
}

/// How important a log line is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Only failures.
    Error,
    /// And what should be looked at.
    Warn,
    /// And what happens to the gateway as a whole.
    #[default]
    Info,
    /// And what happens to each connection.
    Debug,
    /// And everything else.
    Trace,
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Readable by people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is remembered of requests that have ended: which plugins were called, what each answered, who decided; names
/// of what was changed, never values.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Records {
    /// How many that were refused or failed are remembered, over all workers, at about a kilobyte each; the oldest are
    /// forgotten first. Default `2000`.
    pub refused: u32,
    /// How many others. Default `1000`.
    pub passed: u32,
    /// Where records are written as well. Default: nowhere.
    pub file: Option<RecordsFile>,
}

impl Default for Records {
    fn default() -> Self {
        Self { refused: 2000, passed: 1000, file: None }
    }
}

/// Records written to a file, one JSON object a line: all requests that were refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RecordsFile {
    /// The file, relative to this one, or `stdout`. It is opened anew at SIGHUP. Example: `records.jsonl`.
    pub path: String,
    /// How many of the others, by lot. Default `0%`. Example: `1%`.
    #[serde(default = "none_of_them")]
    pub passed: Percent,
}

fn none_of_them() -> Percent {
    Percent(0)
}

/// Limits of the whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest request body, or `unlimited`. Default `10MiB`.
    pub body: SizeLimit,
    /// Requests under way at a time, over all workers, each of which has an equal share of them; more are answered
    /// with 503. Default `50000`.
    pub exchanges: NonZeroU32,
    /// Memory for all bodies that plugins asked to see whole, together; when it is used up, requests that need
    /// more are answered with 503. Default `256MiB`.
    pub whole_bodies: ByteSize,
    /// Scripts that may wait, because they are granted calls to upstreams, and run at a time: each takes a thread. Four
    /// times as many queue for one; more are answered with 503. Default `64`.
    pub waiting_scripts: NonZeroU16,
}

/// The policy directory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Policies {
    /// Its path, relative to this file; it must exist. Example: `policies`.
    pub dir: PathBuf,
    /// The most that the files beside its policies may grant them. Default: what its keys say.
    #[serde(default)]
    pub grants: Ceiling,
}

/// A place where connections are accepted.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Listener {
    /// Its name in logs and metrics. Default: its first address.
    #[schemars(default)]
    pub name: String,
    /// Address to listen on, or a list of them. Example: `0.0.0.0:8080`, `[::]:8080` or `unix:/run/portcullis.sock`.
    /// Whoever connects to a Unix socket has no address: unless a proxy says it for him (`proxy_protocol`,
    /// `trusted_proxies`, with `unix` for its own), he is `0.0.0.0` to plugins and limits, all of them one client, and
    /// `unknown` to upstreams. Rules that allow addresses do not allow this one unless they name it.
    #[schemars(schema_with = "schema::addresses")]
    pub bind: Vec<ListenAddress>,
    /// Permissions of its Unix sockets: who may write may connect. Default `0600`, for the gateway's own user alone.
    /// Example: `0660`.
    pub socket_mode: Option<FileMode>,
    /// Take connections from these proxies only, which say first whose they are (PROXY protocol, version 1 or 2).
    /// Default: from everybody, and nobody says.
    pub proxy_protocol: Option<Proxies>,
    /// Accept TLS instead of plain text. Default: plain text.
    pub tls: Option<Tls>,
    /// Answer everything with a redirect to HTTPS: `true`, or a table. Default `false`.
    #[schemars(schema_with = "schema::redirect_https", default)]
    pub redirect_https: Option<RedirectHttps>,
    /// How HTTP/2 is spoken with clients.
    #[schemars(default)]
    pub http2: Http2,
    /// Limits of its connections and clients.
    #[schemars(default)]
    pub limits: ListenerLimits,
    /// Plugins for what arrives here, after the gateway's own.
    #[schemars(schema_with = "schema::chain", default)]
    pub plugins: Vec<ChainEntry>,
}

/// Proxies that pass connections on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Proxies {
    /// Their networks; `unix` for whoever connects to a Unix socket. Whoever is in them can appear as any client.
    /// Example: `[10.0.0.0/8]`.
    #[schemars(length(min = 1))]
    pub from: Vec<Network>,
}

/// TLS of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Certificates, chosen by the name that the client asks for (SNI); the first is the default.
    #[schemars(length(min = 1))]
    pub certificates: Vec<Certificate>,
    /// Lowest version accepted: `"1.2"` or `"1.3"`. Default `"1.2"`.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// Which ciphers and key exchanges are offered. Default `intermediate`.
    #[serde(default)]
    pub policy: TlsPolicy,
    /// Protocols offered (ALPN), best first. Default `[h2, http/1.1]`.
    #[serde(default = "default_alpn")]
    pub alpn: Vec<Alpn>,
    /// Ask clients for a certificate. Default: no.
    #[serde(default)]
    pub client_auth: Option<ClientAuth>,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// PEM file with the certificate and its chain, relative to this file. Example: `tls/api.pem`.
    pub cert: PathBuf,
    /// PEM file with the private key, relative to this file. Example: `tls/api.key`.
    pub key: PathBuf,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3 (RFC 8446).
    #[serde(rename = "1.3")]
    V1_3,
}

/// A choice of ciphers and key exchanges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TlsPolicy {
    /// TLS 1.3 only.
    Modern,
    /// TLS 1.3, and TLS 1.2 with forward secrecy and authenticated encryption.
    #[default]
    Intermediate,
}

/// A protocol negotiated by ALPN (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Alpn {
    /// HTTP/2.
    #[serde(rename = "h2")]
    H2,
    /// HTTP/1.1.
    #[serde(rename = "http/1.1")]
    Http1,
}

/// Client certificates.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientAuth {
    /// Whether a client may connect without one.
    pub mode: ClientAuthMode,
    /// PEM file with the authorities that issue them, relative to this file. Example: `tls/clients-ca.pem`.
    pub ca: PathBuf,
}

/// Whether a client certificate must be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuthMode {
    /// A client may show none; one that it shows must be valid.
    Optional,
    /// Every client must show one.
    Required,
}

/// The redirect that a plain-text listener answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedirectHttps {
    /// Port of the HTTPS listener as clients see it. Default `443`.
    pub port: NonZeroU16,
    /// Status code. Default `308`, which keeps the method.
    pub status: RedirectStatus,
}

/// The status code of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct RedirectStatus(u16);

/// How HTTP/2 is spoken with clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Http2 {
    /// Requests that one connection may have open at a time, at most 8000. Of their bodies, what nobody takes is held up
    /// to 64 KiB each and 8 MiB together. Default `100`.
    pub max_streams: NonZeroU32,
}

/// One place in a list of plugins.
#[derive(Clone, Debug, PartialEq)]
pub enum ChainEntry {
    /// A plugin.
    Plugin(Box<PluginEntry>),
    /// Where the policy directory's plugins go: the bare word `policies`.
    Policies(Span),
    /// An entry that could not be read; it keeps the place of those after it.
    Unread,
}

/// A plugin instance, its own table still unread.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginEntry {
    /// Which plugin, such as `cors`.
    pub kind: String,
    /// Where the kind stands.
    pub kind_span: Span,
    /// Options that every instance has.
    pub options: InstanceOptions,
    /// The plugin's own table.
    pub table: Node,
    /// The table's path, such as `routes[2].plugins[0].cors`.
    pub path: String,
    /// Where the entry begins.
    pub span: Span,
}

/// Options of a plugin instance, whatever its kind.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InstanceOptions {
    /// Name in logs, metrics and stores; needed where two plugins of one kind stand in one list. Default: the kind.
    pub name: Option<String>,
    /// What happens when the plugin itself fails: the request is refused (`deny`), or goes on as if the plugin were not
    /// there (`allow`); with `quarantine` a plugin that keeps failing is besides not called for a while. Default `deny`.
    pub on_error: OnError,
    /// Longest single wait of this plugin; a longer one is a failure. Default: the plugin's own. Example: `5s`.
    #[serde(deserialize_with = "some_positive")]
    pub timeout: Option<Duration>,
    /// Whether what the plugin decides holds. Default `enforce`.
    pub mode: Mode,
    /// For how many clients it runs, by their addresses; the others pass as if it were off. Default `100%`.
    pub percent: Percent,
    /// Until when the mode holds. After it a plugin that was in shadow or off is enforced, and one that was enforced is
    /// off. Default: for good. Example: `2030-01-31T00:00:00Z`.
    pub until: Option<Moment>,
}

impl Default for InstanceOptions {
    fn default() -> Self {
        Self {
            name: None,
            on_error: OnError::default(),
            timeout: None,
            mode: Mode::default(),
            percent: Percent(100),
            until: None,
        }
    }
}

/// Whether what a plugin decides holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It holds.
    #[default]
    Enforce,
    /// The plugin runs on a view of its own: what it would do is recorded and counted, and happens to nobody.
    Shadow,
    /// The plugin is built, and not called.
    Off,
}

/// The file beside a policy (`NN-name.yaml`).
#[derive(Clone, Debug, PartialEq)]
pub struct SideFile {
    /// The options that every plugin instance has.
    pub options: InstanceOptions,
    /// The table `config`, unread; empty if it is missing. Its path is `config`.
    pub config: Node,
}

/// Which requests, what runs on them, and where they go: to exactly one of `upstream`, `redirect`, `respond`.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Route {
    /// Its name in logs and metrics. Default: `route-` and its place in the list, from 0.
    #[schemars(default)]
    pub name: String,
    /// Which requests. Default: all.
    #[schemars(rename = "match", default)]
    pub matches: Match,
    /// Plugins for these requests, after the gateway's and the listener's.
    #[schemars(schema_with = "schema::chain", default)]
    pub plugins: Vec<ChainEntry>,
    /// Changes to the request before it is sent on.
    #[schemars(default)]
    pub rewrite: Rewrite,
    /// What clients may switch to from HTTP, as `Upgrade` names it; `websocket` holds for HTTP/2 too. Plugins see the
    /// handshake with its headers, and nothing of what passes afterwards. Default: nothing. Example: `[websocket]`.
    #[schemars(default)]
    pub upgrades: Vec<Protocol>,
    /// What answers them.
    #[schemars(flatten)]
    pub action: Action,
    /// Time for all of a request, in place of the upstream's `timeouts.total`. Default: the upstream's.
    /// Example: `2s`.
    pub timeout: Option<Duration>,
    /// Copies of these requests for another upstream. Default: none.
    pub mirror: Option<Mirror>,
    /// Whether all of it but the plugins could be read. What a route with errors matches and does is unknown.
    #[schemars(skip)]
    pub whole: bool,
    /// Whether it is known which captures its path has, though other parts may have errors.
    #[schemars(skip)]
    pub captures_known: bool,
}

/// Which requests a route takes. Everything given must fit; what is missing fits always.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// Host names, any of them. Default: any. Example: `[api.example.com, "*.example.com"]`.
    pub hosts: Vec<HostPattern>,
    /// The path: `{name}` stands for one segment, a last `/**` or `/{name**}` for the rest. Default:
    /// any. Example: `/users/{id}`.
    pub path: Option<PathTemplate>,
    /// The beginning of the path, whole segments; instead of `path`. Default: any. Example: `/static`.
    pub prefix: Option<PathPrefix>,
    /// Methods, any of them. Default: any. Example: `[GET, POST]`.
    pub methods: Vec<Method>,
    /// Headers, all of them: a value, `{ present: true }` or `{ regex: "^a" }`. Default: none. Example:
    /// `{ x-tenant: acme }`.
    pub headers: BTreeMap<HeaderName, Predicate>,
    /// Query parameters, all of them, in the same forms as headers. Default: none. Example: `{ version: "2" }`.
    pub query: BTreeMap<String, Predicate>,
}

/// What a header or query parameter must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Predicate {
    /// This value.
    Is(String),
    /// There at all (`true`), or not there (`false`).
    Present(bool),
    /// A value in which this is found.
    Regex(Pattern),
}

/// Changes to a request before it is sent on. They never change which route it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rewrite {
    /// A new path, with the placeholders of `match.path`. Default: the old one. Example: `/internal/{id}`.
    pub path: Option<PathTemplate>,
    /// Removed from the beginning of the path. Default: nothing. Example: `/static`.
    pub strip_prefix: Option<PathPrefix>,
    /// Put before the path, after `strip_prefix`. Default: nothing. Example: `/v2`.
    pub add_prefix: Option<PathPrefix>,
    /// A new `Host`. Default: what the upstream's `host` says. Example: `internal.example`.
    #[serde(deserialize_with = "host_and_port")]
    pub host: Option<String>,
}

/// What answers a route's requests.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Action {
    /// The name of an upstream, or `{ split: [...] }` among several.
    Upstream(Target),
    /// Where clients shall go instead.
    Redirect(Redirect),
    /// A fixed answer.
    Respond(Respond),
}

/// Where clients shall go instead.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// Where to, with `{path}`, `{query}` (with its question mark), `{host}` and the placeholders of `match.path`.
    /// Example: `https://example.com{path}`.
    pub to: String,
    /// Status code. Default `308`, which keeps the method.
    #[serde(default)]
    pub status: RedirectStatus,
}

/// A fixed answer.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Respond {
    /// Status code. Default `200`.
    pub status: Status,
    /// Headers. Default: none. Example: `{ retry-after: "60" }`.
    pub headers: BTreeMap<HeaderName, String>,
    /// The body, a text: `text/plain` unless `headers` say otherwise. Default: empty.
    pub body: Option<String>,
    /// The body as JSON, instead of `body`. Default: none.
    pub json: Option<serde_json::Value>,
}

/// The status code of a final response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Status(u16);

impl RedirectStatus {
    /// The number.
    pub fn code(self) -> u16 {
        self.0
    }
}

impl Status {
    /// The number.
    pub fn code(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for RedirectStatus {
    type Error = String;

    fn try_from(code: u16) -> Result<Self, String> {
        match code {
            301 | 302 | 303 | 307 | 308 => Ok(Self(code)),
            _ => Err(format!("{code} is no redirect: use 301, 302, 303, 307 or 308")),
        }
    }
}

impl TryFrom<u16> for Status {
    type Error = String;

    fn try_from(code: u16) -> Result<Self, String> {
        match code {
            200..=599 => Ok(Self(code)),
            _ => Err(format!("{code} is no final status: use 200 to 599")),
        }
    }
}

impl From<RedirectStatus> for u16 {
    fn from(status: RedirectStatus) -> u16 {
        status.0
    }
}

impl From<Status> for u16 {
    fn from(status: Status) -> u16 {
        status.0
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: None,
            state_dir: None,
            zone: None,
            pid_file: None,
            admin: Admin::default(),
            log: Log::default(),
            records: Records::default(),
            drain: seconds(30),
            limits: Limits::default(),
            store: Store::default(),
            trust: None,
            trusted_proxies: Vec::new(),
            listeners: Vec::new(),
            plugins: Vec::new(),
            policies: None,
            reload: Reload::default(),
            replay: None,
            upstreams: Vec::new(),
            routes: Vec::new(),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self::On(AdminOptions::default())
    }
}

impl Default for AdminOptions {
    fn default() -> Self {
        Self { bind: Address(([127, 0, 0, 1], 9901).into()) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: SizeLimit::Bytes(ByteSize(10 << 20)),
            exchanges: at_least_one(50_000),
            whole_bodies: ByteSize(256 << 20),
            waiting_scripts: const { NonZeroU16::new(64).unwrap() },
        }
    }
}

impl Default for RedirectHttps {
    fn default() -> Self {
        const HTTPS: NonZeroU16 = NonZeroU16::new(443).unwrap();
        Self { port: HTTPS, status: RedirectStatus::default() }
    }
}

impl Default for RedirectStatus {
    fn default() -> Self {
        Self(308)
    }
}

impl Default for Status {
    fn default() -> Self {
        Self(200)
    }
}

impl Default for Http2 {
    fn default() -> Self {
        Self { max_streams: at_least_one(100) }
    }
}

fn default_alpn() -> Vec<Alpn> {
    vec![Alpn::H2, Alpn::Http1]
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration(std::time::Duration::from_secs(seconds))
}

pub(crate) fn at_least_one(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
}
