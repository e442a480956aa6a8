//! Plain HTTP on the node: metrics for Prometheus, readiness for Kubernetes, a first page for operators. GET only.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;

use super::{Node, Readiness, metrics, status};

/// Source: OpenMetrics 1.0.0, "Overall structure".
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `/metrics`, and `/stats/prometheus` as Istio's scrape configuration has it.
pub(super) fn metrics(node: Arc<Node>) -> Router {
    Router::new().route("/metrics", get(page)).route("/stats/prometheus", get(page)).with_state(node)
}

async fn page(State(node): State<Arc<Node>>) -> Response {
    match metrics::page(&node) {
        Ok(page) => ([(header::CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// `/healthz/ready`: 200 only with a View, all workers alive and all programs attached.
pub(super) fn readiness(node: Arc<Node>) -> Router {
    Router::new().route("/healthz/ready", get(ready)).with_state(node)
}

async fn ready(State(node): State<Arc<Node>>) -> (StatusCode, &'static str) {
    let readiness = node.readiness();
    let code = if readiness == Readiness::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, readiness.label())
}

/// The first page for operators, on a loopback address only.
pub(super) fn operators(node: Arc<Node>) -> Router {
    Router::new().route("/", get(overview)).route("/metrics", get(page)).with_state(node)
}

async fn overview(State(node): State<Arc<Node>>) -> Response {
    let status = status::status(&node);
    let overview = json!({
        "node": status.node,
        "version": status.version,
        "state": status.state,
        "control": status.control,
        "pods": status.pods,
        "workers": status.workers,
        "uptime_ms": status.uptime_ms,
        "admin_socket": node.config.admin_socket(),
    });
    ([(header::CONTENT_TYPE, "application/json")], overview.to_string()).into_response()
}
