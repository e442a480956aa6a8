//! Columns of `meshctl pods`: what the runtime enrolled.

use mesh_api::proto::admin::Pod;

use super::{always, list, wide};
use crate::table::{Cell, Column};

/// The enrolled pods of the node.
pub const PODS: &[Column<Pod>] = &[
    always("NAMESPACE", "namespace", "namespace of the pod", |r| Cell::text(&r.namespace)),
    always("POD NAME", "name", "name of the pod", |r| Cell::text(&r.name)),
    always("ADDRESS", "addresses", "its addresses", |r| list(&r.addresses)),
    always("SERVICE ACCOUNT", "service_account", "what its identity is made of", |r| Cell::text(&r.service_account)),
    always("STATE", "state", "pending (control does not know it yet), ready, closing", |r| Cell::text(&r.state)),
    always("FAIL OPEN", "fail_open", "goes out in the clear while the agent is away", |r| Cell::Flag(r.fail_open)),
    wide("PROBE PORTS", "probe_ports", "ports that the node itself may dial", |r| {
        Cell::List(r.probe_ports.iter().map(u32::to_string).collect())
    }),
    wide("UID", "uid", "what withdraw takes", |r| Cell::text(&r.uid)),
    wide("NETWORK NAMESPACE", "network_namespace", "path of the network namespace", |r| {
        Cell::text(&r.network_namespace)
    }),
    wide("COOKIE", "network_namespace_cookie", "the kernel's number of that namespace", |r| {
        Cell::Number(r.network_namespace_cookie)
    }),
    wide("CGROUP", "cgroup_path", "path of the cgroup", |r| Cell::text(&r.cgroup_path)),
];
