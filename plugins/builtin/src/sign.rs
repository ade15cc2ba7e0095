//! `sign`: signs what goes upstream (RFC 9421), so that the upstream knows it came through here.
//!
//! ```yaml
//! - sign:
//!     algorithm: hmac-sha256
//!     key: env:SIGNING_KEY
//!     key_id: gateway-1
//!     components: ["@method", "@authority", "@path", "@query"]
//!     if_present: [content-type, authorization]
//!     expires: 60s
//!     digest: true
//! ```
//!
//! Runs once per attempt, on the headers as they go out, and writes `Signature-Input` and `Signature`
//! in place of what the client sent under these names. A component that is missing from the request
//! is the plugin's failure, as the standard has it; list what may be missing in `if_present`.
//!
//! With `digest: true` the whole body is awaited, `Content-Digest` (RFC 9530, sha-256) is written and
//! signed along. The gateway frames the message after the last plugin, so do not sign `content-length`.

mod key;

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue};
use portcullis_plugin::{
    BodyWish, BuildContext, BuildError, Decision, Exchange, Hook, HookName, Needs, Offload, Plugin,
    PluginError, PluginType, Request, SecretRef, Size, Span,
};
use schemars::JsonSchema;
use serde::Deserialize;

use self::key::{Algorithm, Key, KeyEncoding};
use crate::names::header_name;

const SIGNATURE: HeaderName = HeaderName::from_static("signature");
const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

/// Bodies beyond this are hashed apart from the worker: a digest of this many bytes takes half a
/// millisecond on a processor without instructions for SHA-256.
const AT_ONCE: usize = 128 << 10;

/// Signs outgoing requests.
#[derive(Debug)]
pub(crate) struct Sign {
    key: Key,
    label: String,
    components: Vec<Component>,
    if_present: Vec<HeaderName>,
    parameters: Parameters,
    scheme: Scheme,
    /// The longest body whose digest is made; none for no digest.
    digest: Option<usize>,
    offload: Offload,
}

/// How requests are signed.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The signature algorithm.
    algorithm: Algorithm,
    /// The key: for `hmac-sha256` the shared secret, else a PKCS#8 private key as PEM.
    key: SecretRef,
    /// How the shared secret of `hmac-sha256` is written. Default: `base64`.
    #[serde(default)]
    key_encoding: KeyEncoding,
    /// The key's name, by which the upstream finds it. Default: not stated.
    key_id: Option<String>,
    /// What is signed: header names, `@method`, `@authority`, `@path`, `@query`, `@target-uri`,
    /// `@request-target`, `@scheme`. Default: `["@method", "@authority", "@path", "@query"]`.
    #[serde(default = "default_components")]
    components: Vec<String>,
    /// Headers that are signed if the request has them. Default: none.
    #[serde(default)]
    if_present: Vec<String>,
    /// The signature's label in both headers. Default: `sig`.
    #[serde(default = "default_label")]
    label: String,
    /// How long the signature is valid, e.g. `60s`. Default: not stated.
    expires: Option<Span>,
    /// Whether a random nonce is added, for upstreams that refuse repeats. Default: `false`.
    #[serde(default)]
    nonce: bool,
    /// Whether the algorithm is stated; an upstream should know it from the key. Default: `false`.
    #[serde(default)]
    state_algorithm: bool,
    /// The upstream's scheme, for `@scheme`, `@target-uri` and the port that `@authority` leaves out.
    /// Default: `https`.
    #[serde(default)]
    scheme: Scheme,
    /// Whether `Content-Digest` is written and signed; waits for the whole body. Default: `false`.
    #[serde(default)]
    digest: bool,
    /// The longest body for `digest`; a longer one gets a 413. Default: `1MiB`.
    #[serde(default = "default_limit")]
    limit: Size,
}

fn default_components() -> Vec<String> {
    ["@method", "@authority", "@path", "@query"].map(str::to_owned).to_vec()
}

fn default_label() -> String {
    "sig".to_owned()
}

