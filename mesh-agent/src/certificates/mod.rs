//! Keys and certificates of the workloads of this node, and the roots that peers are verified against. Only this node's
//! identities are asked for; a key is in the process's memory and in the vault's tmpfs, and nowhere else.

mod attempt;
mod bundle;
mod facts;
mod keeper;
mod renewal;
mod request;
#[cfg(test)]
mod tests;
mod vault;

pub use bundle::{BundleError, root_hashes};
pub use facts::{CertificateFacts, FactsError};
pub use keeper::{CertificateStatus, Feeds, Keeper, SharedCertificateStatus};
pub use request::{CertificateError, CertificateRequest, Issued, PrivatePem};
pub use vault::{Vault, VaultError};

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use mesh_api::Identity;
use rustls::{RootCertStore, pki_types::CertificateDer, sign::CertifiedKey};

/// A certificate that is ready to be used in a handshake.
#[derive(Debug)]
pub struct WorkloadCertificate {
    /// Whose it is.
    pub identity: Identity,
    /// Chain (leaf first, without roots) and private key.
    pub certified_key: Arc<CertifiedKey>,
    /// Hexadecimal, as `openssl x509 -serial` prints it.
    pub serial: String,
    /// Start of its validity, which lies before its issue.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
    /// When we were issued it: what is done at a part of its life counts from here.
    pub issued: SystemTime,
    /// The root that its chain leads to, as in [`TrustBundle::root_hashes`].
    pub root: String,
}

/// The roots of the trust domain.
#[derive(Debug)]
pub struct TrustBundle {
    /// What verifiers take.
    pub roots: Arc<RootCertStore>,
    /// The same as certificates, in the order of publication.
    pub certificates: Vec<CertificateDer<'static>>,
    /// SHA-256 of the PEM texts in order, hexadecimal; what control compares during a rotation.
    pub hash: String,
    /// SHA-256 of each certificate, hexadecimal, in the same order. The first is the root that control signs under.
    pub root_hashes: Vec<String>,
}

impl TrustBundle {
    /// Whether control would now issue this certificate under another root.
    pub fn makes_old(&self, certificate: &WorkloadCertificate) -> bool {
        self.root_hashes.first() != Some(&certificate.root)
    }
}

/// What handshakes read; swapped as a whole when a certificate is issued, renewed or dropped.
#[derive(Debug, Clone, Default)]
pub struct Wallet {
    /// One for each identity of this node that has been issued one.
    pub certificates: HashMap<Identity, Arc<WorkloadCertificate>>,
    /// None until control has said which roots there are.
    pub trust: Option<Arc<TrustBundle>>,
}

/// The wallet of now, shared by all threads. Read without a lock.
pub type SharedWallet = Arc<ArcSwap<Wallet>>;
