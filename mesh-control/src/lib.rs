//! The control daemon: desired state in, per-agent resources and workload certificates out. Wires the parts together;
//! decides nothing. Never links aya: it runs without privileges, anywhere.

mod begin;
mod ca;
mod compile;
pub mod daemon;
pub mod descriptors;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
#[cfg(test)]
mod golden;
mod kubernetes;
mod metrics;
mod objects;
mod observe;
pub mod operator;
pub mod privileges;
mod publish;
pub mod settings;
mod source;
mod state;
#[cfg(test)]
mod testing;
mod xds;
