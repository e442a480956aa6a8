//! The certificate service of wire.md §5. A node agent may ask for the identities of workloads on its own node and of
//! nobody else. A refusal is logged with its reason; the caller only learns that it was refused.

use std::{sync::Arc, time::Duration};

use mesh_api::proto::ca::{
    IstioCertificateRequest, IstioCertificateResponse, istio_certificate_service_server::IstioCertificateService,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{
    authority::{Authority, SignError},
    identity::Identity,
    request::{self, RequestError},
};
use crate::{
    metrics::Metrics,
    publish::Snapshot,
    xds::caller::{Caller, CallerError, Callers},
};

/// The service.
pub struct CertificateService {
    /// Who signs; another after a step of a rotation.
    pub authority: watch::Receiver<Arc<Authority>>,
    /// What runs where.
    pub state: watch::Receiver<Arc<Snapshot>>,
    /// Who asks.
    pub callers: Arc<Callers>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Caller(#[from] CallerError),
    #[error("metadata.ImpersonatedIdentity is missing or no workload identity: {0:?}")]
    Identity(String),
    #[error("identities of the trust domain {0} are not signed here")]
    TrustDomain(String),
    #[error("no workload of {0} runs on the node")]
    NotHere(Identity),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Sign(#[from] SignError),
}

impl Refusal {
    /// The metric's label.
    fn reason(&self) -> &'static str {
        match self {
            Refusal::Caller(error) => error.reason(),
            Refusal::Identity(_) => "identity",
            Refusal::TrustDomain(_) => "trust_domain",
            Refusal::NotHere(_) => "not_on_node",
            Refusal::Request(_) => "request",
            Refusal::Sign(_) => "authority",
        }
    }

    /// What the caller learns.
    fn status(&self) -> Status {
        match self {
            Refusal::Caller(error) => error.status(),
            Refusal::Sign(_) => Status::unavailable("no certificate can be issued now"),
            _ => Status::permission_denied("not permitted"),
        }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = request.remote_addr();
        let agent = self.callers.caller(request.metadata()).await;
        let node = agent.as_ref().ok().map(|agent| agent.node.clone());
        let identity = impersonated(request.get_ref()).to_owned();
        let issued = match agent {
            Ok(agent) => self.issue(&agent, request.get_ref()).await,
            Err(error) => Err(error.into()),
        };
        match issued {
            Ok(cert_chain) => {
                self.metrics.certificates_issued.inc();
                tracing::info!(node, identity, "certificate issued");
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(refusal) => {
                self.metrics.refused(refusal.reason());
                match refusal {
                    Refusal::Caller(CallerError::Token) => self.metrics.no_token(caller, "a certificate"),
                    _ => tracing::warn!(node, identity, ?caller, reason = %refusal, "certificate refused"),
                }
                Err(refusal.status())
            }
        }
    }
}

impl CertificateService {
    async fn issue(&self, agent: &Caller, request: &IstioCertificateRequest) -> Result<Vec<String>, Refusal> {
        let text = impersonated(request);
        let identity = Identity::parse(text).ok_or_else(|| Refusal::Identity(text.chars().take(256).collect()))?;
        let state = self.state.borrow().clone();
        if identity.trust_domain != state.trust_domain {
            return Err(Refusal::TrustDomain(identity.trust_domain));
        }
        let key = request::public_key(&request.csr, &identity)?;
        // Asked last: an API server is asked only for what could be signed.
        if !self.callers.runs(agent, &identity.account, &state).await? {
            return Err(Refusal::NotHere(identity));
        }
        let asked = Duration::from_secs(u64::try_from(request.validity_duration).unwrap_or(0));
        let authority = self.authority.borrow().clone();
        Ok(authority.sign_workload(&identity, &key, authority.lifetime(asked))?)
    }
}

/// `metadata.ImpersonatedIdentity`, or nothing.
fn impersonated(request: &IstioCertificateRequest) -> &str {
    let value = request.metadata.as_ref().and_then(|metadata| metadata.fields.get("ImpersonatedIdentity"));
    match value.and_then(|value| value.kind.as_ref()) {
        Some(prost_types::value::Kind::StringValue(text)) => text,
        _ => "",
    }
}
