//! The certificate that this daemon's own server shows: signed by its own authority, renewed at half of its life
//! without a restart. Running connections keep the one they began with.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::watch;

use super::authority::{Authority, SignError};

/// How often the time is looked at; also the pause after a failure.
const LOOK: Duration = Duration::from_secs(1);

/// Why the server has no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It was not signed.
    #[error("the server's certificate was not signed")]
    Sign(#[from] SignError),
    /// No key could be made.
    #[error("the server's key could not be made")]
    Key(#[source] rcgen::Error),
    /// TLS does not take it.
    #[error("the server's certificate cannot be used")]
    Tls(#[source] rustls::Error),
}

/// Signs the server's certificates and shows the latest.
#[derive(Debug)]
pub struct ServerCertificate {
    current: watch::Sender<Arc<CertifiedKey>>,
}

impl ServerCertificate {
    /// The first certificate.
    ///
    /// # Errors
    /// See [`ServerError`]; the daemon cannot serve without one.
    pub fn issue(authority: &Authority, names: &[String]) -> Result<Arc<ServerCertificate>, ServerError> {
        Ok(Arc::new(ServerCertificate { current: watch::Sender::new(certified(authority, names)?) }))
    }

    /// Renews it for as long as the daemon runs, at half-life and when another authority signs. A failure keeps the current
    /// one and is tried again.
    pub async fn renew(self: Arc<Self>, mut authority: watch::Receiver<Arc<Authority>>, names: Vec<String>) {
        let half_life = authority.borrow().lifetime(Duration::ZERO) / 2;
        let mut issued = SystemTime::now();
        loop {
            let is_another = match tokio::time::timeout(LOOK, authority.changed()).await {
                Ok(Ok(())) => true,
                Err(_) => false,
                // Nobody can name another any more: the daemon ends.
                Ok(Err(_)) => return,
            };
            // By the wall clock, which may be put right meanwhile: one from the future is good for nobody.
            let is_due = SystemTime::now().duration_since(issued).map_or(true, |age| age >= half_life);
            if !is_due && !is_another {
                continue;
            }
            let current = authority.borrow_and_update().clone();
            match self.renew_once(&current, &names) {
                Ok(()) => issued = SystemTime::now(),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "the server's certificate was not renewed");
                }
            }
        }
    }

    fn renew_once(&self, authority: &Authority, names: &[String]) -> Result<(), ServerError> {
        self.current.send_replace(certified(authority, names)?);
        Ok(())
    }

    /// How to speak TLS with it: 1.3 and HTTP/2 only.
    ///
    /// # Errors
    /// The library has no TLS 1.3.
    pub fn config(self: Arc<Self>) -> Result<ServerConfig, ServerError> {
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(ServerError::Tls)?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(self);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.borrow().clone())
    }
}

fn certified(authority: &Authority, names: &[String]) -> Result<Arc<CertifiedKey>, ServerError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(ServerError::Key)?;
    let chain = authority.sign_server(names, &key)?.concat();
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
    let chain = chain.map_err(|_| ServerError::Tls(rustls::Error::NoCertificatesPresented))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map(Arc::new).map_err(ServerError::Tls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ca::files, testing::TempFolder};

    #[test]
    fn a_renewal_replaces_the_certificate_and_a_failure_keeps_it() {
        let folder = TempFolder::new();
        let load = || files::load(&folder.0, None).expect("loaded");
        let authority = Authority::new(load(), Duration::from_secs(3600));
        let names = ["mesh-control".to_owned()];
        let certificate = ServerCertificate::issue(&authority, &names).expect("issued");
        let current = || certificate.current.borrow().cert[0].clone();
        let first = current();
        certificate.renew_once(&authority, &names).expect("renewed");
        let second = current();
        assert_ne!(first, second);

        let expiring = files::Parts { not_after: std::time::SystemTime::now(), ..load() };
        let authority = Authority::new(expiring, Duration::from_secs(3600));
        let refused = certificate.renew_once(&authority, &names);
        assert!(matches!(refused, Err(ServerError::Sign(SignError::Expired))), "{refused:?}");
        assert_eq!(current(), second);
    }
}
