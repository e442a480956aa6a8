//! Whose certificate: the chain must be valid and the leaf must have exactly one URI name, a SPIFFE one that is expected.
//! Nothing else in a certificate names anybody.

use std::{fmt, sync::Arc};

use mesh_api::Identity;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::{extensions::GeneralName, prelude::FromDer};

/// Why a valid chain's leaf is nobody that we talk to.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The certificate cannot be read.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// X.509-SVID asks for exactly one. Source: SPIFFE X509-SVID, section 2.
    #[error("the certificate has {0} URI names, not one")]
    UriNames(usize),
    /// The URI is no workload's.
    #[error("the certificate's name is {0:?}: {1}")]
    Name(String, mesh_api::IdentityError),
    /// Somebody else.
    #[error("the certificate is of {0}, not of the workload that was dialled")]
    Unexpected(Identity),
    /// Not of our mesh.
    #[error("the certificate is of {0}, of another trust domain")]
    Foreign(Identity),
}

/// rustls prints other people's errors by this: in words, then.
impl fmt::Debug for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Self {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// The one SPIFFE identity of a certificate.
///
/// # Errors
/// The certificate has no URI name, several, or one of another shape.
pub fn peer_identity(leaf: &CertificateDer<'_>) -> Result<Identity, PeerError> {
    let (_, certificate) =
        x509_parser::certificate::X509Certificate::from_der(leaf).map_err(|_| PeerError::Unreadable)?;
    let names = certificate.subject_alternative_name().map_err(|_| PeerError::Unreadable)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    match uris[..] {
        [uri] => Identity::parse(uri).map_err(|error| PeerError::Name(uri.into(), error)),
        _ => Err(PeerError::UriNames(uris.len())),
    }
}

/// How both verifiers check that the peer holds its certificate's key: as the provider can. rustls asks for TLS 1.2, too.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            leaf: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Verifies servers: one of the expected identities.
pub(super) struct ServerName {
    roots: Arc<RootCertStore>,
    expected: Arc<[Identity]>,
    provider: Arc<CryptoProvider>,
}

impl ServerName {
    pub(super) fn new(roots: Arc<RootCertStore>, expected: Arc<[Identity]>, provider: Arc<CryptoProvider>) -> Self {
        Self { roots, expected, provider }
    }
}

impl fmt::Debug for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerName").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for ServerName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &rustls::pki_types::ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let identity = peer_identity(leaf)?;
        if !self.expected.contains(&identity) {
            return Err(PeerError::Unexpected(identity).into());
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

/// Verifies clients: any identity of our trust domain.
#[derive(Debug)]
pub(super) struct ClientDomain {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: String,
    provider: Arc<CryptoProvider>,
}

impl ClientDomain {
    /// None when there is no root.
    pub(super) fn new(roots: Arc<RootCertStore>, trust_domain: &str, provider: Arc<CryptoProvider>) -> Option<Self> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build().ok()?;
        Some(Self { chain, trust_domain: trust_domain.into(), provider })
    }
}

impl ClientCertVerifier for ClientDomain {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Nobody chooses by it, and it would be sent in the clear handshake's first answer for nothing.
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        let identity = peer_identity(leaf)?;
        if identity.trust_domain() != self.trust_domain {
            return Err(PeerError::Foreign(identity).into());
        }
        Ok(verified)
    }

    signatures!();
}