fn default_limit() -> Size {
    Size::mib(1)
}

/// The upstream's scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Scheme {
    /// HTTP.
    Http,
    /// HTTP over TLS.
    #[default]
    Https,
}

/// A part of the request that is signed (RFC 9421, 2).
#[derive(Debug, Clone, PartialEq, Eq)]
enum Component {
    Method,
    Authority,
    Path,
    Query,
    TargetUri,
    RequestTarget,
    Scheme,
    Header(HeaderName),
}

/// Parameters that are the same in every signature.
#[derive(Debug, Default)]
struct Parameters {
    lifetime: Option<Duration>,
    nonce: bool,
    /// `;keyid="..."`, `;alg="..."`, as they are written.
    fixed: String,
}

/// What is particular to one signature.
struct Moment {
    /// Seconds since 1970.
    created: u64,
    nonce: Option<String>,
}

/// The headers that carry a signature.
#[derive(Debug, PartialEq)]
struct Signed {
    input: String,
    signature: String,
}

impl Sign {
    /// The decision: the signature of `request` (RFC 9421, 3.1).
    fn sign(&self, request: &Request, moment: &Moment) -> Result<Signed, PluginError> {
        let present = self.if_present.iter().filter(|name| request.headers().contains_key(*name));
        let present: Vec<_> = present.map(|name| Component::Header(name.clone())).collect();
        let components: Vec<_> = self.components.iter().chain(&present).collect();
        let parameters = self.signature_params(&components, moment);
        let base = self.base(request, &components, &parameters)?;
        let signature = self.key.sign(base.as_bytes()).map_err(PluginError::failed)?;
        Ok(Signed {
            input: format!("{}={parameters}", self.label),
            signature: format!("{}=:{}:", self.label, STANDARD.encode(signature)),
        })
    }

    /// The text that is signed (RFC 9421, 2.5).
    fn base(
        &self,
        request: &Request,
        components: &[&Component],
        parameters: &str,
    ) -> Result<String, PluginError> {
        let mut base = String::new();
        for component in components {
            let name = component.name();
            let value = self.value(component, request)?;
            base.push_str(&format!("\"{name}\": {value}\n"));
        }
        base.push_str(&format!("\"@signature-params\": {parameters}"));
        Ok(base)
    }

    fn signature_params(&self, components: &[&Component], moment: &Moment) -> String {
        let names: Vec<_> = components.iter().map(|component| format!("\"{}\"", component.name())).collect();
        let mut params = format!("({});created={}", names.join(" "), moment.created);
        // Writing to a string does not fail.
        if let Some(lifetime) = self.parameters.lifetime {
            let _ = write!(params, ";expires={}", moment.created.saturating_add(lifetime.as_secs()));
        }
        if let Some(nonce) = &moment.nonce {
            let _ = write!(params, ";nonce=\"{nonce}\"");
        }
        params.push_str(&self.parameters.fixed);
        params
    }

    /// A component's value (RFC 9421, 2.1 and 2.2).
    fn value(&self, component: &Component, request: &Request) -> Result<String, PluginError> {
        Ok(match component {
            Component::Method => request.method().as_str().to_owned(),
            Component::Authority => self.authority(request)?,
            Component::Path => request.path().to_owned(),
            Component::Query => format!("?{}", request.query().unwrap_or_default()),
            Component::RequestTarget => request.target().as_str().to_owned(),
            Component::Scheme => self.scheme.as_str().to_owned(),
            Component::TargetUri => {
                format!("{}://{}{}", self.scheme.as_str(), self.authority(request)?, request.target())
            }
            Component::Header(name) => header_value(request, name)?,
        })
    }

    fn authority(&self, request: &Request) -> Result<String, PluginError> {
        let host = header_value(request, &HOST)?.to_ascii_lowercase();
        Ok(host.strip_suffix(self.scheme.port()).map(str::to_owned).unwrap_or(host))
    }
}

