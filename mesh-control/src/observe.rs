//! The HTTP ports: one for Prometheus and probes (metrics, readiness), one for operators (what is wrong with the
//! configuration, how far each agent has come). Show no key and no token, and change nothing.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use serde::Serialize;
use tokio::sync::watch;

use crate::{
    kubernetes::store::KindReport,
    metrics::Metrics,
    source::folder::FileReport,
    xds::roster::{Attendance, Roster},
};

/// What `GET /debug/config` answers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConfigReport {
    /// Generation of the published state.
    pub version: u64,
    /// Number of problems in all files.
    pub errors: usize,
    /// One entry for each file of a folder; of an API server, for each object with which something is wrong.
    pub files: Vec<FileReport>,
    /// How far each kind of an API server is known; nothing for a folder.
    pub kinds: Vec<KindReport>,
    /// What is in force and has no effect.
    pub warnings: Vec<String>,
}

/// What `GET /debug/agents` answers. An agent is in sync when its version is the published one, it has answered, and it
/// refused nothing.
#[derive(Clone, Debug, Serialize)]
pub struct AgentsReport {
    /// Generation of the published state.
    pub version: u64,
    /// One entry for each stream.
    pub agents: Vec<Attendance>,
}

/// What the pages show.
#[derive(Clone)]
pub struct Shown {
    /// Metrics and readiness.
    pub metrics: Arc<Metrics>,
    /// The configuration.
    pub config: watch::Receiver<Arc<ConfigReport>>,
    /// The connected agents.
    pub roster: Arc<Roster>,
}

/// What anybody may see.
pub fn open_pages(shown: Shown) -> Router {
    Router::new().route("/metrics", get(metrics)).route("/healthz/ready", get(ready)).with_state(shown)
}

/// What names manifests, their mistakes and agents.
pub fn debug_pages(shown: Shown) -> Router {
    Router::new().route("/debug/config", get(config)).route("/debug/agents", get(agents)).with_state(shown)
}

async fn metrics(State(shown): State<Shown>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], shown.metrics.text())
}

async fn ready(State(shown): State<Shown>) -> impl IntoResponse {
    match shown.metrics.is_ready() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "no state is published yet\n"),
    }
}

async fn config(State(shown): State<Shown>) -> impl IntoResponse {
    json(&*shown.config.borrow().clone())
}

async fn agents(State(shown): State<Shown>) -> impl IntoResponse {
    let version = shown.config.borrow().version;
    json(&AgentsReport { version, agents: shown.roster.all() })
}

fn json<T: Serialize>(report: &T) -> impl IntoResponse + use<T> {
    match serde_json::to_string_pretty(report) {
        Ok(text) => (StatusCode::OK, [(CONTENT_TYPE, "application/json")], text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], error.to_string()),
    }
}
