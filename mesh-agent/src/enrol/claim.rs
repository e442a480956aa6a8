//! What a runtime says of a pod, checked field by field before anything is touched. Looks at the file system only to see
//! that the cgroup is one; never at the pod's namespace.

use std::{
    collections::HashSet,
    fs,
    net::IpAddr,
    path::{Component, Path, PathBuf},
};

use mesh_api::proto::admin::{EnrolRequest, enrol_request};
use serde::{Deserialize, Serialize};

use crate::kernel::PodCgroup;

/// Longest uid in bytes.
const UID_LIMIT: usize = 253;
/// Source: Linux, include/uapi/linux/magic.h.
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// A field of the request that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct InvalidField {
    /// As the message names it.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

/// Where a pod's network namespace is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceSource {
    /// A file, e.g. `/run/netns/NAME`.
    Path(PathBuf),
    /// A process of the pod, best its sandbox.
    Pid(u32),
}

impl NamespaceSource {
    /// The file to open.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }
}

/// A request whose every field is well formed. Two claims that are equal ask for the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The runtime's key of the pod.
    pub uid: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name in it.
    pub name: String,
    /// Service account, which makes the identity.
    pub service_account: String,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace.
    pub network_namespace: NamespaceSource,
    /// Its cgroup, all links resolved.
    pub cgroup_path: PathBuf,
    /// Ports that the kubelet probes.
    pub probe_ports: Vec<u16>,
    /// Whether it asks to leave fail-closed.
    pub is_fail_open: bool,
}

impl Claim {
    /// Reads a request. `cgroup_root`: the agent's own, all links resolved.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn read(request: &EnrolRequest, cgroup_root: &Path) -> Result<Self, InvalidField> {
        check_uid(&request.uid)?;
        check_dns_label("namespace", &request.namespace)?;
        check_dns_subdomain("name", &request.name)?;
        check_dns_subdomain("service_account", &request.service_account)?;
        Ok(Self {
            uid: request.uid.clone(),
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            service_account: request.service_account.clone(),
            addresses: read_addresses(&request.addresses)?,
            network_namespace: read_namespace(request.network_namespace.as_ref())?,
            probe_ports: read_ports(&request.probe_ports)?,
            is_fail_open: request.fail_open,
            // Last, because it asks the file system.
            cgroup_path: read_cgroup(&request.cgroup_path, cgroup_root)?,
        })
    }

    /// The first field in which two claims of one uid differ, as the message names it.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        let fields = [
            ("namespace", self.namespace == other.namespace),
            ("name", self.name == other.name),
            ("service_account", self.service_account == other.service_account),
            ("addresses", sorted(&self.addresses) == sorted(&other.addresses)),
            ("network_namespace", self.network_namespace == other.network_namespace),
            ("cgroup_path", self.cgroup_path == other.cgroup_path),
            ("probe_ports", self.probe_ports == other.probe_ports),
            ("fail_open", self.is_fail_open == other.is_fail_open),
        ];
        fields.into_iter().find(|(_, is_equal)| !is_equal).map(|(field, _)| field)
    }

    /// The pod's cgroup as the kernel names it.
    ///
    /// # Errors
    /// It has gone.
    pub fn cgroup(&self) -> Result<PodCgroup, InvalidField> {
        PodCgroup::find(&self.cgroup_path).map_err(|error| invalid("cgroup_path", crate::control::causes(&error)))
    }
}

/// Runtimes and API servers name them in different orders.
fn sorted(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut sorted = addresses.to_vec();
    sorted.sort();
    sorted
}

fn invalid(field: &'static str, reason: impl ToString) -> InvalidField {
    InvalidField { field, reason: reason.to_string() }
}

fn check_uid(uid: &str) -> Result<(), InvalidField> {
    let is_valid = !uid.is_empty()
        && uid.len() <= UID_LIMIT
        && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
    if is_valid { Ok(()) } else { Err(invalid("uid", "not 1 to 253 letters, digits, '-', '_', '.' and ':'")) }
}

