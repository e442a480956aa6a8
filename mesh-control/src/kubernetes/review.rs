//! Whose a token is, and what runs on a node, by the word of the API server at the time of asking. Nothing is
//! remembered: a token whose pod has gone is worth nothing from that moment on.

use std::sync::Arc;

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    core::v1::Pod,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};

use super::store::Store;
use crate::{
    objects::metadata::Name,
    xds::caller::{Caller, CallerError},
};

/// What Kubernetes says of the pod and the node that a token is bound to.
/// Source: k8s.io/kubernetes pkg/serviceaccount/claims.go.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Asks an API server.
pub struct Reviews {
    /// Who is asked.
    pub client: Client,
    /// The node agents' ServiceAccount.
    pub agent: Name,
    /// The audience that tokens must be for.
    pub audience: String,
    /// What was seen of pods.
    pub store: Arc<Store>,
}

impl Reviews {
    /// The agent that a token is of: of the agents' ServiceAccount, bound to a pod that is there, on that pod's node.
    ///
    /// # Errors
    /// See [`CallerError`].
    pub async fn caller(&self, token: &str) -> Result<Caller, CallerError> {
        let user = self.user(token).await?;
        let expected = format!("system:serviceaccount:{}:{}", self.agent.namespace, self.agent.name);
        let found = user.username.clone().unwrap_or_default();
        if found != expected {
            return Err(CallerError::Account { found, expected: self.agent.clone() });
        }
        let (Some(name), Some(uid)) = (claim(&user, POD_NAME), claim(&user, POD_UID)) else {
            return Err(CallerError::Unbound);
        };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.agent.namespace);
        let gone = || CallerError::Pod(Name::new(&self.agent.namespace, name));
        let pod = pods.get_opt(name).await.map_err(unanswered)?.ok_or_else(gone)?;
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).ok_or(CallerError::Unbound)?;
        // The claim is older than Kubernetes 1.32 has it on; where it is, it has to agree.
        let is_same_node = claim(&user, NODE_NAME).is_none_or(|claimed| claimed == node);
        let is_same_pod = pod.metadata.uid.as_deref() == Some(uid) && !is_finished(&pod);
        let pod = Some((Name::new(&self.agent.namespace, name), uid.to_owned()));
        if is_same_node && is_same_pod { Ok(Caller { node, token: None, pod }) } else { Err(gone()) }
    }

    async fn user(&self, token: &str) -> Result<UserInfo, CallerError> {
        let audiences = vec![self.audience.clone()];
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(audiences.clone()) },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await.map_err(unanswered)?;
        let status = answer.status.unwrap_or_default();
        if !status.authenticated.unwrap_or(false) {
            return Err(CallerError::Refused(status.error.unwrap_or_else(|| "it is not a valid one".to_owned())));
        }
        // An authenticator that knows nothing of audiences leaves them out, and has not checked ours.
        if status.audiences.unwrap_or_default() != audiences {
            return Err(CallerError::Audience(self.audience.clone()));
        }
        status.user.ok_or(CallerError::Unbound)
    }

    /// True when a pod of the ServiceAccount is on the node and has not run to its end. O(pods of that account there).
    ///
    /// # Errors
    /// The API server could not be asked.
    pub async fn runs(&self, node: &str, account: &Name) -> Result<bool, CallerError> {
        let fields = format!("spec.nodeName={node},spec.serviceAccountName={}", account.name);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &account.namespace);
        let found = pods.list(&ListParams::default().fields(&fields)).await.map_err(unanswered)?;
        Ok(found.items.iter().any(|pod| !is_finished(pod)))
    }
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn claim<'a>(user: &'a UserInfo, name: &str) -> Option<&'a str> {
    user.extra.as_ref()?.get(name)?.first().map(String::as_str)
}

fn unanswered(error: kube::Error) -> CallerError {
    CallerError::Unanswered(super::sentence(&error))
}
