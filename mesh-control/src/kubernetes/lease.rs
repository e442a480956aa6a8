//! Which replica writes: the one that holds the Lease. Only this replica's clock counts: a holder is gone when the Lease
//! has not changed here for as long as it lasts. Losing it costs nothing but the writing.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, time::Instant};

/// Name of the Lease.
const LEASE: &str = "mesh-control";
/// How long a holder is waited for.
const LASTS_SECONDS: i32 = 15;
/// Time between two renewals, or two looks at another's.
const INTERVAL: Duration = Duration::from_secs(5);
/// A holder that could not renew for this long stops to write, well before another may begin.
const GIVE_UP: Duration = Duration::from_secs(10);

/// One replica's part in the election.
pub struct Election {
    /// Who is asked.
    pub client: Client,
    /// Where the Lease is.
    pub namespace: String,
    /// This replica.
    pub replica: String,
}

/// What was seen of the Lease, and since when.
type Sight = Option<(String, Instant)>;

impl Election {
    /// Takes part until the daemon is told to stop, and says whether this replica leads.
    pub async fn follow(self, leads: watch::Sender<bool>, mut stopping: watch::Receiver<bool>) {
        let (mut seen, mut renewed) = (None, None::<Instant>);
        loop {
            match self.attempt(&mut seen).await {
                Ok(true) => {
                    renewed = Some(Instant::now());
                    say(&leads, true);
                }
                Ok(false) => say(&leads, false),
                Err(error) => {
                    tracing::warn!(reason = super::sentence(&error), "the Lease cannot be held or looked at");
                    if renewed.is_none_or(|at| at.elapsed() > GIVE_UP) {
                        say(&leads, false);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                _ = stopping.wait_for(|is_stopping| *is_stopping) => break,
            }
        }
        if leads.send_replace(false) {
            // The next one need not wait until the Lease has run out.
            let _ = self.release().await;
        }
    }

    /// True when the Lease is this replica's now.
    async fn attempt(&self, seen: &mut Sight) -> Result<bool, kube::Error> {
        let leases = self.leases();
        let Some(lease) = leases.get_opt(LEASE).await? else {
            let made = leases.create(&PostParams::default(), &self.lease(None, &self.replica)).await;
            return won(made);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if seen.as_ref().is_none_or(|(known, _)| *known != version) {
            *seen = Some((version, Instant::now()));
        }
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        let lasts = u64::try_from(spec.lease_duration_seconds.unwrap_or(LASTS_SECONDS)).unwrap_or(0);
        let is_over = seen.as_ref().is_some_and(|(_, since)| since.elapsed() > Duration::from_secs(lasts));
        if holder != self.replica && !holder.is_empty() && !is_over {
            return Ok(false);
        }
        won(leases.replace(LEASE, &PostParams::default(), &self.lease(Some(&lease), &self.replica)).await)
    }

    async fn release(&self) -> Result<(), kube::Error> {
        let leases = self.leases();
        let lease = leases.get(LEASE).await?;
        let is_ours = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) == Some(&self.replica);
        if is_ours {
            leases.replace(LEASE, &PostParams::default(), &self.lease(Some(&lease), "")).await?;
        }
        Ok(())
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The Lease as it is to be; the version in `from` makes sure that nobody has changed it meanwhile.
    fn lease(&self, from: Option<&Lease>, holder: &str) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        let old = from.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let is_same = old.holder_identity.as_deref() == Some(holder);
        let metadata = from.map_or_else(
            || ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() },
            |lease| lease.metadata.clone(),
        );
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(LASTS_SECONDS),
            acquire_time: if is_same { old.acquire_time } else { now.clone() },
            renew_time: now,
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(!is_same)),
            ..LeaseSpec::default()
        };
        Lease { metadata, spec: Some(spec) }
    }
}

/// A replica that comes second is told so by a conflict.
fn won(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn say(leads: &watch::Sender<bool>, now: bool) {
    let is_new = leads.send_if_modified(|before| std::mem::replace(before, now) != now);
    if is_new {
        tracing::info!(leads = now, "the Lease decides which replica tells authors what is wrong with their objects");
    }
}
