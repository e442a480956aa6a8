//! What control is told of this node's roots, so that it does not go on with a rotation before every node has followed: the
//! bundle in force, the certificates that are still of an older root, the roots that control itself is verified against.

use mesh_api::{CONTROL_ROOTS_FIELD, OLD_CERTIFICATES_FIELD, TRUST_BUNDLE_FIELD};
use tokio::sync::watch;

use crate::certificates::{SharedWallet, Wallet, root_hashes};

/// Fields of the node's metadata and their values.
pub(super) type Fields = [(&'static str, String); 3];

/// Watches the wallet for one stream after the other.
#[derive(Debug)]
pub struct TrustReporter {
    wallet: SharedWallet,
    changes: watch::Receiver<u64>,
    control_roots: String,
    told: Option<Fields>,
}

impl TrustReporter {
    /// Reports on `wallet`; `changes` is raised at each of its changes.
    pub fn new(wallet: SharedWallet, changes: watch::Receiver<u64>) -> Self {
        Self { wallet, changes, control_roots: String::new(), told: None }
    }

    /// A new stream, of a connection that was verified against these roots: nothing has been told on it.
    pub(super) fn begin(&mut self, root_pem: &[u8]) {
        self.control_roots = root_hashes(root_pem).join(" ");
        self.told = None;
        self.changes.mark_changed();
    }

    /// Waits until there is something new to tell.
    pub(super) async fn next(&mut self) -> Fields {
        loop {
            if self.changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let fields = fields(&self.wallet.load(), &self.control_roots);
            if fields != self.told
                && let Some(fields) = fields
            {
                self.told = Some(fields.clone());
                return fields;
            }
        }
    }
}

/// `None` while no root is known.
fn fields(wallet: &Wallet, control_roots: &str) -> Option<Fields> {
    let trust = wallet.trust.as_ref()?;
    let old = wallet.certificates.values().filter(|held| trust.makes_old(held)).count();
    Some([
        (TRUST_BUNDLE_FIELD, trust.hash.clone()),
        (OLD_CERTIFICATES_FIELD, old.to_string()),
        (CONTROL_ROOTS_FIELD, control_roots.to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::proving::{Authority, identity};

    #[tokio::test]
    async fn a_change_of_roots_or_certificates_is_told_once_and_again_on_a_new_stream() {
        let (old, new) = (Authority::new(), Authority::new());
        let wallet = SharedWallet::default();
        let (changes, changed) = watch::channel(0);
        let mut reporter = TrustReporter::new(wallet.clone(), changed);
        reporter.begin(b"no roots");
        let put = |next: Wallet| {
            wallet.store(Arc::new(next));
            changes.send_modify(|generation| *generation += 1);
        };
        put(old.wallet(&[identity("web")]));
        let first = reporter.next().await;
        assert_eq!((&first[0].1, &*first[1].1), (&old.trust.hash, "0"));
        put(old.wallet(&[identity("web")]));
        put(Wallet { trust: Some(new.trust.clone()), ..old.wallet(&[identity("web"), identity("db")]) });
        let second = reporter.next().await;
        assert_eq!((&second[0].1, &*second[1].1), (&new.trust.hash, "2"), "the same is not told twice");
        reporter.begin(b"no roots");
        assert_eq!(reporter.next().await, second);
    }
}
