//! Keeps the wallet full: one certificate for each identity that an enrolled pod has and the View confirms, renewed in
//! time, dropped when its last pod has gone. Looks into the vault, asks control; keeps what it has for as long as asking
//! fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use mesh_api::Identity;
use tokio::{sync::watch, task::JoinSet};

use crate::control::{Line, SharedControlStatus};

use super::{
    SharedWallet, TrustBundle, Vault, Wallet, WorkloadCertificate,
    attempt::{Attempt, attempt},
    renewal::Schedule,
    request::Issued,
};

/// Requests on their way at once. Source: ztunnel's limit.
const PARALLEL: usize = 8;
/// Clocks differ by a little: an expiry that is due is not looked at more often.
const EXPIRY_LOOK: Duration = Duration::from_millis(100);

/// After a rotation of the root all certificates are asked for anew, not all at once.
const REPLACEMENT: Duration = Duration::from_secs(2);

/// Why a certificate that is due is not asked for.
const AWAY: &str = "it is due, and control is away: it is asked for as soon as control is back";

/// What operators are shown of one identity's certificate.
#[derive(Debug, Clone)]
pub struct CertificateStatus {
    /// Whose it is.
    pub identity: Identity,
    /// The one in use; none while none has been issued.
    pub certificate: Option<Arc<WorkloadCertificate>>,
    /// Of the last attempt; empty when it worked.
    pub error: String,
    /// When it is asked for next.
    pub renews_at: SystemTime,
    /// The one in use was issued to an earlier run.
    pub is_from_vault: bool,
    /// The one in use outlives a restart.
    pub is_kept: bool,
}

/// All of them, by identity; read without a lock.
pub type SharedCertificateStatus = Arc<ArcSwap<Vec<CertificateStatus>>>;

#[derive(Debug)]
struct Entry {
    schedule: Schedule,
    is_asking: bool,
    error: String,
    is_from_vault: bool,
    is_kept: bool,
}

/// What tells the keeper what to do.
#[derive(Debug)]
pub struct Feeds {
    /// The trust bundle.
    pub control: SharedControlStatus,
    /// The connection to control, while there is one.
    pub line: watch::Receiver<Option<Line>>,
    /// The identities that must have a certificate; none until that is known.
    pub wanted: watch::Receiver<Option<Arc<BTreeSet<Identity>>>>,
    /// Wakes the keeper for a new trust bundle.
    pub view_changes: watch::Receiver<u64>,
}

/// The actor; [`Keeper::run`] it on the control thread.
#[derive(Debug)]
pub struct Keeper {
    wallet: SharedWallet,
    wallet_changes: watch::Sender<u64>,
    vault: Vault,
    status: SharedCertificateStatus,
    feeds: Feeds,
    /// What earlier runs kept for others has been removed.
    is_vault_swept: bool,
    entries: BTreeMap<Identity, Entry>,
    attempts: JoinSet<Attempt>,
    /// The texts that the bundle in the wallet was read from; empty: it came with a chain.
    bundle_texts: Arc<Vec<String>>,
}

impl Keeper {
    /// `wallet` and what is raised at each of its changes.
    pub fn new((wallet, wallet_changes): (SharedWallet, watch::Sender<u64>), vault: Vault, feeds: Feeds) -> Self {
        Self {
            wallet,
            wallet_changes,
            vault,
            status: SharedCertificateStatus::default(),
            feeds,
            is_vault_swept: false,
            entries: BTreeMap::new(),
            attempts: JoinSet::new(),
            bundle_texts: Arc::default(),
        }
    }

    /// What operators are shown; stays current while the keeper runs.
    pub fn status(&self) -> SharedCertificateStatus {
        self.status.clone()
    }

