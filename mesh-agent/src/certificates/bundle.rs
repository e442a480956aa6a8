//! From PEM texts to the roots that peers are verified against.

use std::sync::Arc;

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::TrustBundle;
use crate::digest::{hexadecimal, sha256};

/// Why roots cannot be used. Whoever published them is to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// No root at all.
    #[error("the trust bundle is empty")]
    Empty,
    /// A text is no PEM certificate, or one that cannot be a root.
    #[error("root {number}: {reason}")]
    Root {
        /// Counted from 1.
        number: usize,
        /// What the parser says.
        reason: String,
    },
}

impl TrustBundle {
    /// Reads roots, each text PEM of one certificate or more. All or nothing: a bundle with a root left out would
    /// refuse peers for no visible reason.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn parse(pem_texts: &[String]) -> Result<Self, BundleError> {
        let mut roots = RootCertStore::empty();
        let mut certificates = Vec::new();
        for der in pem_texts.iter().flat_map(|text| CertificateDer::pem_slice_iter(text.as_bytes())) {
            let bad = |reason: String| BundleError::Root { number: certificates.len() + 1, reason };
            let der = der.map_err(|error| bad(format!("{error:?}")))?;
            roots.add(der.clone()).map_err(|error| bad(error.to_string()))?;
            certificates.push(der);
        }
        if certificates.is_empty() {
            return Err(BundleError::Empty);
        }
        let hash = hexadecimal(&sha256(pem_texts.iter().map(|text| text.as_bytes())));
        let root_hashes = certificates.iter().map(root_hash).collect();
        Ok(Self { roots: Arc::new(roots), certificates, hash, root_hashes })
    }

    /// Each root as a bundle of its own.
    pub(super) fn single_roots(&self) -> impl Iterator<Item = (&String, Arc<RootCertStore>)> {
        self.root_hashes.iter().zip(&self.certificates).filter_map(|(hash, der)| {
            let mut roots = RootCertStore::empty();
            roots.add(der.clone()).ok()?;
            Some((hash, Arc::new(roots)))
        })
    }
}

/// The hash of a root.
fn root_hash(der: &CertificateDer<'_>) -> String {
    hexadecimal(&sha256([der.as_ref()]))
}

/// The hashes of the roots in a PEM file; what is none is left out.
pub fn root_hashes(pem: &[u8]) -> Vec<String> {
    CertificateDer::pem_slice_iter(pem).flatten().map(|der| root_hash(&der)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn several_roots_are_one_bundle_with_one_hash() {
        let (one, two) = (root(), root());
        let bundle = TrustBundle::parse(&[one.clone(), two.clone()]).unwrap();
        assert_eq!(bundle.roots.len(), 2);
        assert_eq!(bundle.hash.len(), 64);
        assert_ne!(bundle.hash, TrustBundle::parse(&[two, one]).unwrap().hash);
    }

    #[test]
    fn a_bad_root_refuses_the_bundle_and_is_numbered() {
        assert_eq!(TrustBundle::parse(&[]).unwrap_err(), BundleError::Empty);
        assert_eq!(TrustBundle::parse(&["no PEM".into()]).unwrap_err(), BundleError::Empty);
        let bad = root().replace("MII", "MIJ");
        let error = TrustBundle::parse(&[root(), bad]).unwrap_err();
        assert!(matches!(error, BundleError::Root { number: 2, .. }), "{error}");
    }
}
