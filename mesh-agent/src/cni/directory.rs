//! The directory of CNI configurations. Runtimes take the first by name, so the plug-in goes into that one; what was there is
//! kept beside it, and comes back byte by byte unless its owner has changed it meanwhile.
//!
//! ```text
//! 10-net.conflist                     -> 10-net.conflist (with the plug-in), 10-net.conflist.before-mesh
//! 10-net.conf                         -> 10-net.conflist (with the plug-in), 10-net.conf.before-mesh
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    conflist::{List, ListError},
    files,
};

/// What runtimes read. Source: containernetworking/cni, libcni, ConfFiles.
const KINDS: [&str; 3] = ["conf", "conflist", "json"];
const LIST: &str = "conflist";
/// What was there before: no runtime reads a name that ends so.
const BEFORE: &str = "before-mesh";

/// Why the plug-in is not in the first configuration.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The directory or a file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The network has not been set up yet.
    #[error("{}: there is no CNI configuration yet", .0.display())]
    None(PathBuf),
    /// The first is no list of plug-ins; perhaps it is being written.
    #[error("{} {reason}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A list of the same name is there already.
    #[error("{} would have to become a list, and {} is there already: remove one of them", lone.display(), list.display())]
    Both {
        /// The lone configuration.
        lone: PathBuf,
        /// The list.
        list: PathBuf,
    },
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    |source| DirectoryError::File { path: path.to_owned(), source }
}

/// Puts the entry into the first configuration; true: it was not there.
///
/// # Errors
/// See [`DirectoryError`]; nothing has changed then.
pub(super) fn insert(directory: &Path, entry: &Value) -> Result<bool, DirectoryError> {
    let first = configurations(directory)?.into_iter().next();
    let first = first.ok_or_else(|| DirectoryError::None(directory.to_owned()))?;
    let text = fs::read_to_string(&first).map_err(failed(&first))?;
    let list = read(&first, &text)?;
    list.is_spoken().map_err(|error| unreadable(&first, error))?;
    if list.holds(entry) {
        return Ok(false);
    }
    let like = fs::metadata(&first).map_err(failed(&first))?;
    let with = list.with(entry).text();
    if is_list(&first) {
        // One that has an entry of ours is not what was there before.
        if !list.holds_any() {
            let before = files::beside(&first, BEFORE);
            files::replace(&before, text.as_bytes(), &like).map_err(failed(&before))?;
        }
        files::replace(&first, with.as_bytes(), &like).map_err(failed(&first))?;
        return Ok(true);
    }
    let target = first.with_extension(LIST);
    let is_others = |text: String| !List::read(&text).is_ok_and(|list| list.holds_any());
    if fs::read_to_string(&target).is_ok_and(is_others) {
        return Err(DirectoryError::Both { lone: first, list: target });
    }
    // The list first: for a moment both are there, and never none. The lone one is read first until it has gone.
    files::replace(&target, with.as_bytes(), &like).map_err(failed(&target))?;
    fs::rename(&first, files::beside(&first, BEFORE)).map_err(failed(&first))?;
    Ok(true)
}

/// Takes the plug-in out of every configuration; what was there before comes back.
///
/// # Errors
/// A file cannot be read or written; the others are done all the same.
pub(super) fn clear(directory: &Path) -> Result<(), DirectoryError> {
    let mut result = Ok(());
    for path in configurations(directory)?.iter().filter(|path| is_list(path)) {
        let cleared = clear_list(path);
        result = result.and(cleared);
    }
    // Of configurations that have gone or were replaced.
    for path in entries(directory)?.iter().filter(|path| path.extension().is_some_and(|kind| kind == BEFORE)) {
        result = result.and(files::remove(path).map_err(failed(path)));
    }
    result
}

fn clear_list(path: &Path) -> Result<(), DirectoryError> {
    let text = fs::read_to_string(path).map_err(failed(path))?;
    let Some(list) = List::read(&text).ok().filter(List::holds_any) else { return Ok(()) };
    let without = list.without();
    // `10-net.conf`, `10-net.json`: the list was made of one of these.
    for lone in KINDS.iter().filter(|kind| **kind != LIST).map(|kind| path.with_extension(kind)) {
        let before = files::beside(&lone, BEFORE);
        if lone.exists() {
            // Its owner has written it anew: it is read first, and the list is ours alone.
            return files::remove(path).map_err(failed(path));
        }
        if is_same(&before, &without) {
            fs::rename(&before, &lone).map_err(failed(&before))?;
            return files::remove(path).map_err(failed(path));
        }
    }
    let before = files::beside(path, BEFORE);
    if is_same(&before, &without) {
        return fs::rename(&before, path).map_err(failed(path));
    }
    let like = fs::metadata(path).map_err(failed(path))?;
    files::replace(path, without.text().as_bytes(), &like).map_err(failed(path))
}

fn is_same(before: &Path, list: &List) -> bool {
    fs::read_to_string(before).is_ok_and(|text| List::read(&text).is_ok_and(|before| before == *list))
}

fn read(path: &Path, text: &str) -> Result<List, DirectoryError> {
    List::read(text).map_err(|error| unreadable(path, error))
}

fn unreadable(path: &Path, error: ListError) -> DirectoryError {
    DirectoryError::Unreadable { path: path.to_owned(), reason: error.to_string() }
}

fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == LIST)
}

/// In the order of runtimes.
fn configurations(directory: &Path) -> Result<Vec<PathBuf>, DirectoryError> {
    let mut found = entries(directory)?;
    found.retain(|path| path.extension().is_some_and(|kind| KINDS.iter().any(|known| kind == *known)));
    found.sort();
    Ok(found)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, DirectoryError> {
    let entries = fs::read_dir(directory).map_err(failed(directory))?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed(directory))).collect()
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
