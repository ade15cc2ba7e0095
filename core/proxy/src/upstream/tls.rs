//! TLS towards endpoints: whom to believe, and as whom to appear.

use std::sync::Arc;

use bytes::Bytes;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, SupportedProtocolVersion,
    version,
};

use super::Protocol;
use crate::tls::{Certificate, TlsError, TlsVersion, certified, chain, fault};

/// How the gateway speaks TLS to endpoints.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// The authorities that sign their certificates, PEM; the system's if it is missing.
    pub ca_pem: Option<Bytes>,
    /// What the gateway shows to servers that ask for it.
    pub certificate: Option<Certificate>,
    /// The lowest version.
    pub min_version: TlsVersion,
    /// What is offered to them (RFC 7301).
    pub protocol: Protocol,
    /// Whether a server must show a certificate of such an authority, for its name.
    pub verify: bool,
}

/// The configuration of TLS towards endpoints. Reads the system's authorities, if those are asked for.
pub fn client_config(settings: &ClientTls) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions(settings.min_version))
        .map_err(|error| fault(None, "min_version", error.to_string()))?;
    let verifier: Arc<dyn ServerCertVerifier> = if settings.verify {
        let roots = roots(settings).map_err(|message| fault(None, "ca", message))?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        verifier.build().map_err(|error| fault(None, "ca", error.to_string()))?
    } else {
        Arc::new(Anybody(provider.clone()))
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match &settings.certificate {
        None => builder.with_no_client_auth(),
        Some(certificate) => {
            let certified = certified(certificate, &provider).map_err(|(part, message)| {
                let part = if part == "key" { "certificate.key" } else { "certificate.cert" };
                fault(None, part, message)
            })?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
    };
    let offered: &[&[u8]] = match settings.protocol {
        Protocol::Http1 => &[b"http/1.1"],
        Protocol::Http2 => &[b"h2"],
        Protocol::Auto => &[b"h2", b"http/1.1"],
    };
    config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

fn versions(lowest: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];
    match lowest {
        TlsVersion::V12 => BOTH,
        TlsVersion::V13 => &BOTH[..1],
    }
}

fn roots(settings: &ClientTls) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match &settings.ca_pem {
        Some(pem) => {
            for certificate in chain(pem)? {
                roots.add(certificate).map_err(|error| error.to_string())?;
            }
        }
        None => {
            let system = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(system.certs);
            if roots.is_empty() {
                let why = system.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
                return Err(format!("the system has no certificate authorities{why}"));
            }
        }
    }
    Ok(roots)
}

/// Believes whatever certificate a server shows, if the server has its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
