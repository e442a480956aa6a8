//! Where the desired state comes from: a folder of manifests, watched. Answers with typed objects and with what is
//! wrong, by file, line and field. Never decides what the objects mean; that is `compile`'s part.

pub mod document;
pub mod folder;
mod kept;
pub mod problem;
mod refused;
#[cfg(test)]
mod tests;
pub mod watch;