/// All values of a header as one, each without the space around it.
fn header_value(request: &Request, name: &HeaderName) -> Result<String, PluginError> {
    let values: Option<Vec<_>> =
        request.headers().get_all(name).iter().map(|value| value.to_str().ok().map(str::trim)).collect();
    match values {
        Some(values) if !values.is_empty() => Ok(values.join(", ")),
        Some(_) => Err(PluginError::failed(format!("the request has no `{name}` to sign"))),
        None => Err(PluginError::failed(format!("`{name}` holds bytes that can't be signed"))),
    }
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    /// The port that a normalised authority leaves out (RFC 9110, 4.2.3).
    fn port(self) -> &'static str {
        match self {
            Scheme::Http => ":80",
            Scheme::Https => ":443",
        }
    }
}

impl Component {
    fn parse(at: &str, text: &str) -> Result<Self, BuildError> {
        Ok(match text {
            "@method" => Component::Method,
            "@authority" => Component::Authority,
            "@path" => Component::Path,
            "@query" => Component::Query,
            "@target-uri" => Component::TargetUri,
            "@request-target" => Component::RequestTarget,
            "@scheme" => Component::Scheme,
            derived if derived.starts_with('@') => {
                return Err(BuildError::at(at, format!("`{derived}` is not a component of a request")).help(
                    "there are `@method`, `@authority`, `@path`, `@query`, `@target-uri`, `@request-target`, \
                     `@scheme` and header names",
                ));
            }
            name => Component::Header(header_name(at, name)?),
        })
    }

    fn name(&self) -> &str {
        match self {
            Component::Method => "@method",
            Component::Authority => "@authority",
            Component::Path => "@path",
            Component::Query => "@query",
            Component::TargetUri => "@target-uri",
            Component::RequestTarget => "@request-target",
            Component::Scheme => "@scheme",
            Component::Header(name) => name.as_str(),
        }
    }
}

impl PluginType for Sign {
    const KIND: &'static str = "sign";
    const SUMMARY: &'static str = "signs outgoing requests with HTTP message signatures (RFC 9421)";
    const EXAMPLE: &'static str = "\
- sign:
    algorithm: hmac-sha256
    key: env:SIGNING_KEY
    key_id: gateway-1
    components: ['@method', '@authority', '@path', '@query']
    if_present: [content-type, authorization]
    expires: 60s
    digest: true
";
    type Config = Config;

    fn build(config: Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let secret = context.secret("key", &config.key)?;
        let key = Key::parse(config.algorithm, config.key_encoding, &secret)?;
        let mut components = Components::default();
        for (index, text) in config.components.iter().enumerate() {
            let at = format!("components[{index}]");
            components.take(&at, Component::parse(&at, text)?, context)?;
        }
        if config.digest && !components.0.contains(&Component::Header(CONTENT_DIGEST)) {
            components.0.push(Component::Header(CONTENT_DIGEST));
        }
        let signed = components.0.clone();
        let mut if_present = Vec::new();
        for (index, text) in config.if_present.iter().enumerate() {
            let at = format!("if_present[{index}]");
            let name = header_name(&at, text)?;
            components.take(&at, Component::Header(name.clone()), context)?;
            if_present.push(name);
        }
        if signed.is_empty() {
            return Err(BuildError::at("components", "nothing is signed"));
        }
        let fixed = fixed_parameters(&config)?;
        Ok(Sign {
            key,
            label: label(config.label)?,
            components: signed,
            if_present,
            parameters: Parameters {
                lifetime: config.expires.map(|span| span.0),
                nonce: config.nonce,
                fixed,
            },
            scheme: config.scheme,
            digest: config.digest.then_some(config.limit.0),
            offload: context.offload(),
        })
    }
}

/// Components, each once, as the standard demands.
#[derive(Default)]
struct Components(Vec<Component>);

