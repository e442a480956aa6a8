//! Where the desired state comes from: a folder of manifests, watched, or (in `kubernetes`) an API server. Answers with
//! typed objects and with what is wrong, by file or object, line and field. Never decides what the objects mean; that
//! is `compile`'s part.

pub mod document;
pub mod folder;
pub mod json;
mod kept;
pub mod problem;
pub mod refused;
#[cfg(test)]
mod tests;
pub mod watch;
