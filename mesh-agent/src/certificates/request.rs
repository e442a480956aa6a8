//! One certificate: the key and request that are sent, and the checks that the answer must pass before it is used. The
//! answer is judged as a peer would judge it, so that a bad one is found here and not in every handshake.

use std::sync::Arc;

use mesh_api::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::{
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};

use super::{CertificateFacts, TrustBundle, WorkloadCertificate};

/// Why a certificate cannot be asked for or used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The key or the request cannot be made.
    #[error("make a key and a request: {0}")]
    Request(rcgen::Error),
    /// The answer holds no certificate, or something else.
    #[error("the answer's certificate {number} is malformed: {reason}")]
    Malformed {
        /// Counted from 1.
        number: usize,
        /// What the parser says.
        reason: String,
    },
    /// The answer holds fewer certificates than a leaf and its root.
    #[error("the answer holds {0} certificates, not a leaf with its chain up to a root")]
    Incomplete(usize),
    /// The leaf is for another key than ours, or for another kind of key.
    #[error("the certificate is not for our key: {0}")]
    Key(rustls::Error),
    /// The leaf's names are not exactly the one that was asked for.
    #[error("the certificate names {found:?}, not {expected} alone")]
    Names {
        /// What was asked for.
        expected: Identity,
        /// All names of the leaf.
        found: Vec<String>,
    },
    /// The chain does not lead to a root of the bundle, or is not valid now.
    #[error("the certificate does not verify: {0}")]
    Chain(String),
}

/// A key and the request for its certificate. One key per certificate: it is never used for a second one.
#[derive(Debug)]
pub struct CertificateRequest {
    identity: Identity,
    key: KeyPair,
    /// PEM, with the identity as its only subject alternative name.
    pub csr_pem: String,
}

impl CertificateRequest {
    /// Makes a P-256 key and its request.
    ///
    /// # Errors
    /// The library fails.
    pub fn new(identity: &Identity) -> Result<Self, CertificateError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CertificateError::Request)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let name = identity.to_string().try_into().map_err(CertificateError::Request)?;
        params.subject_alt_names = vec![SanType::URI(name)];
        let csr = params.serialize_request(&key).map_err(CertificateError::Request)?;
        let csr_pem = csr.pem().map_err(CertificateError::Request)?;
        Ok(Self { identity: identity.clone(), key, csr_pem })
    }

    /// Checks the answer: `chain` is PEM texts, leaf first, roots last. `bundle`: the roots of the trust domain; when
    /// control does not publish any, the last certificate of the chain is taken as the root, which is as far as control
    /// itself is trusted.
    ///
    /// # Errors
    /// See [`CertificateError`]; control is to blame.
    pub fn accept(
        self,
        chain: &[String],
        bundle: Option<Arc<TrustBundle>>,
    ) -> Result<(WorkloadCertificate, Arc<TrustBundle>), CertificateError> {
        let certificates = read_chain(chain)?;
        let ([leaf, _, ..], [.., last]) = (certificates.as_slice(), chain) else {
            return Err(CertificateError::Incomplete(certificates.len()));
        };
        let bundle = match bundle {
            Some(bundle) => bundle,
            None => Arc::new(
                TrustBundle::parse(std::slice::from_ref(last))
                    .map_err(|error| CertificateError::Chain(error.to_string()))?,
            ),
        };
        let facts = CertificateFacts::read(leaf)
            .map_err(|error| CertificateError::Malformed { number: 1, reason: error.to_string() })?;
        if facts.names != [self.identity.to_string()] {
            return Err(CertificateError::Names { expected: self.identity, found: facts.names });
        }
        verify(&certificates, &bundle)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let key = any_ecdsa_type(&key).map_err(CertificateError::Key)?;
        // The peer holds the root: what it needs are the certificates below it.
        let below_root = certificates.iter().filter(|der| !bundle.certificates.contains(der)).cloned().collect();
        let certified_key = CertifiedKey::new(below_root, key);
        certified_key.keys_match().map_err(CertificateError::Key)?;
        let certificate = WorkloadCertificate {
            identity: self.identity,
            certified_key: Arc::new(certified_key),
            serial: facts.serial,
            not_before: facts.not_before,
            not_after: facts.not_after,
        };
        Ok((certificate, bundle))
    }
}

