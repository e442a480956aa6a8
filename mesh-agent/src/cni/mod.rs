//! The CNI plug-in on the node: installed, kept in place when the network's own installer writes its files anew, and taken out
//! again. Looks only at the two directories that the settings name; what the plug-in asks is answered by `kubernetes`.

mod conflist;
mod directory;
mod files;
mod installer;

#[cfg(any(test, fuzzing))]
pub(crate) use conflist::List;
pub use installer::{Installer, InstallerError, remove};
