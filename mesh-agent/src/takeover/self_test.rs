//! Whether a successor is at least as well off as the agent that it wants to replace. Changes nothing: that one's files and
//! maps are still its own.

use std::{sync::Arc, time::Duration};

use mesh_api::Identity;
use tokio::time::{Instant, sleep};

use crate::{
    certificates::{TrustBundle, Vault},
    control::SharedControlStatus,
    path::WorkerHandle,
    view::SharedView,
};

use super::Candidate;

/// Control answers within seconds, or this agent cannot reach it.
const LIMIT: Duration = Duration::from_secs(10);
/// How often what is waited for is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What a successor cannot do.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// Without one it would refuse everything.
    #[error("the agent that runs has no View that this one can use, and none came from control within {LIMIT:?}: {0}")]
    View(String),
    /// It would miss every change from then on.
    #[error("control answers the agent that runs and not this one, within {LIMIT:?}: {0}")]
    Control(String),
    /// Mutual TLS would be refused for a workload.
    #[error("the certificate of {identity} is not in RUN_DIR/keys, and the agent that runs has one: {reason}")]
    Certificate {
        /// Whose.
        identity: String,
        /// Why it is not used.
        reason: String,
    },
    /// Peers could not be verified.
    #[error("the roots of the trust domain: {0}")]
    Trust(String),
    /// A thread of the data path does not run.
    #[error("worker {0} has ended")]
    Worker(usize),
}

/// Where the successor's own state is seen.
#[derive(Debug)]
pub struct Witnesses<'a> {
    /// The View that it holds.
    pub view: &'a SharedView,
    /// How its connection to control goes.
    pub control: &'a SharedControlStatus,
    /// Where the keys are.
    pub vault: &'a Vault,
    /// Its threads.
    pub workers: &'a Arc<[WorkerHandle]>,
}

/// Waits for what takes time, then looks at the rest.
///
/// # Errors
/// The first thing that the agent before has and this one lacks.
pub async fn self_test(before: &Candidate, own: &Witnesses<'_>) -> Result<(), SelfTestError> {
    let until = Instant::now() + LIMIT;
    while let Err(missing) = knows_the_mesh(before, own) {
        if Instant::now() >= until {
            return Err(missing);
        }
        sleep(LOOK).await;
    }
    if let Some(ended) = own.workers.iter().position(|worker| !worker.is_alive()) {
        return Err(SelfTestError::Worker(ended));
    }
    check_certificates(before, own)
}

fn knows_the_mesh(before: &Candidate, own: &Witnesses<'_>) -> Result<(), SelfTestError> {
    let control = own.control.load();
    let is_in_sync = control.is_connected && control.types.iter().all(|status| status.is_complete);
    if own.view.load().is_none() {
        return Err(SelfTestError::View(control.last_error.clone()));
    }
    if before.is_connected() && !is_in_sync {
        return Err(SelfTestError::Control(control.last_error.clone()));
    }
    Ok(())
}

fn check_certificates(before: &Candidate, own: &Witnesses<'_>) -> Result<(), SelfTestError> {
    let certified = before.certified();
    if certified.is_empty() {
        return Ok(());
    }
    let texts = own.control.load().trust_bundle.clone();
    let trust = TrustBundle::parse(&texts).map_err(|error| SelfTestError::Trust(error.to_string()))?;
    for text in certified {
        let lacks = |reason| SelfTestError::Certificate { identity: text.clone(), reason };
        let identity = Identity::parse(text).map_err(|error| lacks(error.to_string()))?;
        own.vault.check(&identity, &trust).map_err(lacks)?;
    }
    Ok(())
}
