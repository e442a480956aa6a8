//! The files of an image before they are packed: by path, each with its mode, all of root, without times. Sorted, so that
//! the same files make the same archive.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use anyhow::{Context, Result};

/// What stands at a path.
pub enum Content {
    /// A directory.
    Directory,
    /// A file.
    File(Vec<u8>),
    /// A symbolic link to this path.
    Link(String),
}

/// One path of the image.
pub struct Entry {
    /// Permissions.
    pub mode: u32,
    /// What stands there.
    pub content: Content,
}

/// All paths, without a slash at either end.
#[derive(Default)]
pub struct Root(BTreeMap<String, Entry>);

impl Root {
    /// The directories that programs rely on. As on Debian, /lib and the others are links into /usr.
    pub fn new() -> Self {
        let mut root = Self::default();
        for directory in ["etc", "run", "usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "var/lib"] {
            root.directory(directory, 0o755);
        }
        // Mount points of the kernel's own file systems are the runtime's to make.
        root.directory("tmp", 0o1777);
        for link in ["bin", "lib", "lib64", "sbin"] {
            root.link(link, &format!("usr/{link}"));
        }
        root.link("var/run", "../run");
        root
    }

    /// A directory, and those above it.
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry { mode, content: Content::Directory });
    }

    /// A file that everybody may read.
    pub fn file(&mut self, path: &str, content: Vec<u8>) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry { mode: 0o644, content: Content::File(content) });
    }

    /// A file that everybody may run.
    pub fn program(&mut self, path: &str, content: Vec<u8>) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry { mode: 0o755, content: Content::File(content) });
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry { mode: 0o777, content: Content::Link(target.to_owned()) });
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            let directory = || Entry { mode: 0o755, content: Content::Directory };
            self.0.entry(path[..at].to_owned()).or_insert_with(directory);
        }
    }

    /// The content of a file.
    pub fn content(&self, path: &str) -> Option<&[u8]> {
        match &self.0.get(path)?.content {
            Content::File(content) => Some(content),
            _ => None,
        }
    }

    /// All of them, every directory before what is in it.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// Writes them below a directory.
    ///
    /// # Errors
    /// The system refuses, or something of the same name is there.
    pub fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        for (path, entry) in self.entries() {
            let place = directory.join(path);
            let written = match &entry.content {
                Content::Directory => fs::create_dir(&place),
                Content::File(content) => fs::write(&place, content),
                Content::Link(target) => symlink(target, &place),
            };
            written.with_context(|| place.display().to_string())?;
            if !matches!(entry.content, Content::Link(_)) {
                fs::set_permissions(&place, fs::Permissions::from_mode(entry.mode))?;
            }
        }
        Ok(())
    }
}
