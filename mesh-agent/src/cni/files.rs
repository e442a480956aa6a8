//! Files that others read at any moment: written beside and put in place at once, with the owner and mode of what was there.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// No runtime reads a name that ends so.
const UNFINISHED: &str = "mesh-unfinished";

/// Replaces a file, or makes it. `like`: whose mode and owner it gets.
pub(super) fn replace(path: &Path, contents: &[u8], like: &fs::Metadata) -> io::Result<()> {
    write(path, contents, like.mode() & 0o7777, Some((like.uid(), like.gid())))
}

/// Replaces a program, or makes it.
pub(super) fn replace_program(path: &Path, contents: &[u8]) -> io::Result<()> {
    write(path, contents, 0o755, None)
}

fn write(path: &Path, contents: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    let unfinished = beside(path, UNFINISHED);
    let written = (|| {
        let mut file = File::create(&unfinished)?;
        file.write_all(contents)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        let now = file.metadata()?;
        if let Some((user, group)) = owner.filter(|owner| *owner != (now.uid(), now.gid())) {
            std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
        }
        file.sync_all()?;
        fs::rename(&unfinished, path)
    })();
    written.inspect_err(|_| drop(fs::remove_file(&unfinished)))
}

/// The same name with something behind it.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Not being there is what was asked for.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
