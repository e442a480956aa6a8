//! The CNI plug-in's service: its questions go to `kubernetes`, which an agent without it has not.

use std::sync::Arc;

use mesh_api::proto::admin::{
    CniAddRequest, CniAddResponse, CniCheckRequest, CniCheckResponse, CniDeleteRequest, CniDeleteResponse, cni_server,
};
use tonic::{Request, Response, Status};

use crate::kubernetes::Cluster;

/// The service.
#[derive(Debug)]
pub struct CniService(Option<Arc<Cluster>>);

impl CniService {
    /// Answers by this cluster; none: refuses.
    pub fn new(cluster: Option<Arc<Cluster>>) -> Self {
        Self(cluster)
    }

    fn cluster(&self) -> Result<&Cluster, Status> {
        self.0.as_deref().ok_or_else(|| Status::failed_precondition("the agent runs without --kubernetes"))
    }
}

#[tonic::async_trait]
impl cni_server::Cni for CniService {
    async fn add(&self, request: Request<CniAddRequest>) -> Result<Response<CniAddResponse>, Status> {
        self.cluster()?.add(request.into_inner()).await.map(Response::new)
    }

    async fn check(&self, request: Request<CniCheckRequest>) -> Result<Response<CniCheckResponse>, Status> {
        self.cluster()?.check(request.into_inner().sandbox).await?;
        Ok(Response::new(CniCheckResponse {}))
    }

    async fn delete(&self, request: Request<CniDeleteRequest>) -> Result<Response<CniDeleteResponse>, Status> {
        self.cluster()?.delete(request.into_inner().sandbox).await?;
        Ok(Response::new(CniDeleteResponse {}))
    }
}
