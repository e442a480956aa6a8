//! What control sent, kept on disk, so that an agent that starts without control goes on with its last View. A file of
//! resources as they came, never of what was made of them, and never of a secret: it passes through the same checks again.
//!
//! The file is believed only as a whole. One that is damaged, of another format, node or control, or open to others is
//! refused, and the agent waits for control as if there were none.

mod contents;
mod image;
mod saver;

pub use contents::{Contents, Held, Kind, Resources, SharedResources};
pub use image::ImageError;
#[cfg(any(test, fuzzing))]
pub(crate) use image::{decode, encode};
pub use saver::{Ending, Saver};

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::SystemTime,
};

use arc_swap::ArcSwap;

use crate::private;

/// Why there is no View from disk.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file cannot be read, or others could have written it.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why it is not read.
        source: io::Error,
    },
    /// It is not what an agent wrote.
    #[error("{}: {source}", path.display())]
    Image {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: ImageError,
    },
    /// Another node's or another control daemon's.
    #[error("{}: it is of {found}, not of {expected}", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who we are.
        expected: String,
    },
    /// A resource that was good when it was written is not for this version of the agent.
    #[error("the cached {name} is not understood any more: {reason}")]
    Resource {
        /// Its name.
        name: String,
        /// The field and what is wrong with it.
        reason: String,
    },
}

/// What operators are shown of the cache.
#[derive(Debug, Clone, Default)]
pub struct CacheStatus {
    /// Why the file was refused at the start, or could not be written last; empty when all is well.
    pub error: String,
    /// Times that the file was written.
    pub saves: u64,
    /// Times that it was refused or could not be written.
    pub failures: u64,
    /// When it was written last.
    pub saved: Option<SystemTime>,
}

/// Shared by the saver and its readers; read without a lock.
pub type SharedCacheStatus = Arc<ArcSwap<CacheStatus>>;

/// Whose cache a file is: what one agent wrote is nothing to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The node's name.
    pub node: String,
    /// The control daemon's address.
    pub control: String,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {} at {}", self.node, self.control)
    }
}

/// Reads the file; none if there is none.
///
/// # Errors
/// See [`CacheError`]: it is there and not to be believed.
pub fn load(path: &Path, owner: &Owner) -> Result<Option<Contents>, CacheError> {
    let unreadable = |source| CacheError::File { path: path.to_owned(), source };
    let Some(bytes) = private::read(path).map_err(unreadable)? else { return Ok(None) };
    read(&bytes, path, owner).map(Some)
}

/// What is in force, for a successor: in the form of the file.
pub fn image_of(resources: &SharedResources, owner: &Owner) -> Vec<u8> {
    let resources = resources.lock().unwrap_or_else(PoisonError::into_inner);
    image::encode(&resources.contents(owner, SystemTime::now()))
}

/// The same checks as [`load`]; `path` is where the bytes are from.
///
/// # Errors
/// See [`CacheError`].
pub fn read(bytes: &[u8], path: &Path, owner: &Owner) -> Result<Contents, CacheError> {
    let contents = image::decode(bytes).map_err(|source| CacheError::Image { path: path.to_owned(), source })?;
    let found = Owner { node: contents.node.clone(), control: contents.control.clone() };
    match found == *owner {
        true => Ok(contents),
        false => {
            Err(CacheError::Foreign { path: path.to_owned(), found: found.to_string(), expected: owner.to_string() })
        }
    }
}

#[cfg(test)]
mod tests;
