//! Archives without anything of the machine that made them: everything belongs to root, and has one time.

use std::io::Write;

use anyhow::Result;
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use super::root::{Content, Root};

/// A layer: all entries, each at this time.
///
/// # Errors
/// A path is too long.
pub fn layer<'a>(entries: impl Iterator<Item = (&'a str, &'a super::root::Entry)>, epoch: u64) -> Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    for (path, entry) in entries {
        let mut header = header(entry.mode, epoch);
        match &entry.content {
            Content::Directory => {
                header.set_entry_type(EntryType::Directory);
                archive.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            Content::File(content) => {
                header.set_size(content.len() as u64);
                archive.append_data(&mut header, path, content.as_slice())?;
            }
            Content::Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                archive.append_link(&mut header, path, target)?;
            }
        }
    }
    Ok(archive.into_inner()?)
}

/// An archive of files.
///
/// # Errors
/// A path is too long.
pub fn files(files: &[(String, Vec<u8>)], epoch: u64) -> Result<Vec<u8>> {
    let mut root = Root::default();
    for (path, content) in files {
        root.file(path, content.clone());
    }
    layer(root.entries(), epoch)
}

/// The same bytes in, the same bytes out: neither name nor time are in the head.
///
/// # Errors
/// None in memory.
pub fn compress(content: &[u8]) -> Result<Vec<u8>> {
    let mut compressed = GzBuilder::new().write(Vec::new(), Compression::new(6));
    compressed.write_all(content)?;
    Ok(compressed.finish()?)
}

fn header(mode: u32, epoch: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(mode);
    header.set_mtime(epoch);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}
