//! What the fuzz targets of `fuzz/` call: each parser of the agent that meets bytes from outside, given any bytes. Each asserts
//! what has to hold whatever the bytes are, and answers whether they were good to the end. Only calls; in no release.

mod certificates;
mod cni;
mod enrolment;
mod hbone;
mod records;
mod resources;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod tests;

pub use certificates::certificates;
pub use cni::cni_list;
pub use enrolment::{enrol_request, pods_file};
pub use hbone::{hbone_request, hbone_tunnel};
pub use records::kernel_records;
pub use resources::{cached_view, resources};

/// A target: whether the bytes were good to the end.
pub type Target = fn(&[u8]) -> bool;

/// All targets, by the name that `cargo xtask fuzz` knows.
pub const TARGETS: [(&str, Target); 9] = [
    ("cached_view", cached_view),
    ("certificates", certificates),
    ("cni_list", cni_list),
    ("enrol_request", enrol_request),
    ("hbone_request", hbone_request),
    ("hbone_tunnel", hbone_tunnel),
    ("kernel_records", kernel_records),
    ("pods_file", pods_file),
    ("resources", resources),
];
