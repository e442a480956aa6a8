//! `meshctl explain`: the path's own answer, as a message.

use mesh_api::proto::admin::{ExplainRequest, ExplainResponse, ExplainStep};
use tonic::Status;

use crate::path::{Step, explain as explain_connection};

use super::Node;

/// # Errors
/// The port is none, or the agent has no View yet.
pub(super) fn explain(node: &Node, request: &ExplainRequest) -> Result<ExplainResponse, Status> {
    let port = u16::try_from(request.port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| Status::invalid_argument(format!("port: {} is not a port", request.port)))?;
    let view = node.view.load_full().ok_or_else(|| Status::failed_precondition("the agent has no View yet"))?;
    let answer = explain_connection(&view, &node.pods.load(), &request.source, &request.destination, port);
    let step = |step: Step| ExplainStep { stage: step.stage.into(), text: step.text };
    Ok(ExplainResponse {
        steps: answer.steps.into_iter().map(step).collect(),
        verdict: answer.verdict.into(),
        policy: answer.policy.map(|policy| policy.to_string()).unwrap_or_default(),
        reason: answer.reason,
        path: answer.path.into(),
    })
}
