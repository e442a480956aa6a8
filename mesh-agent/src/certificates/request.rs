//! One certificate: the key and request that are sent, and the checks that the answer must pass before it is used. The
//! answer is judged as a peer would judge it, so that a bad one is found here and not in every handshake.

use std::{fmt, sync::Arc, time::SystemTime};

use mesh_api::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::{
    RootCertStore,
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

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
    /// There is no private key where one was kept.
    #[error("no private key: {0}")]
    NoKey(String),
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
    #[error("the certificate does not verify: {}", crate::tls::explained(.0))]
    Chain(String),
}

/// A certificate and its key as they are kept over a restart, PEM; shown to nobody.
pub struct PrivatePem(Zeroizing<Vec<u8>>);

impl PrivatePem {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for PrivatePem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivatePem(..)")
    }
}

/// What became of a request.
#[derive(Debug)]
pub struct Issued {
    /// For handshakes.
    pub certificate: WorkloadCertificate,
    /// What it was verified against.
    pub bundle: Arc<TrustBundle>,
    /// For [`WorkloadCertificate::from_pem`].
    pub pem: PrivatePem,
}

/// A key and the request for its certificate. One key per certificate: it is never used for a second one.
#[derive(Debug)]
pub struct CertificateRequest {
    identity: Identity,
    key: Zeroizing<KeyPair>,
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
        Ok(Self { identity: identity.clone(), key: Zeroizing::new(key), csr_pem })
    }

    /// Checks the answer: `chain` is PEM texts, leaf first, roots last. `bundle`: the roots of the trust domain; when
    /// control does not publish any, the last certificate of the chain is taken as the root, which is as far as control
    /// itself is trusted.
    ///
    /// # Errors
    /// See [`CertificateError`]; control is to blame.
    pub fn accept(self, chain: &[String], bundle: Option<Arc<TrustBundle>>) -> Result<Issued, CertificateError> {
        let certificates = read_chain(chain)?;
        let ([_, _, ..], [.., last]) = (certificates.as_slice(), chain) else {
            return Err(CertificateError::Incomplete(certificates.len()));
        };
        let bundle = match bundle {
            Some(bundle) => bundle,
            None => Arc::new(
                TrustBundle::parse(std::slice::from_ref(last))
                    .map_err(|error| CertificateError::Chain(error.to_string()))?,
            ),
        };
        let key = Zeroizing::new(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der())));
        let certificate = usable(&self.identity, &key, &certificates, &bundle)?;
        let key = Zeroizing::new(self.key.serialize_pem());
        let length = key.len() + chain.iter().map(|text| text.len() + 1).sum::<usize>();
        let mut pem = Zeroizing::new(Vec::with_capacity(length));
        pem.extend(key.as_bytes());
        chain.iter().for_each(|text| pem.extend([text.as_bytes(), b"\n"].concat()));
        Ok(Issued { certificate, bundle, pem: PrivatePem(pem) })
    }
}

impl WorkloadCertificate {
    /// Reads what an earlier run kept, and judges it as an answer of control.
    ///
    /// # Errors
    /// See [`CertificateError`]: it is damaged, expired, somebody else's, or not of these roots.
    pub fn from_pem(identity: &Identity, pem: &[u8], bundle: &TrustBundle) -> Result<Self, CertificateError> {
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| CertificateError::NoKey(format!("{error:?}")))?;
        let mut certificates = Vec::new();
        append_chain(&mut certificates, pem)?;
        usable(identity, &Zeroizing::new(key), &certificates, bundle)
    }
}

