//! What the CNI plug-in asks: may this pod start? It may when steering is in force for it, or when its labels do not want it.
//! Nothing that is uncertain lets it start: neither a pod that nobody knows nor a namespace of which nothing was ever heard.
//! While the API server does not answer, what it said last counts, as for pods that run.

use std::{path::Path, sync::Arc};

use mesh_api::proto::admin::{
    CniAddRequest, CniAddResponse, EnrolRequest, Pod as PodMessage, Sandbox, enrol_request::NetworkNamespace as Source,
};
use tonic::Status;

use super::{
    ApiError, Cluster, place,
    pod::{NodePod, Outside},
};
use crate::{
    enrol::{Conflict, EnrolError, FailOpen},
    kernel::NetworkNamespace,
};

/// The API server may answer later.
impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        Self::unavailable(error.to_string())
    }
}

impl Cluster {
    /// Enrols the pod, or says why it is not wanted.
    ///
    /// # Errors
    /// UNAVAILABLE: nobody knows. Others: the pod cannot be steered, and must not start.
    pub async fn add(&self, request: CniAddRequest) -> Result<CniAddResponse, Status> {
        let sandbox = request.sandbox.ok_or_else(|| Status::invalid_argument("sandbox: is missing"))?;
        if *self.is_leaving.borrow() {
            let reason = "the mesh is being taken off this node".into();
            return Ok(CniAddResponse { enrolled: false, reason });
        }
        let pod = self.find(&sandbox).await?;
        if let Err(outside) = self.wish(&pod).await? {
            tracing::debug!(pod = format!("{}/{}", pod.namespace, pod.name), reason = outside.reason(), "not enrolled");
            return Ok(CniAddResponse { enrolled: false, reason: outside.reason().into() });
        }
        let source = Source::NetworkNamespacePath(sandbox.network_namespace_path);
        self.enrol_new(&pod, source, request.addresses).await?;
        Ok(CniAddResponse { enrolled: true, reason: String::new() })
    }

    /// Whether the pod is enrolled in this sandbox, if it is to be.
    ///
    /// # Errors
    /// NOT_FOUND: it is not. Others as [`Cluster::add`].
    pub async fn check(&self, sandbox: Option<Sandbox>) -> Result<(), Status> {
        let sandbox = sandbox.ok_or_else(|| Status::invalid_argument("sandbox: is missing"))?;
        let pod = self.find(&sandbox).await?;
        if self.wish(&pod).await?.is_err() || self.enrolled_in(&sandbox, &pod.uid).await?.is_some() {
            return Ok(());
        }
        Err(Status::not_found("the pod is not enrolled in this sandbox"))
    }

    /// Withdraws the pod, if it is enrolled in this sandbox: the runtime tells of an old one also when there is a new one.
    ///
    /// # Errors
    /// NOT_FOUND: it is not enrolled, or its namespace is gone, which the agent sees by itself.
    pub async fn delete(&self, sandbox: Option<Sandbox>) -> Result<(), Status> {
        let sandbox = sandbox.ok_or_else(|| Status::invalid_argument("sandbox: is missing"))?;
        let known = || self.known.pod(&sandbox.namespace, &sandbox.name).map(|pod| pod.uid.clone());
        let uid = Some(sandbox.uid.clone()).filter(|uid| !uid.is_empty()).or_else(known).unwrap_or_default();
        match self.enrolled_in(&sandbox, &uid).await? {
            Some(pod) => Ok(self.enrolment.withdraw(pod.uid).await?),
            None => Err(Status::not_found("no pod is enrolled in this sandbox")),
        }
    }

    async fn enrolled_in(&self, sandbox: &Sandbox, uid: &str) -> Result<Option<PodMessage>, Status> {
        let Ok(namespace) = NetworkNamespace::open(Path::new(&sandbox.network_namespace_path)) else { return Ok(None) };
        let (pods, _) = self.enrolment.list().await?;
        Ok(pods.into_iter().find(|pod| pod.uid == uid && pod.network_namespace_cookie == namespace.cookie()))
    }

    /// The pod that the runtime speaks of, and no other of its name.
    async fn find(&self, sandbox: &Sandbox) -> Result<Arc<NodePod>, Status> {
        let Sandbox { namespace, name, uid, .. } = sandbox;
        let is_it = |pod: &Arc<NodePod>| uid.is_empty() || pod.uid == *uid;
        // Without a uid, what is known may be a pod of before.
        if let Some(pod) = self.known.pod(namespace, name).filter(|pod| !uid.is_empty() && is_it(pod)) {
            return Ok(pod);
        }
        let pod = self.api.pod(namespace, name).await?.map(Arc::new);
        pod.filter(is_it).ok_or_else(|| {
            let uid = if uid.is_empty() { String::new() } else { format!(" with uid {uid}") };
            Status::failed_precondition(format!("the API server has no pod {namespace}/{name}{uid}"))
        })
    }

    /// A label that was set a moment ago counts: before a pod starts without the mesh, its namespace is asked for once more. If the
    /// API server does not answer, what it said last counts.
    async fn wish(&self, pod: &NodePod) -> Result<Result<(), Outside>, Status> {
        let known = self.known.mode(&pod.namespace);
        let wish = known.as_ref().map(|mode| pod.wish(mode.as_deref()));
        match wish {
            Some(Ok(())) => return Ok(Ok(())),
            _ if pod.mode.is_some() => return Ok(pod.wish(None)),
            _ => {}
        }
        match (self.api.mode(&pod.namespace).await, wish) {
            (Ok(mode), _) => {
                // Else what follows the watch would take back what is decided here.
                self.known.learn_namespace(&pod.namespace, mode.clone());
                Ok(pod.wish(mode.as_deref()))
            }
            (Err(_), Some(wish)) => Ok(wish),
            (Err(error), None) => Err(error.into()),
        }
    }

    /// Enrols a pod in the sandbox that a runtime has just made. One that is enrolled in another is withdrawn first: that
    /// one is no more.
    async fn enrol_new(&self, pod: &NodePod, source: Source, addresses: Vec<String>) -> Result<(), EnrolError> {
        match self.enrol(pod, source.clone(), addresses.clone()).await {
            Err(EnrolError::Conflict(Conflict::Differs { uid, field })) => {
                tracing::info!(uid, field, "the pod has a new sandbox");
                self.enrolment.withdraw(uid).await?;
                self.enrol(pod, source, addresses).await
            }
            enrolled => enrolled,
        }
    }

    /// Enrols a pod where it is.
    pub(super) async fn enrol(&self, pod: &NodePod, source: Source, addresses: Vec<String>) -> Result<(), EnrolError> {
        let cgroup = place::cgroup(&self.cgroup_root, &pod.uid)
            .ok_or_else(|| EnrolError::NoCgroup { uid: pod.uid.clone(), root: self.cgroup_root.clone() })?;
        let request = EnrolRequest {
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            service_account: pod.service_account.clone(),
            addresses,
            network_namespace: Some(source),
            cgroup_path: cgroup.display().to_string(),
            probe_ports: pod.probe_ports.iter().copied().map(u32::from).collect(),
            fail_open: pod.wants_fail_open,
        };
        self.enrolment.enrol(request, FailOpen::WhereAllowed).await
    }
}