/// Source: RFC 1123, section 2.1, as Kubernetes applies it.
fn is_dns_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn check_dns_label(field: &'static str, text: &str) -> Result<(), InvalidField> {
    if is_dns_label(text) { Ok(()) } else { Err(invalid(field, format!("{text:?} is not a DNS label"))) }
}

fn check_dns_subdomain(field: &'static str, text: &str) -> Result<(), InvalidField> {
    let is_valid = text.len() <= 253 && text.split('.').all(is_dns_label);
    if is_valid { Ok(()) } else { Err(invalid(field, format!("{text:?} is not a DNS subdomain"))) }
}

fn read_addresses(texts: &[String]) -> Result<Vec<IpAddr>, InvalidField> {
    let refuse = |reason: String| Err(invalid("addresses", reason));
    let mut addresses: Vec<IpAddr> = Vec::with_capacity(texts.len());
    for text in texts {
        let Ok(address) = text.parse::<IpAddr>() else { return refuse(format!("{text:?} is not an IP address")) };
        let kind = match address {
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("a v4-mapped"),
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local"),
            IpAddr::V4(v4) if v4.is_link_local() => Some("a link-local"),
            IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast"),
            _ if address.is_loopback() => Some("a loopback"),
            _ if address.is_unspecified() => Some("the unspecified"),
            _ if address.is_multicast() => Some("a multicast"),
            _ => None,
        };
        if let Some(kind) = kind {
            return refuse(format!("{address} is {kind} address"));
        }
        if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            return refuse(format!("{address} is the second address of its family"));
        }
        addresses.push(address);
    }
    if addresses.is_empty() { refuse("none given".into()) } else { Ok(addresses) }
}

fn read_namespace(source: Option<&enrol_request::NetworkNamespace>) -> Result<NamespaceSource, InvalidField> {
    use enrol_request::NetworkNamespace as Source;
    match source {
        Some(Source::NetworkNamespacePath(path)) if Path::new(path).is_absolute() => {
            Ok(NamespaceSource::Path(path.into()))
        }
        Some(Source::NetworkNamespacePath(path)) => {
            Err(invalid("network_namespace_path", format!("{path:?} is not an absolute path")))
        }
        Some(Source::Pid(0)) => Err(invalid("pid", "0 is no process")),
        Some(Source::Pid(pid)) => Ok(NamespaceSource::Pid(*pid)),
        None => Err(invalid("network_namespace", "neither network_namespace_path nor pid is given")),
    }
}

fn read_cgroup(text: &str, cgroup_root: &Path) -> Result<PathBuf, InvalidField> {
    let refuse = |reason: String| Err(invalid("cgroup_path", reason));
    let given = Path::new(text);
    if !given.is_absolute() || given.components().any(|part| part == Component::ParentDir) {
        return refuse(format!("{text:?} is not an absolute path without '..'"));
    }
    let path = match fs::canonicalize(given) {
        Ok(path) => path,
        Err(error) => return refuse(format!("{text:?}: {error}")),
    };
    if !path.starts_with(cgroup_root) || path == cgroup_root {
        return refuse(format!("{} is not below the agent's cgroup root {}", path.display(), cgroup_root.display()));
    }
    match rustix::fs::statfs(&path) {
        Ok(file_system) if file_system.f_type == CGROUP2_MAGIC && path.is_dir() => Ok(path),
        Ok(_) => refuse(format!("{} is not a directory of cgroup v2", path.display())),
        Err(error) => refuse(format!("{text:?}: {error}")),
    }
}

fn read_ports(ports: &[u32]) -> Result<Vec<u16>, InvalidField> {
    let refuse = |reason: String| Err(invalid("probe_ports", reason));
    let mut seen = HashSet::new();
    let mut read = Vec::with_capacity(ports.len());
    for port in ports {
        match u16::try_from(*port) {
            Ok(0) | Err(_) => return refuse(format!("{port} is not a port")),
            Ok(own) if mesh_common::is_own_port(own) => return refuse(format!("{own} is one of the mesh's own ports")),
            Ok(port) if !seen.insert(port) => return refuse(format!("{port} is given twice")),
            Ok(port) => read.push(port),
        }
    }
    Ok(read)
}

#[cfg(test)]
#[path = "claim_tests.rs"]
mod tests;
