//! The harness that stories are told with: nodes as network namespaces with a link between them, pods as namespace and
//! cgroup, real agents, a real control daemon, real programs. Each [`Mesh`] has names and addresses of its own, so
//! stories run beside each other. Knows nothing of how the product works inside; never part of it.

pub mod addresses;
pub mod admin;
pub mod app;
pub mod attack;
pub mod capture;
pub mod cgroup;
pub mod client;
pub mod control;
pub mod conversation;
mod daemon;
pub mod dial;
mod eventually;
pub mod forge;
pub mod imposter;
pub mod limits;
pub mod link;
mod manifests;
pub mod mesh;
pub mod namespace;
pub mod new_app;
pub mod node;
pub mod packets;
pub mod peer;
pub mod policy;
pub mod process;
pub mod protocol;
mod report;
pub mod service;
pub mod slot;
pub mod starve;
pub mod torture;
pub mod weather;
pub mod web;
mod world;

pub use app::{App, plain};
pub use eventually::{LIMIT, eventually};
pub use mesh::{Mesh, Setup};
pub use policy::identity;
