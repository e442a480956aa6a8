//! Questions to the API server, each within a time limit. The watches keep their own connections open.

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Namespace, Pod},
};
use kube::{
    Client, Config, ResourceExt,
    config::{KubeConfigOptions, Kubeconfig},
    core::PartialObjectMeta,
};
use mesh_api::membership::DATAPLANE_MODE;

use super::pod::NodePod;
use crate::{config::KubernetesSettings, control::causes};

/// An API server that does not even accept is tried again, perhaps at another of its addresses.
const CONNECT: Duration = Duration::from_secs(3);
/// A pod that starts waits this long at most for each answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Why the API server cannot be asked, or has not answered.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The file of --kubeconfig.
    #[error("--kubeconfig: {0}")]
    Kubeconfig(String),
    /// The credentials of the pod.
    #[error("--kubernetes without --kubeconfig is for a pod of the cluster, with a ServiceAccount token mounted: {0}")]
    InCluster(String),
    /// The client cannot be made.
    #[error("the client of the API server: {0}")]
    Client(String),
    /// It has not answered in time.
    #[error("the API server does not answer within {} s", ANSWER.as_secs())]
    Slow,
    /// It cannot be reached, or refuses.
    #[error("the API server does not say: {0}")]
    Answer(String),
}

/// The API server, and who is asked about.
#[derive(Debug)]
pub struct Api {
    client: Requests,
    /// Whose pods are followed.
    pub(super) node: String,
    /// Namespace and name of the agent's own DaemonSet.
    pub(super) daemon_set: Option<(String, String)>,
}

/// `kube::Client`, which shows nothing of itself.
#[derive(Clone)]
struct Requests(Client);

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Api {
    /// By the settings' credentials; asks nobody yet.
    ///
    /// # Errors
    /// There are none, or they cannot be read.
    pub async fn new(node: &str, settings: &KubernetesSettings) -> Result<Self, ApiError> {
        let mut config = match &settings.kubeconfig {
            Some(path) => {
                let failed = |error: &dyn std::error::Error| ApiError::Kubeconfig(error.to_string());
                let file = Kubeconfig::read_from(path).map_err(|error| failed(&error))?;
                let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
                config.map_err(|error| failed(&error))?
            }
            None => Config::incluster().map_err(|error| ApiError::InCluster(causes(&error)))?,
        };
        config.connect_timeout = Some(CONNECT);
        let client = Client::try_from(config).map_err(|error| ApiError::Client(causes(&error)))?;
        Ok(Self { client: Requests(client), node: node.to_owned(), daemon_set: settings.daemon_set.clone() })
    }

    pub(super) fn pods(&self) -> kube::Api<Pod> {
        kube::Api::all(self.client.0.clone())
    }

    /// Of a namespace only its labels are asked for.
    pub(super) fn namespaces(&self) -> kube::Api<PartialObjectMeta<Namespace>> {
        kube::Api::all(self.client.0.clone())
    }

    /// The kind of the agent's own DaemonSet, where it is; none without one.
    pub(super) fn daemon_sets(&self) -> Option<(kube::Api<DaemonSet>, &str)> {
        let (namespace, name) = self.daemon_set.as_ref()?;
        Some((kube::Api::namespaced(self.client.0.clone(), namespace), name))
    }

    /// A pod as it is now; none: there is no such pod.
    pub(super) async fn pod(&self, namespace: &str, name: &str) -> Result<Option<NodePod>, ApiError> {
        let api: kube::Api<Pod> = kube::Api::namespaced(self.client.0.clone(), namespace);
        let pod = answered(api.get_opt(name)).await?;
        Ok(pod.and_then(|pod| NodePod::read(&pod, self.daemon_set.as_ref())))
    }

    /// The label of a namespace as it is now.
    pub(super) async fn mode(&self, namespace: &str) -> Result<Option<String>, ApiError> {
        let found = answered(self.namespaces().get_opt(namespace)).await?;
        let Some(found) = found else {
            return Err(ApiError::Answer(format!("it has no namespace {namespace}")));
        };
        Ok(found.labels().get(DATAPLANE_MODE).cloned())
    }

    /// The agent's own DaemonSet as it is now; none: there is none.
    pub(super) async fn own(&self) -> Result<Option<DaemonSet>, ApiError> {
        match self.daemon_sets() {
            Some((api, name)) => answered(api.get_opt(name)).await,
            None => Ok(None),
        }
    }
}

async fn answered<T>(question: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ApiError> {
    match tokio::time::timeout(ANSWER, question).await {
        Err(_) => Err(ApiError::Slow),
        Ok(answer) => answer.map_err(|error| ApiError::Answer(causes(&error))),
    }
}
