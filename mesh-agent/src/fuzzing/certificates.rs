//! What peers and the control daemon show: certificates, chains and roots.

use std::{sync::Arc, time::Duration};

use mesh_api::Identity;
use rustls::pki_types::{CertificateDer, UnixTime, pem::PemObject};

use crate::{
    certificates::{CertificateFacts, CertificateRequest, TrustBundle},
    tls,
};

/// When chains are judged: while those of the seeds are valid.
const NOW: Duration = Duration::from_secs(1_800_000_000);

/// PEM of a chain, leaf first and root last, or DER of one certificate. Good when a server of `cluster.local` would take it.
pub fn certificates(bytes: &[u8]) -> bool {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(bytes).filter_map(Result::ok).collect();
    if chain.is_empty() {
        read(&CertificateDer::from(bytes));
    }
    chain.iter().for_each(read);
    let ([leaf, ..], Ok(text)) = (chain.as_slice(), str::from_utf8(bytes)) else { return false };
    nobody_certifies_a_key_that_was_just_made(text);
    let root = text.rfind("-----BEGIN").map_or(text, |at| &text[at..]);
    let Ok(bundle) = TrustBundle::parse(&[root.to_owned()]) else { return false };
    let now = UnixTime::since_unix_epoch(NOW);
    let verified = tls::verify_client(&bundle, "cluster.local", &chain, now);
    if let Ok(identity) = &verified {
        assert_eq!(identity.trust_domain(), "cluster.local");
        assert_eq!(tls::peer_identity(leaf).as_ref(), Ok(identity));
    }
    verified.is_ok()
}

/// Both readers agree on the one name.
fn read(der: &CertificateDer<'_>) {
    let (facts, identity) = (CertificateFacts::read(der), tls::peer_identity(der));
    if let Ok(identity) = identity {
        let facts = facts.expect("it was read a moment ago");
        assert_eq!(facts.names.iter().filter(|name| **name == identity.to_string()).count(), 1, "{facts:?}");
        assert_eq!(Identity::parse(&identity.to_string()), Ok(identity));
    }
}

fn nobody_certifies_a_key_that_was_just_made(text: &str) {
    let web = Identity::new("cluster.local", "default", "web").expect("a good name");
    let request = CertificateRequest::new(&web).expect("a key and a request");
    let bundle = TrustBundle::parse(&[text.to_owned()]).ok().map(Arc::new);
    assert!(request.accept(&[text.to_owned()], bundle).is_err());
}
