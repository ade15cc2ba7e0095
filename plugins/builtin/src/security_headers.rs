//! `security_headers`: tells browsers what not to do with a response.
//!
//! ```yaml
//! - security_headers:
//!     hsts: { max_age: 365d, include_subdomains: true }
//!     content_security_policy: "default-src 'none'; frame-ancestors 'none'"
//!     remove: [server, x-powered-by]
//! ```
//!
//! `- security_headers` alone sets what harms no API: `Strict-Transport-Security: max-age=31536000` (RFC 6797; over TLS alone,
//! whether it ends here or at a trusted proxy), `Content-Security-Policy: frame-ancestors 'none'`, `X-Frame-Options: DENY`,
//! `X-Content-Type-Options: nosniff` and `Referrer-Policy: no-referrer`. `off` leaves one out.
//!
//! Responses of everybody get them, refusals of the gateway too. What an upstream says itself under one of these names stays,
//! unless `replace` is set.

use http::header::{
    CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY_REPORT_ONLY, HeaderName, HeaderValue, REFERRER_POLICY,
    STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use portcullis_plugin::{
    BuildContext, BuildError, Exchange, Hook, HookName, Needs, Plugin, PluginType, Span,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::names::{header_names, refuse_framing};
use crate::origins::is_https;

const PERMISSIONS_POLICY: HeaderName = HeaderName::from_static("permissions-policy");
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const EMBEDDER_POLICY: HeaderName = HeaderName::from_static("cross-origin-embedder-policy");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// The shortest time with which a domain gets into the lists that browsers ship (hstspreload.org).
const PRELOAD_SECONDS: u64 = 31_536_000;

/// Sets headers that browsers obey.
#[derive(Debug)]
pub(crate) struct SecurityHeaders {
    headers: Box<[(HeaderName, HeaderValue)]>,
    hsts: Option<HeaderValue>,
    remove: Box<[HeaderName]>,
    replace: bool,
}

/// Which headers responses get, and which they lose.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// `Strict-Transport-Security`: for how long browsers shall come over TLS alone; or `off`. Default: `{ max_age: 365d }`.
    hsts: HstsConfig,
    /// `Content-Security-Policy`, or `off`. Default: `frame-ancestors 'none'`.
    content_security_policy: String,
    /// `Content-Security-Policy-Report-Only`: a policy whose violations are told and not prevented. Default: none.
    content_security_policy_report_only: Option<String>,
    /// `X-Frame-Options`: `deny`, `sameorigin` or `off`, for browsers that do not know `frame-ancestors`. Default: `deny`.
    frame_options: Frame,
    /// `X-Content-Type-Options: nosniff`: whether browsers shall believe the media type. Default: `true`.
    nosniff: bool,
    /// `Referrer-Policy`, or `off`. Default: `no-referrer`.
    referrer_policy: ReferrerPolicy,
    /// `Permissions-Policy`, e.g. `geolocation=(), camera=()`. Default: none.
    permissions_policy: Option<String>,
    /// `Cross-Origin-Opener-Policy`: who shares a window with a page. Default: none.
    cross_origin_opener_policy: Option<Opener>,
    /// `Cross-Origin-Embedder-Policy`: what a page may load. Default: none.
    cross_origin_embedder_policy: Option<Embedder>,
    /// `Cross-Origin-Resource-Policy`: whose pages may load the response. Default: none.
    cross_origin_resource_policy: Option<Resource>,
    /// Headers that are removed, such as those that tell what an upstream runs. Default: none.
    remove: Vec<String>,
    /// Whether these values take the place of what an upstream says. Default: `false`.
    replace: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            hsts: HstsConfig::On(Hsts::default()),
            content_security_policy: "frame-ancestors 'none'".to_owned(),
            content_security_policy_report_only: None,
            frame_options: Frame::Deny,
            nosniff: true,
            referrer_policy: ReferrerPolicy::NoReferrer,
            permissions_policy: None,
            cross_origin_opener_policy: None,
            cross_origin_embedder_policy: None,
            cross_origin_resource_policy: None,
            remove: Vec::new(),
            replace: false,
        }
    }
}

