//! What operators and runtimes ask of the agent: gRPC on a Unix socket (root only), metrics, readiness. Only reads, but
//! for enrolment and the log filter.

mod certificates;
mod check;
mod cni;
mod enrolment;
mod explain;
mod http;
mod inspect;
mod log;
mod membership;
mod metrics;
mod process;
mod rights;
mod serve;
mod sockets;
mod status;
mod world;

pub use log::{LogControl, LogError};
pub use serve::{AdminError, Ends, Runtimes, Sockets, bind, serve};

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    cache::SharedCacheStatus,
    certificates::{SharedCertificateStatus, SharedWallet},
    cni::Installer,
    config::Config,
    control::SharedControlStatus,
    drain::{Drain, Phase},
    enrol::{SharedOlder, SharedPods},
    kernel::Kernel,
    kubernetes::SharedOutside,
    path::WorkerHandle,
    telemetry::Telemetry,
    view::SharedView,
};

/// Everything that can be looked at.
#[derive(Debug)]
pub struct Node {
    /// The settings it was started with.
    pub config: Config,
    /// When it was started.
    pub started: Instant,
    /// Flows, counters, sockets.
    pub kernel: Arc<Kernel>,
    /// Who knows the connections through the agent.
    pub workers: Arc<[WorkerHandle]>,
    /// The View of now.
    pub view: SharedView,
    /// The pods of now.
    pub pods: SharedPods,
    /// Connections older than enrolment.
    pub older: SharedOlder,
    /// Certificates in use.
    pub wallet: SharedWallet,
    /// How renewing them goes.
    pub certificates: SharedCertificateStatus,
    /// How the control connection goes.
    pub control: SharedControlStatus,
    /// What of the View is on disk.
    pub cache: SharedCacheStatus,
    /// Counters of connections.
    pub telemetry: Arc<Telemetry>,
    /// The log filter.
    pub log: LogControl,
    /// Whether the agent is stopping.
    pub drain: Drain,
    /// Pods that the API server has on this node and that are not enrolled, and why.
    pub outside: SharedOutside,
    /// Who keeps the CNI plug-in in place.
    pub installer: Option<Arc<Installer>>,
}

/// How far the agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// No View yet, or a worker has not beaten for it yet: connections through the agent are refused. Or the CNI plug-in, which
    /// this agent is to keep in place, has not been there yet.
    Starting,
    /// A worker thread has ended: its share of connections is refused.
    WorkerLost,
    /// A hook of ours is not attached any more: pods are not steered.
    Detached,
    /// All is well.
    Ready,
    /// Stopping.
    Draining,
}

impl Readiness {
    /// As `meshctl status` shows it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::WorkerLost => "worker lost",
            Self::Detached => "programs detached",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

impl Node {
    /// How far the agent is.
    pub fn readiness(&self) -> Readiness {
        if self.drain.phase() != Phase::Running {
            return Readiness::Draining;
        }
        if self.view.load().is_none() {
            return Readiness::Starting;
        }
        if self.workers.iter().any(|worker| !worker.is_alive()) {
            return Readiness::WorkerLost;
        }
        // Pods would start first and be enrolled afterwards.
        if self.installer.as_ref().is_some_and(|installer| !installer.was_in_place()) {
            return Readiness::Starting;
        }
        let limit = Duration::from_nanos(mesh_common::HEARTBEAT_MAX_AGE_NS);
        let is_late = |age: Option<Duration>| age.is_none_or(|age| age > limit);
        if self.kernel.heartbeat_ages().is_ok_and(|ages| ages.into_iter().any(is_late)) {
            return Readiness::Starting;
        }
        let is_detached = self.kernel.links_fact().result == crate::kernel::FactResult::Failed;
        if is_detached { Readiness::Detached } else { Readiness::Ready }
    }
}
