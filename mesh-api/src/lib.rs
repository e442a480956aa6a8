//! What agent, control daemon and command line say to each other: the generated messages, and the vocabulary they are
//! converted into at the edge. Never on the data path; never opens a socket.

mod identity;
pub mod membership;

pub use identity::{Identity, IdentityError};

/// Generated code, by protobuf package; the `.proto` files document the fields.
#[allow(missing_docs, clippy::all, reason = "generated")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

/// The generated messages and services under short names.
pub mod proto {
    pub use crate::generated::{
        envoy::service::discovery::v3 as discovery,
        google::rpc,
        istio::{security, v1::auth as ca, workload},
        mesh::{admin::v1 as admin, v1 as mesh},
    };
    /// `google.protobuf.Any`, `Struct` and their like, which fields of these messages have as types.
    pub use prost_types as wellknown;
}

/// Versions of the CNI protocol that the plug-in speaks, oldest first; the agent installs it where one of them is spoken.
pub const CNI_VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Type URL of `istio.workload.Address`.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of `istio.security.Authorization`.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// Type URL of [`proto::mesh::MeshConfig`]; one resource, named [`MESH_CONFIG_NAME`].
pub const MESH_CONFIG_TYPE: &str = "type.googleapis.com/mesh.v1.MeshConfig";
/// Name of the one resource of [`MESH_CONFIG_TYPE`].
pub const MESH_CONFIG_NAME: &str = "mesh";
/// Name of an extension, without a body, of an Authorization that stands in for a policy that cannot be read.
pub const UNREADABLE_POLICY: &str = "mesh.dev/unreadable";
/// Field of a node's metadata, on the stream: hash of the trust bundle that its agent has in force.
pub const TRUST_BUNDLE_FIELD: &str = "MESH_TRUST_BUNDLE";
/// The same: how many of its certificates in use lead to another root than the bundle's first.
pub const OLD_CERTIFICATES_FIELD: &str = "MESH_OLD_CERTIFICATES";
/// The same: hashes of the roots that control is verified against, with spaces between them.
pub const CONTROL_ROOTS_FIELD: &str = "MESH_CONTROL_ROOTS";
/// The same, instead of the three: another agent has taken the node over, and this one waits for its connections to end.
pub const TAKEN_OVER_FIELD: &str = "MESH_TAKEN_OVER";
/// Name of the [`proto::mesh::ServiceTraffic`] extension of a service.
pub const SERVICE_TRAFFIC_EXTENSION: &str = "mesh.dev/traffic";
