//! Files that are only the agent's: replaced as a whole, and read only when nobody else could have read or written them.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// Source: Linux, include/uapi/linux/magic.h.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
/// Everything that others may do.
const OF_OTHERS: u32 = 0o077;
/// Who may write to a directory may put another file in a file's place.
const WRITE_OF_OTHERS: u32 = 0o022;

/// Replaces a file: readers, and a restart after a crash, see the old one or the new one. Mode 0600. Waits for the disk.
///
/// # Errors
/// It cannot be written; the old one stays.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let next = next_of(path);
    let written = write_new(&next, content).and_then(|()| fs::rename(&next, path));
    if written.is_err() {
        // What is half written would keep a full disk full.
        let _ = fs::remove_file(&next);
    }
    written?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

fn next_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    remove(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Removes a file; one that is not there is as good.
///
/// # Errors
/// It is there and stays.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The whole file, none if there is none; wiped from memory when dropped.
///
/// # Errors
/// It cannot be read, or it is not a plain file of ours that is closed to everybody else.
pub(crate) fn read(path: &Path) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(denied("it is not a plain file".into()));
    }
    check_access("it", &metadata, OF_OTHERS)?;
    if let Some(parent) = path.parent() {
        check_access("its directory", &fs::metadata(parent)?, WRITE_OF_OTHERS)?;
    }
    // At its size from the start: what grows leaves copies behind.
    let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default() + 1));
    file.read_to_end(&mut content)?;
    Ok(Some(content))
}

/// A secret that the operator put there: a link may lead to it, as in a mounted Secret, but nobody else may read or write it.
///
/// # Errors
/// It cannot be read, is no text, or is open to others.
pub(crate) fn read_secret(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut file = File::open(path)?;
    let mode = file.metadata()?.mode() & 0o7777;
    if mode & OF_OTHERS != 0 {
        return Err(denied(format!(
            "it has mode {mode:04o}, so that others can use it: chmod 600 it (for a mounted Secret: defaultMode: 0400)"
        )));
    }
    let mut content = Zeroizing::new(String::new());
    file.read_to_string(&mut content)?;
    Ok(content)
}

/// Makes a directory that only the agent may enter, unless there is one.
///
/// # Errors
/// It cannot be made, or the one that is there is open to others.
pub(crate) fn make_directory(path: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let directory = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    check_access("it", &directory.metadata()?, OF_OTHERS)?;
    Ok(directory)
}

/// Makes the directory that a file will be in, unless there is one. It may be open to readers: the file is not.
///
/// # Errors
/// It cannot be made.
pub(crate) fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| DirBuilder::new().recursive(true).mode(0o700).create(parent))
}

/// Whether what is written there stays in memory.
///
/// # Errors
/// The kernel does not say.
pub(crate) fn is_on_tmpfs(file: impl AsFd) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(file)?.f_type == TMPFS_MAGIC)
}

fn check_access(what: &str, metadata: &Metadata, forbidden: u32) -> io::Result<()> {
    let (mode, owner, we) = (metadata.mode() & 0o7777, metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != we {
        return Err(denied(format!("{what} belongs to user {owner}, not to {we}")));
    }
    if mode & forbidden != 0 {
        return Err(denied(format!(
            "{what} has mode {mode:04o}: others could have used it (set {:04o})",
            mode & !forbidden
        )));
    }
    Ok(())
}

fn denied(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, reason)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A directory in memory, gone with the test.
    pub(crate) struct Scratch(pub PathBuf);

    impl Scratch {
        pub(crate) fn new(name: &str) -> Self {
            let path = Path::new("/dev/shm").join(format!("mesh-agent-{}-{name}", std::process::id()));
            fs::create_dir(&path).expect("/dev/shm is a tmpfs");
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_private() {
        let scratch = Scratch::new("private");
        let path = scratch.0.join("file");
        assert_eq!(read(&path).unwrap(), None);
        for content in [b"first".as_slice(), b"second"] {
            replace(&path, content).unwrap();
            assert_eq!(read(&path).unwrap().unwrap().as_slice(), content);
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_others_could_have_written_or_read_is_not_read() {
        let scratch = Scratch::new("foreign");
        let path = scratch.0.join("file");
        replace(&path, b"content").unwrap();
        symlink(&path, scratch.0.join("link")).unwrap();
        assert!(read(&scratch.0.join("link")).is_err(), "a link leads anywhere");
        assert!(read(&scratch.0).is_err(), "a directory");
        for mode in [0o640, 0o604, 0o620, 0o602, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::PermissionDenied, "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.to_string().contains("user 12345"), "{error}");
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        assert!(read(&path).is_ok());
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o777)).unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.to_string().contains("its directory has mode 0777"), "{error}");
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused_with_the_mode_to_set() {
        let scratch = Scratch::new("secret");
        let (path, link) = (scratch.0.join("token"), scratch.0.join("link"));
        replace(&path, b"0123456789abcdef").unwrap();
        symlink(&path, &link).unwrap();
        assert_eq!(read_secret(&link).unwrap().as_str(), "0123456789abcdef");
        for mode in [0o640, 0o604, 0o644, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read_secret(&link).unwrap_err().to_string();
            assert!(error.contains("chmod 600") && !error.contains("0123"), "{error}");
        }
    }

    #[test]
    fn a_directory_is_closed_to_others_or_refused() {
        let scratch = Scratch::new("directory");
        let path = scratch.0.join("below/keys");
        assert!(is_on_tmpfs(make_directory(&path).unwrap()).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(make_directory(&path).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(!is_on_tmpfs(File::open("/proc").unwrap()).unwrap());
    }
}
