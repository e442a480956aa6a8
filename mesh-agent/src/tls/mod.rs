//! TLS sessions of workloads: 1.3 only, both sides with a certificate, ALPN `h2`, no server name, no resumption. Made from
//! the wallet of now; never holds a key of its own.

mod verify;

use std::sync::Arc;

use mesh_api::Identity;
use rustls::{
    ClientConfig, ServerConfig, SupportedCipherSuite,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::ServerName,
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};
pub use verify::{PeerError, peer_identity};

use crate::certificates::{TrustBundle, Wallet, WorkloadCertificate};

/// The protocol of every session. Source: RFC 9113, section 3.2.
pub const ALPN: &[u8] = b"h2";

/// Why no session can be started.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TlsError {
    /// No certificate for the local workload (yet).
    #[error("no certificate for {0}")]
    NoCertificate(Identity),
    /// No roots to verify peers against (yet).
    #[error("no trust bundle")]
    NoTrust,
    /// Its lifetime is over; no new session uses it.
    #[error("the certificate of {0} has expired")]
    Expired(Identity),
    /// rustls refuses the combination.
    #[error("rustls: {0}")]
    Config(#[from] rustls::Error),
}

/// What one end of a session shows and trusts.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The local workload's.
    pub certificate: Arc<WorkloadCertificate>,
    /// For the peer's.
    pub trust: Arc<TrustBundle>,
}

impl Credentials {
    /// Those of `identity` in the wallet.
    ///
    /// # Errors
    /// The wallet lacks them, or the certificate has expired.
    pub fn of(wallet: &Wallet, identity: &Identity) -> Result<Self, TlsError> {
        let missing = || TlsError::NoCertificate(identity.clone());
        let certificate = wallet.certificates.get(identity).ok_or_else(missing)?.clone();
        if certificate.not_after <= std::time::SystemTime::now() {
            return Err(TlsError::Expired(identity.clone()));
        }
        let trust = wallet.trust.clone().ok_or(TlsError::NoTrust)?;
        Ok(Self { certificate, trust })
    }

    /// Whether both are the very same objects.
    pub fn are_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.certificate, &other.certificate) && Arc::ptr_eq(&self.trust, &other.trust)
    }

    fn resolver(&self) -> Arc<SingleCertAndKey> {
        let CertifiedKey { cert, key, ocsp } = &*self.certificate.certified_key;
        Arc::new(SingleCertAndKey::from(CertifiedKey { cert: cert.clone(), key: key.clone(), ocsp: ocsp.clone() }))
    }
}

/// AES-128 first: as safe here and cheaper; ChaCha20 is for machines without AES instructions. X25519MLKEM768 first (the
/// feature `prefer-post-quantum`).
fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    let make = || {
        let cipher_suites: Vec<SupportedCipherSuite> = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384];
        Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
    };
    PROVIDER.get_or_init(make).clone()
}

/// A client's configuration: the peer must prove one of `expected`.
///
/// # Errors
/// rustls refuses the certificate's key.
pub fn client(credentials: &Credentials, expected: Arc<[Identity]>) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let verifier = verify::ServerName::new(credentials.trust.roots.clone(), expected, provider.clone());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(credentials.resolver());
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// A server's configuration: the peer must prove an identity of `trust_domain`.
///
/// # Errors
/// The bundle has no root, or rustls refuses the certificate's key.
pub fn server(credentials: &Credentials, trust_domain: &str) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let verifier = verify::ClientDomain::new(credentials.trust.roots.clone(), trust_domain, provider.clone())
        .ok_or(TlsError::NoTrust)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(credentials.resolver());
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// Whose chain it is, judged as in sessions of [`server`].
#[cfg(any(test, fuzzing))]
pub(crate) fn verify_client(
    trust: &TrustBundle,
    trust_domain: &str,
    chain: &[rustls::pki_types::CertificateDer<'_>],
    now: rustls::pki_types::UnixTime,
) -> Result<Identity, TlsError> {
    use rustls::server::danger::ClientCertVerifier;
    let verifier = verify::ClientDomain::new(trust.roots.clone(), trust_domain, provider()).ok_or(TlsError::NoTrust)?;
    let (leaf, others) = chain.split_first().ok_or(TlsError::NoTrust)?;
    verifier.verify_client_cert(leaf, others, now)?;
    peer_identity(leaf).map_err(|error| TlsError::Config(error.into()))
}

/// What rustls says, and that it is a matter of clocks where it is: those of two ends, or of one end and of who signed.
pub fn explained(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    if text.contains("not valid yet") || text.contains("NotValidYet") {
        format!("{text}: this node's clock is behind, or that of mesh-control ahead; synchronise the clocks")
    } else if text.contains("alert: CertificateExpired") {
        format!("{text}: the peer finds our certificate expired or not valid yet; are the clocks synchronised?")
    } else {
        text
    }
}

/// What a client calls the peer: nothing on the wire (no SNI is sent), and its certificate is judged by URI, not by this.
pub fn no_name(address: std::net::IpAddr) -> ServerName<'static> {
    ServerName::IpAddress(address.into())
}