fn read_chain(chain: &[String]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let mut certificates = Vec::new();
    // A text may hold several certificates: some authorities join the chain into one.
    for text in chain {
        for der in CertificateDer::pem_slice_iter(text.as_bytes()) {
            let number = certificates.len() + 1;
            certificates
                .push(der.map_err(|error| CertificateError::Malformed { number, reason: format!("{error:?}") })?);
        }
    }
    Ok(certificates)
}

/// As a client's certificate, by the very rules that handshakes use.
fn verify(certificates: &[CertificateDer<'static>], bundle: &TrustBundle) -> Result<(), CertificateError> {
    let broken = |reason: String| CertificateError::Chain(reason);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(bundle.roots.clone(), provider)
        .build()
        .map_err(|error| broken(error.to_string()))?;
    let (leaf, others) = certificates.split_first().ok_or(CertificateError::Incomplete(0))?;
    verifier.verify_client_cert(leaf, others, UnixTime::now()).map_err(|error| broken(error.to_string()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateSigningRequestParams, IsCa, Issuer};

    use super::*;

    struct Authority {
        pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    fn authority() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    impl Authority {
        fn sign(&self, csr: &str, change: impl FnOnce(&mut CertificateParams)) -> Vec<String> {
            let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
            change(&mut request.params);
            vec![request.signed_by(&self.issuer).unwrap().pem(), self.pem.clone()]
        }
    }

    fn web() -> Identity {
        Identity::new("cluster.local", "default", "web").unwrap()
    }

    #[test]
    fn a_certificate_as_asked_for_is_taken_and_its_root_with_it() {
        let (authority, request) = (authority(), CertificateRequest::new(&web()).unwrap());
        let chain = authority.sign(&request.csr_pem, |_| ());
        let (certificate, bundle) = request.accept(&chain, None).unwrap();
        assert_eq!(certificate.identity, web());
        assert_eq!(certificate.certified_key.cert.len(), 1, "the root is not sent to peers");
        assert_eq!(bundle.certificates.len(), 1);
    }

    #[test]
    fn what_a_peer_would_refuse_is_refused() {
        let (ours, foreign) = (authority(), authority());
        let bundle = Some(Arc::new(TrustBundle::parse(std::slice::from_ref(&ours.pem)).unwrap()));
        let of = |change: &dyn Fn(&mut CertificateParams), authority: &Authority| {
            let request = CertificateRequest::new(&web()).unwrap();
            let chain = authority.sign(&request.csr_pem, change);
            request.accept(&chain, bundle.clone()).unwrap_err()
        };
        let other_name = |params: &mut CertificateParams| {
            params.subject_alt_names =
                vec![SanType::URI("spiffe://cluster.local/ns/default/sa/db".try_into().unwrap())];
        };
        let second_name = |params: &mut CertificateParams| {
            params.subject_alt_names.push(SanType::DnsName("web".try_into().unwrap()));
        };
        let expired = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        assert!(matches!(of(&other_name, &ours), CertificateError::Names { .. }));
        assert!(matches!(of(&second_name, &ours), CertificateError::Names { .. }));
        assert!(matches!(of(&expired, &ours), CertificateError::Chain(_)));
        assert!(matches!(of(&|_| (), &foreign), CertificateError::Chain(_)));
    }

    #[test]
    fn an_answer_for_another_key_is_refused() {
        let authority = authority();
        let (one, two) = (CertificateRequest::new(&web()).unwrap(), CertificateRequest::new(&web()).unwrap());
        let chain = authority.sign(&one.csr_pem, |_| ());
        assert!(matches!(two.accept(&chain, None).unwrap_err(), CertificateError::Key(_)));
    }

    #[test]
    fn an_answer_without_a_chain_is_refused() {
        let request = CertificateRequest::new(&web()).unwrap();
        assert!(matches!(request.accept(&[], None).unwrap_err(), CertificateError::Incomplete(0)));
        let (authority, request) = (authority(), CertificateRequest::new(&web()).unwrap());
        let chain = authority.sign(&request.csr_pem, |_| ());
        assert!(matches!(request.accept(&chain[..1], None).unwrap_err(), CertificateError::Incomplete(1)));
    }
}
