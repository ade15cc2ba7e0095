//! TLS towards clients, and what TLS towards endpoints shares with it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};

/// How a listener terminates TLS.
#[derive(Debug, Clone)]
pub struct TlsSettings {
    /// Certificates, chosen by the server name that the client asks for; the first is the default.
    pub certificates: Vec<Certificate>,
    /// The lowest version.
    pub min_version: TlsVersion,
    /// Ciphers and key exchanges.
    pub policy: TlsPolicy,
    /// Protocols offered, in order of preference.
    pub alpn: Vec<Vec<u8>>,
    /// Whether clients show a certificate.
    pub client_auth: Option<ClientAuth>,
}

/// A certificate chain with its key.
#[derive(Clone)]
pub struct Certificate {
    /// The chain, PEM, leaf first.
    pub cert_pem: Bytes,
    /// The private key, PEM.
    pub key_pem: Bytes,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate")
    }
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    V12,
    /// TLS 1.3.
    V13,
}

/// Which ciphers and key exchanges are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsPolicy {
    /// TLS 1.3 only; hybrid post-quantum, X25519 and P-256 key exchange.
    Modern,
    /// TLS 1.2 with forward secrecy and authenticated encryption besides.
    Intermediate,
}

/// Client certificates.
#[derive(Debug, Clone)]
pub struct ClientAuth {
    /// Whether a handshake without one fails.
    pub required: bool,
    /// The authorities that sign them, PEM.
    pub ca_pem: Bytes,
}

/// Why TLS can't be set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsError {
    /// The index of the certificate at fault; none for the settings as a whole.
    pub certificate: Option<usize>,
    /// The setting at fault, such as `cert`, `key`, `ca` or `min_version`.
    pub part: &'static str,
    /// What is wrong.
    pub message: String,
}

pub(crate) fn fault(certificate: Option<usize>, part: &'static str, message: impl Into<String>) -> TlsError {
    TlsError { certificate, part, message: message.into() }
}

/// The configuration of a TLS listener.
pub fn server_config(settings: &TlsSettings) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(provider(settings.policy));
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions(settings))
        .map_err(|error| fault(None, "min_version", error.to_string()))?;
    let builder = match &settings.client_auth {
        Some(auth) => builder.with_client_cert_verifier(verifier(auth, &provider)?),
        None => builder.with_no_client_auth(),
    };
    let resolver = Arc::new(ByName::new(&settings.certificates, &provider)?);
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = settings.alpn.clone();
    // A key that opens tickets must not outlive the process, and is rotated within it.
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(|error| fault(None, "cert", error.to_string()))?;
    Ok(Arc::new(config))
}

fn provider(policy: TlsPolicy) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    if policy == TlsPolicy::Modern {
        use aws_lc_rs::kx_group::{SECP256R1, X25519, X25519MLKEM768};
        provider.kx_groups = vec![X25519MLKEM768, X25519, SECP256R1];
    }
    provider
}

fn versions(settings: &TlsSettings) -> &'static [&'static SupportedProtocolVersion] {
    const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];
    match (settings.policy, settings.min_version) {
        (TlsPolicy::Intermediate, TlsVersion::V12) => BOTH,
        _ => &BOTH[..1],
    }
}

type Verifier = Arc<dyn rustls::server::danger::ClientCertVerifier>;

fn verifier(auth: &ClientAuth, provider: &Arc<CryptoProvider>) -> Result<Verifier, TlsError> {
    let at = |message: String| fault(None, "client_auth.ca", message);
    let mut roots = RootCertStore::empty();
    for certificate in chain(&auth.ca_pem).map_err(at)? {
        roots.add(certificate).map_err(|error| at(error.to_string()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let builder = if auth.required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| at(error.to_string()))
}

pub(crate) fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| format!("not a PEM certificate: {error}"))?;
    if chain.is_empty() {
        return Err("holds no certificate: a PEM file has `-----BEGIN CERTIFICATE-----`".into());
    }
    Ok(chain)
}

/// A certificate with its key, if they belong together; else the part at fault and why.
pub(crate) fn certified(
    certificate: &Certificate,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, (&'static str, String)> {
    let chain = chain(&certificate.cert_pem).map_err(|message| ("cert", message))?;
    webpki::EndEntityCert::try_from(&chain[0])
        .map_err(|error| ("cert", format!("not a usable certificate: {error}")))?;
    let key = PrivateKeyDer::from_pem_slice(&certificate.key_pem)
        .map_err(|error| ("key", format!("not a PEM private key: {error}")))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => ("key", "does not belong to the certificate".to_owned()),
        error => ("key", error.to_string()),
    })
}

/// The DNS names of a certificate, in lower case.
fn names(certified: &CertifiedKey) -> Vec<String> {
    let leaf = certified.cert.first().map(webpki::EndEntityCert::try_from);
    let names = leaf.iter().flatten().flat_map(|leaf| leaf.valid_dns_names());
    names.map(str::to_ascii_lowercase).collect()
}

/// Chooses a certificate by the server name that the client asks for.
#[derive(Debug)]
struct ByName {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows the star: `.example.com`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    default: Arc<CertifiedKey>,
}

impl ByName {
    fn new(certificates: &[Certificate], provider: &CryptoProvider) -> Result<Self, TlsError> {
        let (mut exact, mut wildcard, mut default) = (HashMap::new(), HashMap::new(), None);
        for (at, certificate) in certificates.iter().enumerate() {
            let certified =
                certified(certificate, provider).map_err(|(part, message)| fault(Some(at), part, message))?;
            let names = names(&certified);
            let certified = Arc::new(certified);
            for name in names {
                match name.strip_prefix('*') {
                    Some(suffix) => wildcard.entry(suffix.to_owned()).or_insert_with(|| certified.clone()),
                    None => exact.entry(name).or_insert_with(|| certified.clone()),
                };
            }
            default.get_or_insert(certified);
        }
        let default = default.ok_or_else(|| fault(None, "cert", "needs at least one certificate"))?;
        Ok(ByName { exact, wildcard, default })
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let found = hello.server_name().and_then(|name| {
            let name = name.to_ascii_lowercase();
            let dot = name.find('.').unwrap_or(name.len());
            self.exact.get(&name).or_else(|| self.wildcard.get(&name[dot..])).cloned()
        });
        Some(found.unwrap_or_else(|| self.default.clone()))
    }
}

/// What a finished handshake settled, for plugins.
pub(crate) fn session(connection: &rustls::ServerConnection) -> portcullis_plugin::TlsSession {
    portcullis_plugin::TlsSession {
        version: match connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "",
        },
        server_name: connection.server_name().map(Into::into),
        client_chain: connection
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|certificate| Bytes::copy_from_slice(certificate))
            .collect(),
    }
}
