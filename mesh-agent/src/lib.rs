//! The per-node agent. `path` is a connection's way from accept to the last copied byte; everything else feeds it:
//! `kernel` steers sockets to it, `control` and `view` say what the mesh looks like, `certificates` and `tls` prove who
//! is who, `cache` keeps what control said over a restart, `enrol` knows the pods of this node, `kubernetes` and `cni` say which these are to be, `steer` compiles what the kernel may decide alone, `admin` and
//! `telemetry` show what happened, `takeover` lets the next version follow without a gap.

pub mod admin;
pub mod agent;
pub mod cache;
pub mod certificates;
pub mod cni;
pub mod config;
pub mod control;
mod digest;
pub mod drain;
pub mod enrol;
pub mod hbone;
pub mod kernel;
pub mod kubernetes;
mod memory;
pub mod net;
pub mod path;
mod private;
pub mod privileges;
pub mod steer;
pub mod takeover;
pub mod telemetry;
pub mod tls;
pub mod view;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;

#[cfg(test)]
pub(crate) mod proving;
