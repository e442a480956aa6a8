//! Keeps the wallet full: one certificate for each identity that an enrolled pod has and the View confirms, renewed in
//! time, dropped when its last pod has gone. Asks control; keeps what it has for as long as asking fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use mesh_api::Identity;
use mesh_api::proto::ca::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient};
use mesh_api::proto::wellknown::{Struct, Value, value::Kind};
use tokio::{sync::watch, task::JoinSet};

use crate::control::{Line, SharedControlStatus};

use super::{
    CertificateError, CertificateRequest, SharedWallet, TrustBundle, Wallet, WorkloadCertificate, renewal::Schedule,
};

/// Requests on their way at once. Source: ztunnel's limit.
const PARALLEL: usize = 8;
/// An answer that takes longer has failed.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// What is asked for; control may give less. Source: Istio's default.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

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
}

/// All of them, by identity; read without a lock.
pub type SharedCertificateStatus = Arc<ArcSwap<Vec<CertificateStatus>>>;

/// Why an attempt gave no certificate.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("control refused: {0}")]
    Refused(Box<tonic::Status>),
    #[error("control did not answer within {} s", ANSWER_LIMIT.as_secs())]
    Silent,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

type Attempt = (Identity, Result<(WorkloadCertificate, Arc<TrustBundle>), AttemptError>);

#[derive(Debug)]
struct Entry {
    schedule: Schedule,
    is_asking: bool,
    error: String,
}

/// The actor; [`Keeper::run`] it on the control thread.
#[derive(Debug)]
pub struct Keeper {
    wallet: SharedWallet,
    wallet_changes: watch::Sender<u64>,
    status: SharedCertificateStatus,
    control: SharedControlStatus,
    line: watch::Receiver<Option<Line>>,
    wanted: watch::Receiver<Arc<BTreeSet<Identity>>>,
    view_changes: watch::Receiver<u64>,
    entries: BTreeMap<Identity, Entry>,
    attempts: JoinSet<Attempt>,
    /// The texts that the bundle in the wallet was read from; empty: it came with a chain.
    bundle_texts: Arc<Vec<String>>,
}

impl Keeper {
    /// `wallet` and what is raised at each of its changes; `wanted`: the identities that must have a certificate; `view_changes` wakes it for a new trust bundle.
    pub fn new(
        (wallet, wallet_changes): (SharedWallet, watch::Sender<u64>),
        control: SharedControlStatus,
        line: watch::Receiver<Option<Line>>,
        wanted: watch::Receiver<Arc<BTreeSet<Identity>>>,
        view_changes: watch::Receiver<u64>,
    ) -> Self {
        Self {
            wallet,
            wallet_changes,
            status: SharedCertificateStatus::default(),
            control,
            line,
            wanted,
            view_changes,
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
                changed = self.wanted.changed() => if changed.is_err() { return },
                changed = self.view_changes.changed() => if changed.is_err() { return },
                changed = self.line.changed() => {
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
        if self.line.borrow_and_update().is_none() {
            return;
        }
        let now = Instant::now();
        for entry in self.entries.values_mut().filter(|entry| !entry.error.is_empty()) {
            entry.schedule.hurry(now);
        }
    }

    fn take_bundle(&mut self) {
        self.view_changes.borrow_and_update();
        let texts = self.control.load().trust_bundle.clone();
        if texts.is_empty() || texts == self.bundle_texts {
            return;
        }
        self.bundle_texts = texts;
        match TrustBundle::parse(&self.bundle_texts) {
            Ok(bundle) => self.change_wallet(|wallet| wallet.trust = Some(Arc::new(bundle))),
            Err(error) => tracing::error!(%error, "trust bundle of control refused; the last good one stays"),
        }
    }

    fn take_wanted(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        self.entries.retain(|identity, _| wanted.contains(identity));
        if self.wallet.load().certificates.keys().any(|identity| !wanted.contains(identity)) {
            self.change_wallet(|wallet| wallet.certificates.retain(|identity, _| wanted.contains(identity)));
        }
        let now = Instant::now();
        for identity in wanted.iter() {
            self.entries.entry(identity.clone()).or_insert_with(|| Entry {
                schedule: Schedule::new(now),
                is_asking: false,
                error: String::new(),
            });
        }
    }

    /// Sends what is due, missing ones first, then the one that is longest overdue.
    fn ask(&mut self) {
        let Some(line) = self.line.borrow().clone() else { return };
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

    /// `None` while nothing can be sent: there is no connection, or enough is on its way; both wake the loop by themselves.
    fn next_due(&self) -> Option<Instant> {
        if self.line.borrow().is_none() || self.attempts.len() >= PARALLEL {
            return None;
        }
        self.entries.values().filter(|entry| !entry.is_asking).map(|entry| entry.schedule.due()).min()
    }

    fn settle(&mut self, (identity, result): Attempt) {
        // Its last pod may have gone meanwhile.
        let Some(entry) = self.entries.get_mut(&identity) else { return };
        entry.is_asking = false;
        match result {
            Ok((certificate, bundle)) => {
                entry.schedule.issued(Instant::now(), SystemTime::now(), certificate.not_after);
                entry.error.clear();
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
        let rows = self.entries.iter().map(|(identity, entry)| CertificateStatus {
            identity: identity.clone(),
            certificate: wallet.certificates.get(identity).cloned(),
            error: entry.error.clone(),
            renews_at: wall + entry.schedule.due().saturating_duration_since(now),
        });
        self.status.store(Arc::new(rows.collect()));
    }
}

async fn attempt(line: Line, identity: Identity, bundle: Option<Arc<TrustBundle>>) -> Attempt {
    let result = async {
        let request = CertificateRequest::new(&identity)?;
        let mut client = IstioCertificateServiceClient::with_interceptor(line.channel, line.bearer);
        let name = Value { kind: Some(Kind::StringValue(identity.to_string())) };
        let message = IstioCertificateRequest {
            csr: request.csr_pem.clone(),
            validity_duration: LIFETIME.as_secs() as i64,
            metadata: Some(Struct { fields: [("ImpersonatedIdentity".to_owned(), name)].into() }),
        };
        let answer = tokio::time::timeout(ANSWER_LIMIT, client.create_certificate(message)).await;
        let answer = answer.map_err(|_| AttemptError::Silent)?;
        let answer = answer.map_err(|status| AttemptError::Refused(Box::new(status)))?;
        Ok(request.accept(&answer.into_inner().cert_chain, bundle)?)
    };
    let result = result.await;
    (identity, result)
}