impl Components {
    fn take(
        &mut self,
        at: &str,
        component: Component,
        context: &mut BuildContext<'_>,
    ) -> Result<(), BuildError> {
        if self.0.contains(&component) {
            return Err(BuildError::at(at, format!("`{}` is signed already", component.name())));
        }
        if component == Component::Header(SIGNATURE) || component == Component::Header(SIGNATURE_INPUT) {
            return Err(BuildError::at(
                at,
                format!("`{}` is replaced by the signature itself", component.name()),
            ));
        }
        if component == Component::Header(CONTENT_LENGTH) {
            context.warn(at, "the gateway may frame the message anew after it is signed; use `digest: true`");
        }
        self.0.push(component);
        Ok(())
    }
}

fn fixed_parameters(config: &Config) -> Result<String, BuildError> {
    let mut fixed = String::new();
    if let Some(id) = &config.key_id {
        // A structured field's string (RFC 8941, 3.3.3) without what would need an escape.
        if id.is_empty()
            || !id.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\')
        {
            return Err(BuildError::at("key_id", "must be visible ASCII without quotes and backslashes"));
        }
        fixed.push_str(&format!(";keyid=\"{id}\""));
    }
    if config.state_algorithm {
        fixed.push_str(&format!(";alg=\"{}\"", config.algorithm.name()));
    }
    Ok(fixed)
}

/// A structured field's key (RFC 8941, 3.1.2).
fn label(label: String) -> Result<String, BuildError> {
    let begins = label.starts_with(|first: char| first.is_ascii_lowercase() || first == '*');
    let valid = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'*');
    match begins && label.bytes().all(valid) {
        true => Ok(label),
        false => Err(BuildError::at("label", "must be lower case letters, digits, `_`, `-`, `.` and `*`")),
    }
}

impl Plugin for Sign {
    fn needs(&self) -> Needs {
        let body = self.digest.map_or(BodyWish::None, |limit| BodyWish::Whole { limit });
        Needs::hooks([HookName::OnUpstream]).request_body(body)
    }

    fn on_upstream<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        if self.digest.is_none() {
            return Hook::from(self.write(None, exchange));
        }
        let body: Bytes = exchange.request_body().cloned().unwrap_or_default();
        if body.len() <= AT_ONCE {
            return Hook::from(self.write(Some(content_digest(&body)), exchange));
        }
        Hook::Wait(Box::pin(async move {
            let digest = self.offload.run(move || content_digest(&body)).await?;
            self.write(Some(digest), exchange)
        }))
    }
}

impl Sign {
    fn write(&self, digest: Option<String>, exchange: &mut Exchange) -> Result<Decision, PluginError> {
        let mut outgoing =
            exchange.outgoing_mut().ok_or_else(|| PluginError::failed("there is no attempt"))?;
        if let Some(digest) = digest {
            outgoing.headers.set(CONTENT_DIGEST, value(digest)?);
        }
        let request = exchange.outgoing().ok_or_else(|| PluginError::failed("there is no attempt"))?;
        let signed = self.sign(request, &self.now()?)?;
        let (input, signature) = (value(signed.input)?, value(signed.signature)?);
        if let Some(mut outgoing) = exchange.outgoing_mut() {
            outgoing.headers.set(SIGNATURE_INPUT, input);
            outgoing.headers.set(SIGNATURE, signature);
        }
        Ok(Decision::Continue)
    }

    fn now(&self) -> Result<Moment, PluginError> {
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_err(|_| PluginError::failed("the clock stands before 1970"))?
            .as_secs();
        let nonce = self.parameters.nonce.then(nonce).transpose()?;
        Ok(Moment { created, nonce })
    }
}

fn nonce() -> Result<String, PluginError> {
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| PluginError::failed("no random numbers"))?;
    Ok(URL_SAFE_NO_PAD.encode(random))
}

fn content_digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(digest(&SHA256, body)))
}

fn value(text: String) -> Result<HeaderValue, PluginError> {
    HeaderValue::try_from(text).map_err(|_| PluginError::failed("the signature does not fit into a header"))
}

#[cfg(test)]
mod tests;
