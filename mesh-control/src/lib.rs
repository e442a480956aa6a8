//! The control daemon: desired state in, per-agent resources and workload certificates out. Wires the parts together;
//! decides nothing. Never links aya: it runs without privileges, anywhere.

mod ca;
mod compile;
pub mod daemon;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod metrics;
mod objects;
mod observe;
pub mod privileges;
mod publish;
pub mod settings;
mod source;
mod state;
#[cfg(test)]
mod testing;
mod xds;
