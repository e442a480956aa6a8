//! Signs certificates. Holds the CA key in memory; never reads a file and never decides who may ask.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};

use super::identity::Identity;

/// Certificates are valid from this long before they are issued: clocks differ.
const BACKDATED: Duration = Duration::from_secs(60);
/// Shorter certificates would expire while they are renewed.
pub const SHORTEST: Duration = Duration::from_secs(10);

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Certificates between a leaf and the root, PEM, the issuer's own first; empty when the root signs itself.
    intermediates: Vec<String>,
    /// Roots, PEM; the one that the issuer leads to first.
    roots: Vec<String>,
    /// End of the issuer's own certificate: nothing it signs is valid for longer.
    not_after: SystemTime,
    longest: Duration,
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The CA's own certificate has run out.
    #[error("the certificate of the authority itself is about to expire")]
    Expired,
    /// The cryptography library refused.
    #[error("the certificate could not be made")]
    Library(#[source] rcgen::Error),
}

/// What an authority is made of.
pub struct Parts {
    /// The key and the certificate that sign.
    pub issuer: Issuer<'static, KeyPair>,
    /// See [`Authority`].
    pub intermediates: Vec<String>,
    /// Roots, PEM; the one that the issuer leads to first.
    pub roots: Vec<String>,
    /// End of the issuer's certificate.
    pub not_after: SystemTime,
}

impl Authority {
    /// An authority whose certificates live `longest` unless less is asked for.
    pub fn new(parts: Parts, longest: Duration) -> Authority {
        let Parts { issuer, intermediates, roots, not_after } = parts;
        Authority { issuer, intermediates, roots, not_after, longest: longest.max(SHORTEST) }
    }

    /// Roots that certificates are verified against, PEM; the one that this authority signs under first.
    pub fn roots(&self) -> &[String] {
        &self.roots
    }

    /// How long a certificate lives for which `asked` was asked; zero asks for nothing in particular.
    pub fn lifetime(&self, asked: Duration) -> Duration {
        if asked.is_zero() { self.longest } else { asked.clamp(SHORTEST, self.longest) }
    }

    /// Signs a workload's certificate: leaf, intermediates, roots, PEM.
    ///
    /// # Errors
    /// The authority's own certificate has expired, or the library failed.
    pub fn sign_workload(
        &self,
        identity: &Identity,
        key: &impl PublicKeyData,
        lifetime: Duration,
    ) -> Result<Vec<String>, SignError> {
        let uri = identity.to_string().try_into().map_err(SignError::Library)?;
        let mut params = self.params(lifetime)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params, key)
    }

    /// Signs the certificate of this daemon's own server.
    ///
    /// # Errors
    /// As [`Authority::sign_workload`]; also when a name is no DNS name.
    pub fn sign_server(&self, names: &[String], key: &KeyPair) -> Result<Vec<String>, SignError> {
        let mut params = self.params(self.longest)?;
        for name in names {
            let san = match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into().map_err(SignError::Library)?),
            };
            params.subject_alt_names.push(san);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params, key)
    }

    /// Everything but names and usage: SPIFFE X509-SVID §4 asks for exactly this.
    fn params(&self, lifetime: Duration) -> Result<CertificateParams, SignError> {
        let now = SystemTime::now();
        let end = (now + lifetime).min(self.not_after);
        if end <= now + SHORTEST / 2 {
            return Err(SignError::Expired);
        }
        let mut serial: [u8; 16] = random()?;
        serial[0] &= 0x7f; // a serial number is positive
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATED).into();
        params.not_after = end.into();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn sign(&self, params: &CertificateParams, key: &impl PublicKeyData) -> Result<Vec<String>, SignError> {
        let leaf = params.signed_by(key, &self.issuer).map_err(SignError::Library)?;
        let mut chain = vec![leaf.pem()];
        // Who is told no bundle takes the last for the root.
        chain.extend(self.intermediates.iter().chain(self.roots.iter().rev()).cloned());
        Ok(chain)
    }
}

fn random<const N: usize>() -> Result<[u8; N], SignError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| SignError::Library(rcgen::Error::RingUnspecified))?;
    Ok(bytes)
}

/// Parameters of a root that is generated here.
pub fn root_params(lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (SystemTime::now() - BACKDATED).into();
    params.not_after = (SystemTime::now() + lifetime).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "mesh");
    params.distinguished_name.push(DnType::CommonName, "mesh root");
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