/// By all that a peer would ask for.
fn usable(
    identity: &Identity,
    key: &PrivateKeyDer<'static>,
    certificates: &[CertificateDer<'static>],
    bundle: &TrustBundle,
) -> Result<WorkloadCertificate, CertificateError> {
    let leaf = certificates.first().ok_or(CertificateError::Incomplete(0))?;
    let facts = CertificateFacts::read(leaf)
        .map_err(|error| CertificateError::Malformed { number: 1, reason: error.to_string() })?;
    if facts.names != [identity.to_string()] {
        return Err(CertificateError::Names { expected: identity.clone(), found: facts.names });
    }
    let root = verify(certificates, bundle)?;
    let key = any_ecdsa_type(key).map_err(CertificateError::Key)?;
    // The peer holds the root: what it needs are the certificates below it.
    let below_root = certificates.iter().filter(|der| !bundle.certificates.contains(der)).cloned().collect();
    let certified_key = CertifiedKey::new(below_root, key);
    certified_key.keys_match().map_err(CertificateError::Key)?;
    Ok(WorkloadCertificate {
        identity: identity.clone(),
        certified_key: Arc::new(certified_key),
        serial: facts.serial,
        not_before: facts.not_before,
        not_after: facts.not_after,
        issued: SystemTime::now(),
        root,
    })
}

fn read_chain(chain: &[String]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let mut certificates = Vec::new();
    // A text may hold several certificates: some authorities join the chain into one.
    chain.iter().try_for_each(|text| append_chain(&mut certificates, text.as_bytes()))?;
    Ok(certificates)
}

fn append_chain(certificates: &mut Vec<CertificateDer<'static>>, pem: &[u8]) -> Result<(), CertificateError> {
    for der in CertificateDer::pem_slice_iter(pem) {
        let number = certificates.len() + 1;
        certificates.push(der.map_err(|error| CertificateError::Malformed { number, reason: format!("{error:?}") })?);
    }
    Ok(())
}

/// As a client's certificate, by the very rules that handshakes use. Gives the root that the chain leads to, the bundle's
/// first one first.
fn verify(certificates: &[CertificateDer<'static>], bundle: &TrustBundle) -> Result<String, CertificateError> {
    let single = bundle.single_roots().find(|(_, roots)| leads_to(certificates, roots.clone()).is_ok());
    match single {
        Some((root, _)) => Ok(root.clone()),
        None => leads_to(certificates, bundle.roots.clone()).map(|()| String::new()),
    }
}

fn leads_to(certificates: &[CertificateDer<'static>], roots: Arc<RootCertStore>) -> Result<(), CertificateError> {
    let broken = |reason: String| CertificateError::Chain(reason);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
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
        let Issued { certificate, bundle, .. } = request.accept(&chain, None).unwrap();
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

    #[test]
    fn what_was_kept_is_the_same_certificate_again_or_nothing() {
        let (ours, foreign) = (authority(), authority());
        let issue = |authority: &Authority| {
            let request = CertificateRequest::new(&web()).unwrap();
            let chain = authority.sign(&request.csr_pem, |_| ());
            request.accept(&chain, None).unwrap()
        };
        let (issued, other) = (issue(&ours), issue(&ours));
        let again = WorkloadCertificate::from_pem(&web(), issued.pem.as_bytes(), &issued.bundle).unwrap();
        assert_eq!(again.serial, issued.certificate.serial);
        assert_eq!(again.certified_key.cert, issued.certificate.certified_key.cert);

        let read = |identity: &Identity, pem: &str, bundle: &TrustBundle| {
            WorkloadCertificate::from_pem(identity, pem.as_bytes(), bundle).map(|_| ()).unwrap_err()
        };
        let text = |issued: &Issued| String::from_utf8(issued.pem.as_bytes().to_vec()).unwrap();
        let (whole, second) = (text(&issued), text(&other));
        let split = |text: &str| text.find("-----BEGIN CERTIFICATE").unwrap();
        let (key, chain) = whole.split_at(split(&whole));
        let db = Identity::new("cluster.local", "default", "db").unwrap();
        assert!(matches!(read(&web(), chain, &issued.bundle), CertificateError::NoKey(_)));
        assert!(matches!(read(&web(), key, &issued.bundle), CertificateError::Incomplete(0)));
        assert!(matches!(read(&web(), &whole[..whole.len() / 2], &issued.bundle), CertificateError::Malformed { .. }));
        assert!(matches!(read(&db, &whole, &issued.bundle), CertificateError::Names { .. }));
        assert!(matches!(read(&web(), &whole, &issue(&foreign).bundle), CertificateError::Chain(_)));
        let swapped = key.to_owned() + &second[split(&second)..];
        assert!(matches!(read(&web(), &swapped, &issued.bundle), CertificateError::Key(_)));
    }

    #[test]
    fn keys_are_not_shown() {
        let authority = authority();
        let request = CertificateRequest::new(&web()).unwrap();
        let (key, shown) = (request.key.serialize_der(), format!("{request:?}"));
        let chain = authority.sign(&request.csr_pem, |_| ());
        let issued = request.accept(&chain, None).unwrap();
        // The secret number of a P-256 key in PKCS #8. Source: RFC 5915, section 3.
        let secret = key[36..68].to_vec();
        let pem = issued.pem.as_bytes().to_vec();
        let base64 = String::from_utf8(pem).unwrap().lines().nth(1).unwrap().to_owned();
        let forms = [format!("{secret:?}"), crate::digest::hexadecimal(&secret), base64];
        for text in [shown, format!("{issued:?}"), format!("{issued:#?}")] {
            assert!(text.contains("default/sa/web"), "{text}");
            let found = forms.iter().find(|form| text.contains(form.trim_matches(['[', ']'])));
            assert_eq!(found, None, "{text}");
        }
    }
}
