//! Certificates as rows: each workload's with how its renewal goes, then the roots.

use std::time::{SystemTime, UNIX_EPOCH};

use mesh_api::proto::admin::CertificateRow;
use rustls::pki_types::CertificateDer;

use crate::certificates::{CertificateFacts, CertificateStatus};

use super::Node;

/// By identity; roots last.
pub(super) fn list(node: &Node) -> Vec<CertificateRow> {
    let now = SystemTime::now();
    let mut rows: Vec<CertificateRow> =
        node.certificates.load().iter().map(|status| workload_row(status, now)).collect();
    if let Some(trust) = &node.wallet.load().trust {
        rows.extend(trust.certificates.iter().map(|root| root_row(root, now)));
    }
    rows
}

fn workload_row(status: &CertificateStatus, now: SystemTime) -> CertificateRow {
    let mut row = CertificateRow {
        identity: status.identity.to_string(),
        kind: "workload".into(),
        state: "missing".into(),
        error: status.error.clone(),
        renews_at: seconds(status.renews_at),
        ..CertificateRow::default()
    };
    if let Some(certificate) = &status.certificate {
        let state = match (now < certificate.not_after, status.error.is_empty()) {
            _ if now < certificate.not_before => "not yet valid",
            (false, _) => "expired",
            (true, true) => "valid",
            (true, false) => "renewing",
        };
        row.state = state.into();
        row.serial.clone_from(&certificate.serial);
        row.not_before = seconds(certificate.not_before);
        row.not_after = seconds(certificate.not_after);
    }
    row
}

fn root_row(root: &CertificateDer<'_>, now: SystemTime) -> CertificateRow {
    let mut row = CertificateRow { kind: "root".into(), state: "missing".into(), ..CertificateRow::default() };
    match CertificateFacts::read(root) {
        Ok(facts) => {
            row.identity = facts.subject;
            row.state = if now < facts.not_after { "valid" } else { "expired" }.into();
            row.serial = facts.serial;
            row.not_before = seconds(facts.not_before);
            row.not_after = seconds(facts.not_after);
        }
        Err(error) => row.error = error.to_string(),
    }
    row
}

pub(super) fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
