//! The service behind `meshctl`: one line per question, the answers are made beside.

use std::sync::Arc;

use mesh_api::proto::admin::{
    CertificatesRequest, CertificatesResponse, CheckRequest, CheckResponse, ExplainRequest, ExplainResponse,
    LogRequest, LogResponse, PoliciesRequest, PoliciesResponse, ServicesRequest, ServicesResponse, SocketsRequest,
    SocketsResponse, StatusRequest, StatusResponse, WorkloadsRequest, WorkloadsResponse, inspect_server,
};
use tonic::{Request, Response, Status};

use super::{Node, certificates, check, explain, sockets, status, world};

/// The service.
#[derive(Debug)]
pub struct InspectService(Arc<Node>);

impl InspectService {
    /// Looks at this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self(node)
    }
}

#[tonic::async_trait]
impl inspect_server::Inspect for InspectService {
    async fn workloads(&self, _: Request<WorkloadsRequest>) -> Result<Response<WorkloadsResponse>, Status> {
        Ok(Response::new(WorkloadsResponse { workloads: world::workloads(&self.0) }))
    }

    async fn services(&self, _: Request<ServicesRequest>) -> Result<Response<ServicesResponse>, Status> {
        Ok(Response::new(ServicesResponse { services: world::services(&self.0) }))
    }

    async fn policies(&self, _: Request<PoliciesRequest>) -> Result<Response<PoliciesResponse>, Status> {
        Ok(Response::new(PoliciesResponse { policies: world::policies(&self.0) }))
    }

    async fn sockets(&self, _: Request<SocketsRequest>) -> Result<Response<SocketsResponse>, Status> {
        let sockets = sockets::list(&self.0).await.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(SocketsResponse { sockets }))
    }

    async fn certificates(&self, _: Request<CertificatesRequest>) -> Result<Response<CertificatesResponse>, Status> {
        Ok(Response::new(CertificatesResponse { certificates: certificates::list(&self.0) }))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        explain::explain(&self.0, &request.into_inner()).map(Response::new)
    }

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        Ok(Response::new(CheckResponse { checks: check::all(&self.0).await }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(status::status(&self.0)))
    }

    async fn log(&self, request: Request<LogRequest>) -> Result<Response<LogResponse>, Status> {
        let filter = request.into_inner().filter;
        let changed = if filter.is_empty() { Ok(()) } else { self.0.log.set_filter(&filter) };
        changed.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let filter = self.0.log.filter().map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(LogResponse { filter }))
    }
}
