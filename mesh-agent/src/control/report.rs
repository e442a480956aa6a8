//! What control is told of this node's roots, so that it does not go on with a rotation before every node has followed: the
//! bundle in force, the certificates that are still of an older root, the roots that control itself is verified against.

use mesh_api::{CONTROL_ROOTS_FIELD, OLD_CERTIFICATES_FIELD, TAKEN_OVER_FIELD, TRUST_BUNDLE_FIELD};
use tokio::sync::watch;

use crate::{
    certificates::{SharedWallet, Wallet, root_hashes},
    drain::{Drain, Phase},
};

/// Fields of the node's metadata and their values.
pub(super) type Fields = Vec<(&'static str, String)>;

/// Watches the wallet for one stream after the other.
#[derive(Debug)]
pub struct TrustReporter {
    wallet: SharedWallet,
    changes: watch::Receiver<u64>,
    charge: Drain,
    control_roots: String,
    told: Option<Fields>,
}

impl TrustReporter {
    /// Reports on `wallet`; `changes` is raised at each of its changes. `charge` closes when another agent takes the node over:
    /// from then on nobody keeps the wallet current.
    pub fn new(wallet: SharedWallet, changes: watch::Receiver<u64>, charge: Drain) -> Self {
        Self { wallet, changes, charge, control_roots: String::new(), told: None }
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
            let has_told_all = self.told.as_ref().is_some_and(|told| *told == taken_over());
            tokio::select! {
                () = self.charge.reached(Phase::Closing), if !has_told_all => {}
                Ok(()) = self.changes.changed() => {}
                else => std::future::pending().await,
            }
            let fields = match self.charge.phase() {
                Phase::Closing => Some(taken_over()),
                _ => fields(&self.wallet.load(), &self.control_roots),
            };
            if fields != self.told
                && let Some(fields) = fields
            {
                self.told = Some(fields.clone());
                return fields;
            }
        }
    }
}

fn taken_over() -> Fields {
    vec![(TAKEN_OVER_FIELD, "true".to_owned())]
}

/// `None` while no root is known.
fn fields(wallet: &Wallet, control_roots: &str) -> Option<Fields> {
    let trust = wallet.trust.as_ref()?;
    let old = wallet.certificates.values().filter(|held| trust.makes_old(held)).count();
    Some(vec![
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
    use futures_util::FutureExt;

    #[tokio::test]
    async fn a_change_of_roots_or_certificates_is_told_once_and_again_on_a_new_stream() {
        let (old, new) = (Authority::new(), Authority::new());
        let wallet = SharedWallet::default();
        let (changes, changed) = watch::channel(0);
        let charge = Drain::default();
        let mut reporter = TrustReporter::new(wallet.clone(), changed, charge.clone());
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

        charge.advance(Phase::Closing);
        assert_eq!(reporter.next().await, taken_over());
        put(new.wallet(&[identity("web")]));
        assert!(reporter.next().now_or_never().is_none(), "its roots are nobody's any more");
        reporter.begin(b"no roots");
        assert_eq!(reporter.next().await, taken_over());
    }
}
