//! The last good form of each manifest, kept on disk so that a restart serves what the daemon before it served. Never
//! consulted while a file is good.
//!
//! ```text
//! STATE/.last-good/<path below the folder of manifests>:  SHA-256 of the text in hex, a line feed, the text
//! ```

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{SHA256, digest};

/// Hidden: below the folder of manifests, what is in it is no manifest.
const DIRECTORY: &str = ".last-good";

/// A directory of kept texts; made when the first one is.
#[derive(Debug)]
pub(super) struct Kept {
    root: PathBuf,
}

impl Kept {
    pub(super) fn new(state: &Path) -> Self {
        Self { root: state.join(DIRECTORY) }
    }

    /// The kept text of a manifest, by its path below the folder; none that is not as it was written.
    pub(super) fn text(&self, file: &Path) -> Option<String> {
        let path = self.root.join(file);
        let kept = match fs::read_to_string(&path) {
            Ok(kept) => kept,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a last good form cannot be read");
                return None;
            }
        };
        match kept.split_once('\n') {
            Some((sum, text)) if sum == checksum(text) => Some(text.to_owned()),
            _ => {
                tracing::error!(path = %path.display(), "a last good form is not as it was written and is not used");
                None
            }
        }
    }

    /// Keeps a text.
    ///
    /// # Errors
    /// It could not be written; nothing is kept then. What was kept before would bring back what this text has superseded, a
    /// permission that was taken away for one.
    pub(super) fn put(&self, file: &Path, text: &str) -> io::Result<()> {
        let path = self.root.join(file);
        write(&path, text).inspect_err(|_| match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(path = %path.display(), %error, "a superseded form is still kept");
            }
            _ => {}
        })
    }

    /// Forgets what is kept of other manifests than these: they were withdrawn.
    ///
    /// # Errors
    /// The directory cannot be listed, or something in it not removed; the others are removed all the same.
    pub(super) fn retain(&self, files: &BTreeSet<PathBuf>) -> io::Result<()> {
        let mut kept = BTreeSet::new();
        match super::folder::list(&self.root, &mut kept) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            listed => listed?,
        }
        let is_gone = |path: &&PathBuf| path.strip_prefix(&self.root).is_ok_and(|file| !files.contains(file));
        kept.iter().filter(is_gone).map(fs::remove_file).fold(Ok(()), Result::and)
    }
}

/// A crash leaves the old form or the new one, never half of one.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    // Hidden, so that it is no manifest's.
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let beside = path.with_file_name(name);
    let mut new = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    let written = new.write_all(format!("{}\n{text}", checksum(text)).as_bytes()).and_then(|()| new.sync_all());
    written.and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
        // What is half written would keep a full disk full.
        let _ = fs::remove_file(&beside);
    })
}

fn checksum(text: &str) -> String {
    digest(&SHA256, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