/// Times, or nothing.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected `off` or a table such as `{ max_age: 365d }`")]
enum HstsConfig {
    /// `off`.
    Off(OffWord),
    /// A table.
    On(Hsts),
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum OffWord {
    /// Leaves the header out.
    Off,
}

/// How long TLS is a must, and for whom.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Hsts {
    /// How long a browser remembers it; `0s` makes it forget. Default: `365d`.
    max_age: Span,
    /// Whether it holds for subdomains too, also for those that serve no TLS. Default: `false`.
    include_subdomains: bool,
    /// Whether the domain may go into the lists that browsers ship. Default: `false`.
    preload: bool,
}

impl Default for Hsts {
    fn default() -> Self {
        let year = std::time::Duration::from_secs(PRELOAD_SECONDS);
        Hsts { max_age: Span(year), include_subdomains: false, preload: false }
    }
}

/// Words of which each is the header's value, in its own spelling.
macro_rules! words {
    ($(#[$about:meta])* $name:ident: $case:literal { $($(#[$word:meta])* $variant:ident = $value:expr,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Deserialize, JsonSchema)]
        #[serde(rename_all = $case)]
        enum $name { $($(#[$word])* $variant,)* }

        impl $name {
            fn value(self) -> Option<HeaderValue> {
                let value: Option<&'static str> = match self { $($name::$variant => $value,)* };
                value.map(HeaderValue::from_static)
            }
        }
    };
}

words! {
    /// Who may show a page in a frame.
    Frame: "lowercase" {
        /// Nobody.
        Deny = Some("DENY"),
        /// Pages of the same origin.
        SameOrigin = Some("SAMEORIGIN"),
        /// Leaves the header out.
        Off = None,
    }
}

words! {
    /// What a browser tells of the page that somebody comes from.
    ReferrerPolicy: "kebab-case" {
        /// Nothing.
        NoReferrer = Some("no-referrer"),
        /// Nothing where TLS ends.
        NoReferrerWhenDowngrade = Some("no-referrer-when-downgrade"),
        /// The origin.
        Origin = Some("origin"),
        /// The origin, to the same origin everything.
        OriginWhenCrossOrigin = Some("origin-when-cross-origin"),
        /// Everything, to the same origin alone.
        SameOrigin = Some("same-origin"),
        /// The origin, nothing where TLS ends.
        StrictOrigin = Some("strict-origin"),
        /// The origin, to the same origin everything, nothing where TLS ends.
        StrictOriginWhenCrossOrigin = Some("strict-origin-when-cross-origin"),
        /// Everything.
        UnsafeUrl = Some("unsafe-url"),
        /// Leaves the header out.
        Off = None,
    }
}

words! {
    /// Who shares a window with a page.
    Opener: "kebab-case" {
        /// Pages of the same origin.
        SameOrigin = Some("same-origin"),
        /// These, and popups that the page opens.
        SameOriginAllowPopups = Some("same-origin-allow-popups"),
        /// Pages of the same origin, and popups either way that go on elsewhere.
        NoopenerAllowPopups = Some("noopener-allow-popups"),
        /// Anybody.
        UnsafeNone = Some("unsafe-none"),
    }
}

words! {
    /// What a page may load.
    Embedder: "kebab-case" {
        /// What allows it.
        RequireCorp = Some("require-corp"),
        /// What allows it, and anything without cookies.
        Credentialless = Some("credentialless"),
        /// Anything.
        UnsafeNone = Some("unsafe-none"),
    }
}

words! {
    /// Whose pages may load a response.
    Resource: "kebab-case" {
        /// Those of the same origin.
        SameOrigin = Some("same-origin"),
        /// Those of the same site.
        SameSite = Some("same-site"),
        /// Anybody's.
        CrossOrigin = Some("cross-origin"),
    }
}

impl Hsts {
    fn value(&self) -> Result<HeaderValue, BuildError> {
        let seconds = self.max_age.0.as_secs();
        if self.preload && (seconds < PRELOAD_SECONDS || !self.include_subdomains) {
            return Err(BuildError::at("hsts.preload", "the lists of browsers do not take this")
                .help("they want `max_age` of at least 365d, and `include_subdomains: true`"));
        }
        let mut value = format!("max-age={seconds}");
        for (is_set, directive) in
            [(self.include_subdomains, "; includeSubDomains"), (self.preload, "; preload")]
        {
            if is_set {
                value.push_str(directive);
            }
        }
        HeaderValue::try_from(value).map_err(|_| BuildError::at("hsts", "not a header's value"))
    }
}

/// A header's value as it is written; none for nothing.
fn text(at: &str, text: Option<&str>) -> Result<Option<HeaderValue>, BuildError> {
    let Some(text) = text.map(str::trim).filter(|text| *text != "off") else { return Ok(None) };
    match HeaderValue::try_from(text) {
        Ok(value) if !text.is_empty() => Ok(Some(value)),
        _ => Err(BuildError::at(at, "not a header's value").help("write it in one line, or leave it out")),
    }
}

/// Directives of policies (Content Security Policy Level 3, and what older browsers know).
const DIRECTIVES: [&str; 29] = [
    "base-uri",
    "block-all-mixed-content",
    "child-src",
    "connect-src",
    "default-src",
    "fenced-frame-src",
    "font-src",
    "form-action",
    "frame-ancestors",
    "frame-src",
    "img-src",
    "manifest-src",
    "media-src",
    "object-src",
    "prefetch-src",
    "report-to",
    "report-uri",
    "require-trusted-types-for",
    "sandbox",
    "script-src",
    "script-src-attr",
    "script-src-elem",
    "style-src",
    "style-src-attr",
    "style-src-elem",
    "trusted-types",
    "upgrade-insecure-requests",
    "webrtc",
    "worker-src",
];

/// Remarks on what nobody knows: a misspelling, which browsers overlook in silence.
fn judge_policy(at: &str, policy: &str, context: &mut BuildContext<'_>) {
    for directive in policy.split(';').filter_map(|part| part.split_ascii_whitespace().next()) {
        let directive = directive.to_ascii_lowercase();
        if !DIRECTIVES.contains(&&*directive) {
            context.warn(at, format!("browsers know no directive `{directive}`, and overlook it"));
        }
    }
}

impl PluginType for SecurityHeaders {
    const KIND: &'static str = "security_headers";
    const SUMMARY: &'static str = "tells browsers what not to do with a response";
    const EXAMPLE: &'static str = "\
- security_headers:
    hsts: { max_age: 365d, include_subdomains: true }
    content_security_policy: \"default-src 'none'; frame-ancestors 'none'\"
    remove: [server, x-powered-by]
";
    type Config = Config;

    fn build(config: Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let hsts = match &config.hsts {
            HstsConfig::On(hsts) => Some(hsts.value()?),
            HstsConfig::Off(OffWord::Off) => None,
        };
        let reported = config.content_security_policy_report_only.as_deref();
        for (at, policy) in [
            ("content_security_policy", Some(&*config.content_security_policy)),
            ("content_security_policy_report_only", reported),
        ] {
            judge_policy(at, policy.filter(|policy| *policy != "off").unwrap_or_default(), context);
        }
        let remove = header_names("remove", &config.remove)?;
        for (index, name) in remove.iter().enumerate() {
            refuse_framing(&format!("remove[{index}]"), name)?;
        }
        let policy = text("content_security_policy", Some(&config.content_security_policy))?;
        let reported = text("content_security_policy_report_only", reported)?;
        let permissions = text("permissions_policy", config.permissions_policy.as_deref())?;
        let headers = [
            (CONTENT_SECURITY_POLICY, policy),
            (CONTENT_SECURITY_POLICY_REPORT_ONLY, reported),
            (X_FRAME_OPTIONS, config.frame_options.value()),
            (X_CONTENT_TYPE_OPTIONS, config.nosniff.then_some(HeaderValue::from_static("nosniff"))),
            (REFERRER_POLICY, config.referrer_policy.value()),
            (PERMISSIONS_POLICY, permissions),
            (OPENER_POLICY, config.cross_origin_opener_policy.and_then(Opener::value)),
            (EMBEDDER_POLICY, config.cross_origin_embedder_policy.and_then(Embedder::value)),
            (RESOURCE_POLICY, config.cross_origin_resource_policy.and_then(Resource::value)),
        ];
        let headers: Box<[_]> =
            headers.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let is_set = |name: &HeaderName| {
            headers.iter().any(|(set, _)| set == name) || hsts.is_some() && *name == STRICT_TRANSPORT_SECURITY
        };
        if let Some(index) = remove.iter().position(is_set) {
            let message = format!("`{}` is set here as well", remove[index]);
            return Err(BuildError::at(format!("remove[{index}]"), message)
                .help("`replace: true` puts the value that is set here in the place of the upstream's"));
        }
        if headers.is_empty() && hsts.is_none() && remove.is_empty() {
            return Err(BuildError::at("", "nothing to do"));
        }
        Ok(SecurityHeaders { headers, hsts, remove: remove.into(), replace: config.replace })
    }
}

impl Plugin for SecurityHeaders {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnResponse]).on_every_response()
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let hsts = self.hsts.as_ref().filter(|_| is_https(exchange));
        let hsts = hsts.map(|value| (&STRICT_TRANSPORT_SECURITY, value));
        let said = |exchange: &Exchange, name: &HeaderName| {
            exchange.response().is_some_and(|response| response.headers().contains_key(name))
        };
        let all = self.headers.iter().map(|(name, value)| (name, value)).chain(hsts);
        for (name, value) in all {
            if !self.replace && said(exchange, name) {
                continue;
            }
            if let Some(mut response) = exchange.response_mut() {
                response.headers.set(name.clone(), value.clone());
            }
        }
        if let Some(mut response) = exchange.response_mut() {
            self.remove.iter().for_each(|name| response.headers.remove(name));
        }
        Hook::CONTINUE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_plugin::{ExchangeBuilder, PluginTester, TestedPlugin, TlsSession};
    use serde_json::{Value, json};

    fn build(table: Value) -> Result<TestedPlugin, BuildError> {
        PluginTester::new().build::<SecurityHeaders>(table)
    }

    /// What a response of an upstream has become, sorted.
    fn marked(table: Value, request: ExchangeBuilder, upstream: &[(&'static str, &str)]) -> Vec<String> {
        let mut exchange = request.response(200, upstream, "").build();
        build(table).unwrap().on_response(&mut exchange).unwrap();
        let headers = exchange.response().unwrap().headers();
        let mut lines: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    const ALONE: [&str; 4] = [
        "content-security-policy: frame-ancestors 'none'",
        "referrer-policy: no-referrer",
        "x-content-type-options: nosniff",
        "x-frame-options: DENY",
    ];

    #[test]
    fn alone_it_sets_what_harms_no_api() {
        assert_eq!(marked(json!({}), ExchangeBuilder::get("/"), &[]), ALONE);
    }

    #[test]
    fn tls_is_asked_for_over_tls_alone() {
        let hsts = |table: Value, request: ExchangeBuilder| {
            let lines = marked(table, request, &[]);
            lines
                .into_iter()
                .find_map(|line| line.strip_prefix("strict-transport-security: ").map(str::to_owned))
        };
        let tls = || ExchangeBuilder::get("/").tls(TlsSession::default());
        assert_eq!(hsts(json!({}), tls()).as_deref(), Some("max-age=31536000"));
        assert_eq!(hsts(json!({}), ExchangeBuilder::get("/")), None);
        // Only a trusted proxy's word gets this far.
        let proxied = ExchangeBuilder::get("/").header("x-forwarded-proto", "https");
        assert_eq!(hsts(json!({}), proxied).as_deref(), Some("max-age=31536000"));
        let all = json!({"hsts": {"max_age": "730d", "include_subdomains": true, "preload": true}});
        assert_eq!(hsts(all, tls()).as_deref(), Some("max-age=63072000; includeSubDomains; preload"));
        assert_eq!(hsts(json!({"hsts": {"max_age": "0s"}}), tls()).as_deref(), Some("max-age=0"));
        assert_eq!(hsts(json!({"hsts": "off"}), tls()), None);
    }

    #[test]
    fn an_upstreams_own_word_stays_unless_it_is_replaced() {
        let upstream =
            [("referrer-policy", "unsafe-url"), ("server", "old"), ("x-frame-options", "SAMEORIGIN")];
        let lines = marked(json!({"remove": ["server"]}), ExchangeBuilder::get("/"), &upstream);
        assert!(lines.contains(&"referrer-policy: unsafe-url".to_owned()), "{lines:?}");
        assert!(lines.contains(&"x-frame-options: SAMEORIGIN".to_owned()), "{lines:?}");
        assert!(!lines.iter().any(|line| line.starts_with("server")), "{lines:?}");
        let table = json!({"replace": true, "remove": ["server"]});
        assert_eq!(marked(table, ExchangeBuilder::get("/"), &upstream), ALONE);
    }

    #[test]
    fn every_header_can_be_said_or_left_out() {
        let table = json!({
            "content_security_policy": "off", "frame_options": "sameorigin", "nosniff": false,
            "referrer_policy": "off", "permissions_policy": "camera=()",
            "content_security_policy_report_only": "default-src 'self'",
            "cross_origin_opener_policy": "same-origin-allow-popups",
            "cross_origin_embedder_policy": "require-corp", "cross_origin_resource_policy": "same-site",
        });
        assert_eq!(
            marked(table, ExchangeBuilder::get("/"), &[]),
            [
                "content-security-policy-report-only: default-src 'self'",
                "cross-origin-embedder-policy: require-corp",
                "cross-origin-opener-policy: same-origin-allow-popups",
                "cross-origin-resource-policy: same-site",
                "permissions-policy: camera=()",
                "x-frame-options: SAMEORIGIN",
            ]
        );
    }

    #[test]
    fn what_cannot_be_is_refused_where_it_stands() {
        let off = json!({
            "hsts": "off", "content_security_policy": "off", "frame_options": "off", "nosniff": false,
            "referrer_policy": "off",
        });
        for (table, path) in [
            (json!({"hsts": {"preload": true}}), "hsts.preload"),
            (json!({"hsts": {"preload": true, "include_subdomains": true, "max_age": "1d"}}), "hsts.preload"),
            (json!({"content_security_policy": "a\r\nx: y"}), "content_security_policy"),
            (json!({"permissions_policy": ""}), "permissions_policy"),
            (json!({"remove": ["x", "content-length"]}), "remove[1]"),
            (json!({"remove": ["x-frame-options"]}), "remove[0]"),
            (json!({"remove": ["strict-transport-security"]}), "remove[0]"),
            (off, ""),
        ] {
            assert_eq!(build(table).err().map(|error| error.path).as_deref(), Some(path));
        }
    }

    #[test]
    fn a_directive_that_no_browser_knows_is_remarked_on() {
        let mut tester = PluginTester::new();
        let policy = "default-src 'none'; Script-Src-Elem 'self'; frame-ancestor 'none'; sandbox";
        tester.build::<SecurityHeaders>(json!({"content_security_policy": policy})).unwrap();
        let [warning] = tester.warnings() else { panic!("{:?}", tester.warnings()) };
        assert!(warning.message.contains("`frame-ancestor`"), "{warning:?}");
    }
}
