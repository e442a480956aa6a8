//! Certificates as an attacker, a misconfigured peer or a foreign mesh would hold them. Uses the mesh's own CA key, which
//! only a test may read.

use std::{path::Path, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate and its key.
pub struct Credentials {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Of the leaf.
    pub key: PrivateKeyDer<'static>,
}

/// Who signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, sent after the leaf.
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// The mesh's own, from its control daemon's state directory.
    ///
    /// # Panics
    /// When the files are not there.
    pub fn of_mesh(state: &Path) -> Self {
        Self::read(state, "root-cert.pem")
    }

    /// One that was plugged into the control daemon: `ca-cert.pem` and `ca-key.pem` of `directory`.
    ///
    /// # Panics
    /// When the files are not there.
    pub fn plugged(directory: &Path) -> Self {
        Self::read(directory, "ca-cert.pem")
    }

    fn read(directory: &Path, certificate: &str) -> Self {
        let read = |name: &str| std::fs::read_to_string(directory.join(name)).expect("the authority's file");
        let certificate = read(certificate);
        let key = KeyPair::from_pem(&read("ca-key.pem")).expect("a private key");
        use rustls::pki_types::pem::PemObject;
        let own = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate");
        Self { issuer: Issuer::from_ca_cert_pem(&certificate, key).expect("a CA certificate"), certificate: own }
    }

    /// One that nobody trusts.
    ///
    /// # Panics
    /// Never: our own parameters.
    pub fn foreign() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.self_signed(&key).expect("a certificate").der().clone();
        Self { issuer: Issuer::new(parameters, key), certificate }
    }

    /// A server's certificate for a host name, and its key, PEM.
    ///
    /// # Panics
    /// When the name is none.
    pub fn server(&self, name: &str) -> (String, String) {
        let parameters = CertificateParams::new(vec![name.to_owned()]).expect("a host name");
        let key = KeyPair::generate().expect("a key");
        (parameters.signed_by(&key, &self.issuer).expect("a certificate").pem(), key.serialize_pem())
    }

    /// A root that ran out an hour ago, in PEM.
    ///
    /// # Panics
    /// Never: our own parameters.
    pub fn expired_root() -> String {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let hour = Duration::from_secs(3600);
        let now = std::time::SystemTime::now();
        (parameters.not_before, parameters.not_after) = ((now - 2 * hour).into(), (now - hour).into());
        let key = KeyPair::generate().expect("a key");
        parameters.self_signed(&key).expect("a certificate").pem()
    }

    /// Signs for `identity`, valid from `from` seconds from now for `lifetime`.
    ///
    /// # Panics
    /// When `identity` is not a URI.
    pub fn sign(&self, identity: &str, from: i64, lifetime: Duration) -> Credentials {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        parameters.subject_alt_names = vec![SanType::URI(identity.try_into().expect("a URI"))];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let now = std::time::SystemTime::now();
        let offset = Duration::from_secs(from.unsigned_abs());
        let begin = if from < 0 { now - offset } else { now + offset };
        parameters.not_before = begin.into();
        parameters.not_after = (begin + lifetime).into();
        let key = KeyPair::generate().expect("a key");
        let leaf = parameters.signed_by(&key, &self.issuer).expect("a certificate").der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Credentials { chain: vec![leaf, self.certificate.clone()], key }
    }
}
