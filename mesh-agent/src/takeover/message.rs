//! What the two agents say to each other. Fields that are not known are passed over, so that a later version may say more.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::config::Config;

/// What must be the same of both agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// `--node`
    pub node: String,
    /// Device and inode of `--bpffs`: its path may be another in another container.
    pub bpffs: (u64, u64),
    /// The same of `--cgroup-root`.
    pub cgroup: (u64, u64),
}

impl About {
    /// Of the agent with these settings.
    pub fn of(config: &Config) -> Self {
        let number = |path: &Path| path.metadata().map(|found| (found.dev(), found.ino())).unwrap_or_default();
        Self {
            node: config.node.clone(),
            bpffs: number(&config.kernel.bpffs),
            cgroup: number(&config.kernel.cgroup_root),
        }
    }

    /// The first argument that leads elsewhere.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        let pairs = [
            ("--node", self.node == other.node),
            ("--bpffs", self.bpffs == other.bpffs),
            ("--cgroup-root", self.cgroup == other.cgroup),
        ];
        pairs.into_iter().find(|(_, is_same)| !is_same).map(|(name, _)| name)
    }
}

/// A listening socket of the agent itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketName {
    /// `RUN_DIR/admin.sock`
    Admin,
    /// `RUN_DIR/takeover.sock`
    TakeOver,
    /// Prometheus.
    Metrics,
    /// Readiness.
    Ready,
    /// Operators.
    Operators,
}

impl SocketName {
    /// Found by its path, whatever the network namespace.
    pub fn is_path(self) -> bool {
        matches!(self, Self::Admin | Self::TakeOver)
    }
}

/// From the successor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(super) enum Question {
    Hello { protocol: u32, version: String, about: About },
    Failed { reason: String },
    Ready { shares_pages: bool },
    Done,
    Withdraw { uid: String },
}

/// From the agent in charge.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(super) enum Answer {
    /// Not now, or never.
    Refused {
        reason: String,
        is_final: bool,
    },
    Welcome(Welcome),
    Listeners(Listeners),
    Yours,
    Withdrawn,
}

/// What the agent in charge has. With it go its sockets, in the order of `sockets`, and then its View, if it has one.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Welcome {
    pub version: String,
    /// Cookie of the network namespace that its own listeners are in.
    pub namespace: u64,
    pub sockets: Vec<SocketName>,
    pub has_view: bool,
    /// Control answers it.
    pub is_connected: bool,
    /// Identities of which it holds a valid certificate.
    pub certified: Vec<String>,
}

/// Some pods' listeners. The sockets go with it, in this order.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Listeners {
    pub listeners: Vec<ListenerRow>,
    pub pods: Vec<PodRow>,
    pub is_last: bool,
}

/// A listening socket of a pod.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ListenerRow {
    pub uid: String,
    pub address: SocketAddr,
    pub worker: usize,
}

/// A pod that is served.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PodRow {
    pub uid: String,
    pub older: HashSet<u64>,
    pub others: Vec<IpAddr>,
}
