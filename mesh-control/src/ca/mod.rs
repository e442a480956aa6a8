//! The certificate authority: the only holder of the CA key. Signs certificates for workloads that run on the asking
//! agent's node, and for this daemon's own server.

pub mod authority;
pub mod files;
pub mod identity;
pub mod request;
pub mod rotation;
pub mod server;
pub mod service;
#[cfg(test)]
pub mod tests;