    /// Runs until what feeds it has gone.
    pub async fn run(mut self) {
        loop {
            self.take_bundle();
            self.take_wanted();
            self.drop_expired();
            self.ask();
            self.report();
            let next_due = self.next_due();
            let due = async {
                match next_due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.feeds.wanted.changed() => if changed.is_err() { return },
                changed = self.feeds.view_changes.changed() => if changed.is_err() { return },
                changed = self.feeds.line.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.hurry();
                }
                Some(attempt) = self.attempts.join_next() => match attempt {
                    Ok(attempt) => self.settle(attempt),
                    Err(panic) => self.recover(&panic),
                },
                () = due => {}
            }
        }
    }

    /// A new connection: what failed for want of one is tried now.
    fn hurry(&mut self) {
        if self.feeds.line.borrow_and_update().is_none() {
            return;
        }
        let now = Instant::now();
        for entry in self.entries.values_mut().filter(|entry| !entry.error.is_empty()) {
            entry.schedule.hurry(now);
        }
    }

    fn take_bundle(&mut self) {
        self.feeds.view_changes.borrow_and_update();
        let texts = self.feeds.control.load().trust_bundle.clone();
        if texts.is_empty() || texts == self.bundle_texts {
            return;
        }
        self.bundle_texts = texts;
        match TrustBundle::parse(&self.bundle_texts) {
            Ok(bundle) => {
                let bundle = Arc::new(bundle);
                self.change_wallet(|wallet| wallet.trust = Some(bundle.clone()));
                self.replace_old(&bundle);
            }
            Err(error) => tracing::error!(%error, "trust bundle of control refused; the last good one stays"),
        }
    }

    /// Control signs under another root: what is of the one before is asked for anew.
    fn replace_old(&mut self, bundle: &TrustBundle) {
        let (now, wallet) = (Instant::now(), self.wallet.load());
        let is_old = |identity| wallet.certificates.get(identity).is_some_and(|held| bundle.makes_old(held));
        for (_, entry) in self.entries.iter_mut().filter(|(identity, _)| is_old(identity)) {
            entry.schedule.replace(now, REPLACEMENT);
        }
    }

    fn take_wanted(&mut self) {
        let Some(wanted) = self.feeds.wanted.borrow_and_update().clone() else { return };
        if !std::mem::replace(&mut self.is_vault_swept, true) {
            self.vault.retain(&wanted);
        }
        let gone = self.entries.extract_if(.., |identity, _| !wanted.contains(identity));
        gone.for_each(|(identity, _)| self.vault.remove(&identity));
        if self.wallet.load().certificates.keys().any(|identity| !wanted.contains(identity)) {
            self.change_wallet(|wallet| wallet.certificates.retain(|identity, _| wanted.contains(identity)));
        }
        for identity in wanted.iter().filter(|identity| !self.entries.contains_key(identity)).collect::<Vec<_>>() {
            let entry = self.begin(identity);
            self.entries.insert(identity.clone(), entry);
        }
    }

    /// With what an earlier run was issued, if it kept that.
    fn begin(&self, identity: &Identity) -> Entry {
        let now = Instant::now();
        let mut entry = Entry {
            schedule: Schedule::new(now),
            is_asking: false,
            error: String::new(),
            is_from_vault: false,
            is_kept: false,
        };
        let trust = self.wallet.load().trust.clone();
        if let Some((certificate, issued)) = trust.and_then(|trust| self.vault.load(identity, &trust)) {
            tracing::info!(%identity, serial = certificate.serial, "certificate of before the restart taken up");
            entry.schedule.resumed(now, SystemTime::now(), issued, certificate.not_after);
            (entry.is_from_vault, entry.is_kept) = (true, true);
            self.change_wallet(|wallet| drop(wallet.certificates.insert(identity.clone(), Arc::new(certificate))));
        }
        entry
    }

    /// An expired key is kept for nobody; the wallet shows the certificate until there is another.
    fn drop_expired(&mut self) {
        let (wallet, now) = (self.wallet.load(), SystemTime::now());
        for (identity, entry) in self.entries.iter_mut().filter(|(_, entry)| entry.is_kept) {
            if wallet.certificates.get(identity).is_none_or(|held| held.not_after <= now) {
                self.vault.remove(identity);
                entry.is_kept = false;
            }
        }
    }

    /// Sends what is due, missing ones first, then the one that is longest overdue.
    fn ask(&mut self) {
        let Some(line) = self.feeds.line.borrow().clone() else { return };
        let (now, held) = (Instant::now(), self.wallet.load());
        let mut due: Vec<_> = self
            .entries
            .iter_mut()
            .filter(|(_, entry)| !entry.is_asking && entry.schedule.due() <= now)
            .map(|(identity, entry)| (held.certificates.contains_key(identity), entry.schedule.due(), identity, entry))
            .collect();
        due.sort_by_key(|(is_held, due, _, _)| (*is_held, *due));
        let free = PARALLEL.saturating_sub(self.attempts.len());
        for (_, _, identity, entry) in due.into_iter().take(free) {
            entry.is_asking = true;
            // Without a published bundle each chain brings its root, so that a rotated one is followed.
            let bundle = held.trust.clone().filter(|_| !self.bundle_texts.is_empty());
            self.attempts.spawn(attempt(line.clone(), identity.clone(), bundle));
        }
    }

    /// The next time at which something must be done that nothing else wakes the loop for.
    fn next_due(&self) -> Option<Instant> {
        self.next_question().into_iter().chain(self.next_expiry()).min()
    }

    /// `None` while nothing can be sent: there is no connection, or enough is on its way; both wake the loop by themselves.
    /// Without a connection what comes due is still looked at once, to be shown as late.
    fn next_question(&self) -> Option<Instant> {
        let (is_connected, now) = (self.feeds.line.borrow().is_some(), Instant::now());
        if self.attempts.len() >= PARALLEL {
            return None;
        }
        let dues = self.entries.values().filter(|entry| !entry.is_asking).map(|entry| entry.schedule.due());
        dues.filter(|due| is_connected || *due > now).min()
    }

    fn next_expiry(&self) -> Option<Instant> {
        let wallet = self.wallet.load();
        let kept = self.entries.iter().filter(|(_, entry)| entry.is_kept);
        let first = kept.filter_map(|(identity, _)| Some(wallet.certificates.get(identity)?.not_after)).min()?;
        let left = first.duration_since(SystemTime::now()).unwrap_or_default();
        Some(Instant::now() + left.max(EXPIRY_LOOK))
    }

    fn settle(&mut self, (identity, result): Attempt) {
        // Its last pod may have gone meanwhile.
        let Some(entry) = self.entries.get_mut(&identity) else { return };
        entry.is_asking = false;
        match result {
            Ok(Issued { certificate, bundle, pem }) => {
                let is_old = self.wallet.load().trust.as_ref().is_some_and(|trust| trust.makes_old(&certificate));
                match is_old && !self.bundle_texts.is_empty() {
                    // The root was rotated while it was on its way.
                    true => entry.schedule.failed(Instant::now()),
                    false => entry.schedule.issued(Instant::now(), SystemTime::now(), certificate.not_after),
                }
                entry.error.clear();
                entry.is_from_vault = false;
                let stored = self.vault.store(&identity, &pem);
                entry.is_kept = stored.is_ok();
                if let Err(error) = stored {
                    tracing::error!(%identity, %error, "a certificate is not kept: after a restart it needs control");
                }
                tracing::info!(%identity, serial = certificate.serial, "certificate issued");
                self.change_wallet(|wallet| {
                    if self.bundle_texts.is_empty() {
                        wallet.trust = Some(bundle);
                    }
                    wallet.certificates.insert(identity, Arc::new(certificate));
                });
            }
            Err(error) => {
                entry.schedule.failed(Instant::now());
                entry.error = error.to_string();
                tracing::warn!(%identity, %error, "no certificate; what is held stays in use");
            }
        }
    }

    /// A request broke off without saying whose it was: all that are on their way may be asked again after a pause.
    fn recover(&mut self, panic: &tokio::task::JoinError) {
        tracing::error!(%panic, "a certificate request broke");
        let now = Instant::now();
        for entry in self.entries.values_mut().filter(|entry| entry.is_asking) {
            entry.is_asking = false;
            entry.schedule.failed(now);
        }
    }

    fn change_wallet(&self, change: impl FnOnce(&mut Wallet)) {
        let mut wallet = Wallet::clone(&self.wallet.load());
        change(&mut wallet);
        self.wallet.store(Arc::new(wallet));
        self.wallet_changes.send_modify(|generation| *generation += 1);
    }

    fn report(&self) {
        let (now, wall, wallet) = (Instant::now(), SystemTime::now(), self.wallet.load());
        let is_connected = self.feeds.line.borrow().is_some();
        let rows = self.entries.iter().map(|(identity, entry)| CertificateStatus {
            identity: identity.clone(),
            certificate: wallet.certificates.get(identity).cloned(),
            error: match entry.error.is_empty() && !is_connected && entry.schedule.due() <= now {
                true => AWAY.to_owned(),
                false => entry.error.clone(),
            },
            renews_at: wall + entry.schedule.due().saturating_duration_since(now),
            is_from_vault: entry.is_from_vault,
            is_kept: entry.is_kept,
        });
        self.status.store(Arc::new(rows.collect()));
    }
}
