//! PeerAuthentication: which workloads refuse callers without an identity.

use std::collections::BTreeMap;

use super::{
    fields::{Fields, Spot},
    metadata::{self, Metadata},
    policy::read_selector,
};

/// A PeerAuthentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// `metadata`.
    pub metadata: Metadata,
    /// Labels of the workloads it holds for; empty: all of its namespace, or of the mesh in the root namespace.
    pub selector: BTreeMap<String, String>,
    /// What it says of all ports; `None` leaves that to the wider scope.
    pub mode: Option<Mode>,
    /// Ports that differ.
    pub ports: BTreeMap<u16, Mode>,
}

/// Whether plaintext is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only callers with a verified identity.
    Strict,
    /// Anyone.
    Permissive,
}

/// Reads a PeerAuthentication.
pub fn read(object: &mut Fields<'_>) -> Option<PeerAuthentication> {
    let metadata = metadata::read(object, true)?;
    let mut peer = PeerAuthentication { metadata, selector: BTreeMap::new(), mode: None, ports: BTreeMap::new() };
    object.accept(&["status"]);
    let Some(mut spec) = object.map("spec") else { return Some(peer) };
    let problems = spec.problems();
    peer.selector = read_selector(&mut spec);
    peer.mode = spec.map("mtls").and_then(read_mode);
    let at = spec.at();
    if let Some(mut ports) = spec.map("portLevelMtls") {
        if peer.selector.is_empty() {
            problems.push(at, "spec.portLevelMtls", "needs a selector: ports differ from workload to workload");
        }
        for name in ports.names() {
            let path = ports.path_of(name);
            let Some(fields) = ports.map(name) else { continue };
            let spot = Spot { value: name, path, at: fields.at() };
            match name.parse::<u16>() {
                // UNSET on a port is the mode of the workload.
                Ok(port) if port > 0 => drop(read_mode(fields).map(|mode| peer.ports.insert(port, mode))),
                _ => spot.refuse(problems, format!("{name:?} is not a port")),
            }
        }
        ports.finish();
    }
    spec.finish();
    Some(peer)
}

fn read_mode(mut fields: Fields<'_>) -> Option<Mode> {
    let problems = fields.problems();
    let mode = fields.text("mode");
    fields.finish();
    let mode = mode?;
    match mode.value.as_str() {
        "STRICT" => Some(Mode::Strict),
        "PERMISSIVE" => Some(Mode::Permissive),
        "UNSET" => None,
        // Source: istio.io, "PeerAuthentication" in ambient mode: HBONE implies mutual TLS, DISABLE cannot be meant.
        "DISABLE" => {
            mode.refuse(problems, "DISABLE is not supported: between nodes enrolled workloads always use mutual TLS; write PERMISSIVE to also accept plaintext");
            None
        }
        other => {
            mode.refuse(problems, format!("{other:?} is not one of STRICT, PERMISSIVE, UNSET"));
            None
        }
    }
}
