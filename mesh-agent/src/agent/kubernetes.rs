//! What an agent on Kubernetes has besides: the cluster that it follows and the plug-in that it keeps in place. And how it
//! leaves a node for good, when its DaemonSet is gone.

use std::{path::Path, sync::Arc};

use tokio::sync::watch;

use crate::{
    certificates::Vault,
    cni::{self, Installer},
    config::{CniSettings, Config},
    enrol::{self, Enrolment},
    kernel::Kernel,
    kubernetes::{Api, Cluster, SharedOutside},
};

use super::{AgentError, running::Groups};

/// Checked before anything is taken from an agent that runs.
#[derive(Debug)]
pub(super) struct Outfit {
    api: Api,
    installer: Option<Arc<Installer>>,
    /// Where the plug-in is not wanted any more.
    cleared: Option<CniSettings>,
}

/// At work.
#[derive(Debug)]
pub(super) struct OnKubernetes {
    pub(super) cluster: Arc<Cluster>,
    pub(super) installer: Option<Arc<Installer>>,
}

impl Outfit {
    /// None without --kubernetes.
    ///
    /// # Errors
    /// There are no credentials, or no plug-in to install.
    pub(super) async fn of(config: &Config) -> Result<Option<Self>, AgentError> {
        let Some(settings) = &config.kubernetes else { return Ok(None) };
        let api = Api::new(&config.node, settings).await?;
        let (wanted, cleared) = match &settings.cni {
            Some(cni) if cni.is_wanted => (Some(cni), None),
            cni => (None, cni.clone()),
        };
        let installer = wanted.map(|cni| Installer::new(cni, &config.admin_socket())).transpose()?;
        Ok(Some(Self { api, installer, cleared }))
    }

    /// The agent is in charge: all of it runs from here on.
    pub(super) fn start(
        self,
        config: &Config,
        enrolment: Enrolment,
        pods: watch::Receiver<u64>,
        groups: &Groups,
    ) -> OnKubernetes {
        let Self { api, installer, cleared } = self;
        if let Some(Err(error)) = cleared.map(|cni| cni::remove(&cni.conf_dir, &cni.bin_dir)) {
            tracing::error!(%error, "the CNI plug-in was not taken out completely, and goes on holding pods");
        }
        let cluster = Cluster::new(api, &config.kernel.cgroup_root, enrolment);
        for task in cluster.tasks(pods) {
            groups.spawn(&groups.owned, task);
        }
        if let Some(installer) = &installer {
            groups.spawn(&groups.owned, installer.clone().run());
        }
        OnKubernetes { cluster, installer }
    }
}

impl OnKubernetes {
    pub(super) fn outside(&self) -> SharedOutside {
        self.cluster.outside()
    }

    /// The node starts pods without the mesh again, and those that run are back on plain networking. What fails is logged:
    /// the agent ends, and nobody could try again.
    pub(super) async fn leave(&self) {
        tracing::info!("the agent's DaemonSet is gone: the mesh is taken off this node");
        if let Some(Err(error)) = self.installer.as_ref().map(|installer| installer.remove()) {
            tracing::error!(%error, "the CNI plug-in was not taken out completely: pods will not start until it is");
        }
        self.cluster.withdraw_all().await;
    }
}

/// Removes what outlives an agent: programs, maps, pins, the record of pods and keys. Goes on after a failure and answers
/// the first.
pub(super) fn remove_all(bpffs: &Path, run_dir: &Path) -> Result<(), AgentError> {
    let kernel = Kernel::detach(bpffs).map_err(AgentError::from);
    let record = enrol::forget_all(&run_dir.join("pods.json")).map_err(AgentError::from);
    kernel.and(record).and(Vault::empty(run_dir).map_err(AgentError::from))
}
