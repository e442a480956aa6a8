//! Is the agent in sync, and from where does it know what it knows?

use std::time::SystemTime;

use mesh_api::proto::admin::{ResourceTypeStatus, StatusResponse};

use super::{Node, certificates::seconds};

pub(super) fn status(node: &Node) -> StatusResponse {
    let control = node.control.load();
    let wallet = node.wallet.load();
    let certificates = node.certificates.load();
    let is_usable = |held: &crate::certificates::WorkloadCertificate| held.not_after > SystemTime::now();
    let usable = || certificates.iter().filter(|status| status.certificate.as_deref().is_some_and(is_usable));
    StatusResponse {
        node: node.config.node.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        state: node.readiness().label().into(),
        control: if control.is_connected { "connected" } else { "disconnected" }.into(),
        control_address: node.config.control.uri.clone(),
        last_error: control.last_error.clone(),
        view_age_ms: control.view_published.map_or(0, |published| published.elapsed().as_millis() as u64),
        resource_types: control
            .types
            .iter()
            .map(|status| ResourceTypeStatus {
                type_url: status.type_url.into(),
                resources: status.resources as u32,
                nonce: status.nonce.clone(),
                synced: control.is_connected && status.is_complete && status.nack.is_empty(),
                nack: status.nack.clone(),
                hash: status.hash.clone(),
            })
            .collect(),
        pods: node.pods.load().by_uid.len() as u32,
        workers: node.config.kernel.workers,
        trust_bundle_hash: wallet.trust.as_ref().map(|trust| trust.hash.clone()).unwrap_or_default(),
        uptime_ms: node.started.elapsed().as_millis() as u64,
        control_away_since: control.away_since.map_or(0, seconds),
        view_cached_at: control.view_cached.map_or(0, seconds),
        cache_error: node.cache.load().error.clone(),
        certificates: usable().count() as u32,
        certificates_from_disk: usable().filter(|status| status.is_from_vault).count() as u32,
    }
}
