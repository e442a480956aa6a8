//! Columns of what the control daemon told the node: workloads, services, policies.

use mesh_api::proto::admin::{PolicyRow, ServiceRow, WorkloadRow};

use super::{always, count, list, short, wide};
use crate::table::{Cell, Column};

/// The workloads the node knows.
pub const WORKLOADS: &[Column<WorkloadRow>] = &[
    always("NAMESPACE", "namespace", "namespace of the workload", |r| Cell::text(&r.namespace)),
    always("POD NAME", "name", "name of the workload", |r| Cell::text(&r.name)),
    always("ADDRESS", "addresses", "its addresses", |r| list(&r.addresses)),
    always("NODE", "node", "node it runs on", |r| Cell::text(&r.node)),
    always("PROTOCOL", "protocol", "HBONE (mutual TLS) or TCP (in the clear)", |r| Cell::text(&r.protocol)),
    always("STATE", "state", "enrolled, pending, remote, not enrolled (and why)", |r| Cell::text(&r.state)),
    always("HEALTHY", "healthy", "gets new connections through its services", |r| Cell::Flag(r.healthy)),
    wide("IDENTITY", "identity", "SPIFFE name its certificate proves", |r| Cell::text(&r.identity)),
    wide("SERVICES", "services", "services it is an endpoint of", |r| list(&r.services)),
    wide("POLICIES", "policies", "policies that select it", |r| list(&r.policies)),
    wide("UID", "uid", "name of the resource", |r| Cell::text(&r.uid)),
];

/// The services the node knows.
pub const SERVICES: &[Column<ServiceRow>] = &[
    always("NAMESPACE", "namespace", "namespace of the service", |r| Cell::text(&r.namespace)),
    always("SERVICE NAME", "hostname", "host name of the service", |r| Cell::text(&r.hostname)),
    always("SERVICE VIP", "addresses", "its virtual addresses", |r| list(&r.addresses)),
    always("PORTS", "ports", "service port and target port", |r| list(&r.ports)),
    short("ENDPOINTS", "number of endpoints", |r| count(&r.endpoints)),
    wide("ENDPOINTS", "endpoints", "its endpoints", |r| list(&r.endpoints)),
];

/// The authorization policies the node knows.
pub const POLICIES: &[Column<PolicyRow>] = &[
    always("NAMESPACE", "namespace", "namespace of the policy", |r| Cell::text(&r.namespace)),
    always("POLICY NAME", "name", "name of the policy", |r| Cell::text(&r.name)),
    always("ACTION", "action", "ALLOW, DENY, or UNREADABLE: lets nobody through until it is mended", |r| {
        Cell::text(&r.action)
    }),
    always("SCOPE", "scope", "the mesh, its namespace, or selected workloads", |r| Cell::text(&r.scope)),
    always("DRY RUN", "dry_run", "counted and logged, not enforced", |r| Cell::Flag(r.dry_run)),
    always("RULES", "rules", "number of rules", |r| Cell::Number(r.rules.into())),
    short("WORKLOADS", "number of workloads it applies to", |r| count(&r.workloads)),
    wide("WORKLOADS", "workloads", "workloads it applies to", |r| list(&r.workloads)),
];
