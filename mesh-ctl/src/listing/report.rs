//! Columns of certificates, of `check`, of `explain` and of `status`.

use mesh_api::proto::admin::{
    CertificateRow, CheckRow, ExplainResponse, ExplainStep, ResourceTypeStatus, StatusResponse,
};

use super::{always, short, wide};
use crate::table::{Cell, Column};

/// The certificates and roots the node holds.
pub const CERTIFICATES: &[Column<CertificateRow>] = &[
    always("CERTIFICATE NAME", "identity", "SPIFFE name, or the name of the root", |r| Cell::text(&r.identity)),
    always("TYPE", "kind", "workload or root", |r| Cell::text(&r.kind)),
    always(
        "STATUS",
        "state",
        "valid, renewing (late; the current one stays in use), expired, not yet valid (clocks differ), missing",
        |r| Cell::text(&r.state),
    ),
    short("VALID CERT", "connections can be made with it", |r| Cell::Flag(is_valid(r))),
    always("SERIAL NUMBER", "serial", "serial number, hexadecimal", |r| Cell::text(&r.serial)),
    always("NOT AFTER", "not_after", "end of its life (UTC)", |r| Cell::Time(r.not_after)),
    always("NOT BEFORE", "not_before", "begin of its life (UTC)", |r| Cell::Time(r.not_before)),
    wide("RENEWS AT", "renews_at", "time of the next renewal (UTC)", |r| Cell::Time(r.renews_at)),
    always("ERROR", "error", "of the last renewal; - when it succeeded", |r| Cell::text(&r.error)),
];

/// The lines of `meshctl check`.
pub const CHECKS: &[Column<CheckRow>] = &[
    always("CHECK", "name", "what was looked at", |r| Cell::text(&r.name)),
    always("RESULT", "result", "ok, warning, failed", |r| Cell::text(&r.result)),
    always("FOUND", "text", "what is the case", |r| Cell::text(&r.text)),
    wide("REMEDY", "remedy", "what to do (in the table: below it)", |r| Cell::text(&r.remedy)),
];

/// The stages of `meshctl explain`.
pub const STEPS: &[Column<ExplainStep>] = &[
    always("STAGE", "stage", "origin, resolve, authorize, ...", |r| Cell::text(&r.stage)),
    always("FOUND", "text", "what the stage found", |r| Cell::text(&r.text)),
];

/// The result of `meshctl explain`.
pub const VERDICT: &[Column<ExplainResponse>] = &[
    always("VERDICT", "verdict", "allowed, denied (by policy), refused (by the mesh)", |r| Cell::text(&r.verdict)),
    always("PATH", "path", "as in meshctl sockets", |r| Cell::text(&r.path)),
    always("POLICY", "policy", "namespace/name that decided; - when no policy selects it", |r| Cell::text(&r.policy)),
    always("REASON", "reason", "why", |r| Cell::text(&r.reason)),
];

/// The agent itself.
pub const STATUS: &[Column<StatusResponse>] = &[
    always("NODE", "node", "name of the node", |r| Cell::text(&r.node)),
    always("VERSION", "version", "of the agent", |r| Cell::text(&r.version)),
    always("STATE", "state", "starting, ready, draining", |r| Cell::text(&r.state)),
    always("UPTIME", "uptime_ms", "since the agent started (JSON: milliseconds)", |r| Cell::Milliseconds(r.uptime_ms)),
    always("CONTROL", "control", "connected or disconnected", |r| Cell::text(&r.control)),
    always("CONTROL ADDRESS", "control_address", "of the control daemon", |r| Cell::text(&r.control_address)),
    always("LAST ERROR", "last_error", "of the connection to control; stays after it is connected again", |r| {
        Cell::text(&r.last_error)
    }),
    always("CONTROL AWAY", "control_away_since", "since when control is away (UTC); - while it answers", |r| {
        Cell::Time(r.control_away_since)
    }),
    always("VIEW AGE", "view_age_ms", "since the last change from control (JSON: milliseconds)", |r| {
        Cell::Milliseconds(r.view_age_ms)
    }),
    always(
        "VIEW FROM DISK",
        "view_cached_at",
        "when the View was written to disk (UTC); - when it is from control",
        |r| Cell::Time(r.view_cached_at),
    ),
    always("CACHE ERROR", "cache_error", "why the View on disk was refused or cannot be written", |r| {
        Cell::text(&r.cache_error)
    }),
    always("CERTIFICATES", "certificates", "of workloads, valid", |r| Cell::Number(r.certificates.into())),
    always("FROM DISK", "certificates_from_disk", "of these, kept over a restart of the agent", |r| {
        Cell::Number(r.certificates_from_disk.into())
    }),
    always("PODS", "pods", "enrolled pods", |r| Cell::Number(r.pods.into())),
    always("WORKERS", "workers", "threads of the data path", |r| Cell::Number(r.workers.into())),
    always("TRUST BUNDLE", "trust_bundle_hash", "hash of the roots the node trusts", |r| {
        Cell::text(&r.trust_bundle_hash)
    }),
];

/// How far each kind of resource is in step with control.
pub const RESOURCE_TYPES: &[Column<ResourceTypeStatus>] = &[
    always("RESOURCE TYPE", "type_url", "kind of resource", |r| Cell::text(&r.type_url)),
    always("RESOURCES", "resources", "how many the node holds", |r| Cell::Number(r.resources.into())),
    always("SYNCED", "synced", "the first complete state has arrived", |r| Cell::Flag(r.synced)),
    always("HASH", "hash", "of all that is held: two nodes with the same hold the same", |r| Cell::text(&r.hash)),
    always("NONCE", "nonce", "of the last answer", |r| Cell::text(&r.nonce)),
    always("REFUSED BECAUSE", "nack", "why the last answer was refused; - when accepted", |r| Cell::text(&r.nack)),
];

/// The checks that are neither `ok` nor `warning`; a result that is not known here counts as failed.
pub fn failed_checks(rows: &[CheckRow]) -> usize {
    rows.iter().filter(|row| !matches!(row.result.as_str(), "ok" | "warning")).count()
}

/// Roots first, then by name.
pub fn sort_certificates(rows: &mut [CertificateRow]) {
    rows.sort_by(|a, b| (&a.kind, &a.identity, &a.serial).cmp(&(&b.kind, &b.identity, &b.serial)));
}

fn is_valid(row: &CertificateRow) -> bool {
    matches!(row.state.as_str(), "valid" | "renewing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ok_and_warning_do_not_fail() {
        let rows: Vec<CheckRow> = ["ok", "warning", "failed", "", "ko"]
            .map(|result| CheckRow { result: result.into(), ..CheckRow::default() })
            .into();

        assert_eq!(failed_checks(&rows), 3);
    }

    #[test]
    fn a_certificate_that_waits_for_its_successor_is_valid() {
        let valid = ["valid", "renewing", "expired", "missing"]
            .map(|state| is_valid(&CertificateRow { state: state.into(), ..CertificateRow::default() }));

        assert_eq!(valid, [true, true, false, false]);
    }
}
