//! bpf(2), as far as aya does not go: typed access to pinned maps through `&self`, links that are created, replaced and
//! asked by descriptor. Decides nothing and keeps nothing.

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_common::abi::Plain;

/// Commands of bpf(2). Source: Linux, include/uapi/linux/bpf.h, `enum bpf_cmd`.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(super) enum Command {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ObjectPin = 6,
    ObjectGet = 7,
    ProgramById = 13,
    ObjectInfo = 15,
    ProgramQuery = 16,
    MapLookupBatch = 24,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// `union bpf_attr` as 64-bit words, filled by each caller as the kernel lays it out (two 32-bit fields share a word).
pub(super) type Attributes = [u64; 16];

/// Two 32-bit fields that share a word of [`Attributes`].
pub(super) const fn pair(first: u32, second: u32) -> u64 {
    // Both supported kernels' machines are little-endian (target bpfel).
    first as u64 | (second as u64) << 32
}

/// A descriptor as the kernel takes it.
pub(super) fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Calls bpf(2).
///
/// # Safety
/// Every pointer in `attributes` must be valid for what the command reads and writes through it.
pub(super) unsafe fn bpf(command: Command, attributes: &mut Attributes) -> io::Result<i64> {
    // SAFETY: the attributes are as large as we say, their pointers are the caller's promise.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command as i32, attributes.as_mut_ptr(), size_of::<Attributes>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Calls bpf(2) with a command that answers a descriptor.
///
/// # Safety
/// As [`bpf`]; the command must answer a new descriptor.
pub(super) unsafe fn bpf_fd(command: Command, attributes: &mut Attributes) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let answer = unsafe { bpf(command, attributes) }?;
    let fd = i32::try_from(answer).map_err(io::Error::other)?;
    // SAFETY: the command answered a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens a pinned object.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attributes = Attributes::default();
    attributes[0] = path.as_ptr() as u64;
    // SAFETY: the path is a C string that lives across the call.
    unsafe { bpf_fd(Command::ObjectGet, &mut attributes) }
}

/// Pins an object.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attributes = Attributes::default();
    attributes[0] = path.as_ptr() as u64;
    attributes[1] = number(fd).into();
    // SAFETY: as in `open_pinned`.
    unsafe { bpf(Command::ObjectPin, &mut attributes) }.map(drop)
}

/// Fills a struct with what the kernel says about an object.
pub(super) fn object_info<T: Plain>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = MaybeUninit::<T>::zeroed();
    let mut attributes = Attributes::default();
    attributes[0] = pair(number(fd), size_of::<T>() as u32);
    attributes[1] = info.as_mut_ptr() as u64;
    // SAFETY: the kernel writes at most the length that is given, into a live value.
    unsafe { bpf(Command::ObjectInfo, &mut attributes) }?;
    // SAFETY: zeroed before, and any bytes are a value of a plain type.
    Ok(unsafe { info.assume_init() })
}

/// Start of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct MapInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}
// SAFETY: six integers, no padding.
unsafe impl Plain for MapInfo {}

/// The id of a program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    /// Start of `struct bpf_prog_info`: kind and id.
    type Start = [u32; 2];
    object_info::<Start>(program).map(|[_, id]| id)
}

/// Maps that a program of ours uses; more are not looked at.
const PROGRAM_MAPS: usize = 64;

/// The ids of the maps that a program uses.
pub(super) fn maps_of_program(program: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    /// Start of `struct bpf_prog_info`: up to the ids of its maps. Source: Linux, include/uapi/linux/bpf.h.
    #[repr(C)]
    struct Start {
        before: [u64; 6],
        created_by: u32,
        map_count: u32,
        map_ids: u64,
    }
    let mut ids = [0_u32; PROGRAM_MAPS];
    let mut info =
        Start { before: [0; 6], created_by: 0, map_count: PROGRAM_MAPS as u32, map_ids: ids.as_mut_ptr() as u64 };
    let mut attributes = Attributes::default();
    attributes[0] = pair(number(program), size_of::<Start>() as u32);
    attributes[1] = (&raw mut info) as u64;
    // SAFETY: the kernel reads and writes at most the length that is given, and at most as many ids as there is room for.
    unsafe { bpf(Command::ObjectInfo, &mut attributes) }?;
    Ok(ids[..(info.map_count as usize).min(PROGRAM_MAPS)].to_vec())
}

/// A map by descriptor.
#[derive(Debug)]
pub(super) struct Map<K, V> {
    fd: OwnedFd,
    /// Entries that did not fit.
    refused: AtomicU64,
    types: PhantomData<fn(K, V)>,
}

/// Whether an update failed because the map has as many entries as it can hold.
pub(super) fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::E2BIG)
}

/// Update whether or not the key is there.
pub(super) const ANY: u64 = 0;

/// Entries asked for per call; a bucket of a hash map has fewer.
const BATCH: usize = 1024;

impl<K: Plain, V: Plain> Map<K, V> {
    /// Opens a pinned map, and refuses one of another layout.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let fd = open_pinned(path)?;
        let info: MapInfo = object_info(fd.as_fd())?;
        if info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the pinned map has another layout"));
        }
        Ok(Self { fd, refused: AtomicU64::default(), types: PhantomData })
    }

    pub(super) fn capacity(&self) -> io::Result<u32> {
        object_info::<MapInfo>(self.fd.as_fd()).map(|info| info.max_entries)
    }

    fn element(&self, key: &K, value: u64, flags: u64) -> Attributes {
        let mut attributes = Attributes::default();
        attributes[0] = number(self.fd.as_fd()).into();
        attributes[1] = std::ptr::from_ref(key) as u64;
        attributes[2] = value;
        attributes[3] = flags;
        attributes
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::zeroed();
        let mut attributes = self.element(key, value.as_mut_ptr() as u64, 0);
        // SAFETY: key and value have the sizes that `open` compared with the map's.
        match unsafe { bpf(Command::MapLookup, &mut attributes) } {
            // SAFETY: the kernel filled it, and any bytes are a value of a plain type.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes an entry.
    pub(super) fn set(&self, key: &K, value: &V, flags: u64) -> io::Result<()> {
        let mut attributes = self.element(key, std::ptr::from_ref(value) as u64, flags);
        // SAFETY: as in `get`.
        let answer = unsafe { bpf(Command::MapUpdate, &mut attributes) };
        if answer.as_ref().is_err_and(is_full) {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        answer.map(drop)
    }

    /// How often this process was told that the map is full.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Removes an entry; whether it was there.
    pub(super) fn remove(&self, key: &K) -> io::Result<bool> {
        let mut attributes = self.element(key, 0, 0);
        // SAFETY: as in `get`.
        match unsafe { bpf(Command::MapDelete, &mut attributes) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How many entries there are. For a map of sockets, which cannot be read in batches; entries that come and go
    /// meanwhile may be counted or not.
    pub(super) fn count_keys(&self) -> io::Result<u64> {
        let mut key = MaybeUninit::<K>::zeroed();
        let mut before = 0;
        let limit = u64::from(self.capacity()?);
        for count in 0..limit {
            let mut attributes = Attributes::default();
            attributes[0] = number(self.fd.as_fd()).into();
            attributes[1] = before;
            attributes[2] = key.as_mut_ptr() as u64;
            // SAFETY: the key has the map's size; it may be read and written at once, the kernel copies.
            match unsafe { bpf(Command::MapNextKey, &mut attributes) } {
                Ok(_) => before = key.as_ptr() as u64,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(count),
                Err(error) => return Err(error),
            }
        }
        Ok(limit)
    }

    /// How many entries a hash map has; O(entries).
    pub(super) fn count(&self) -> io::Result<u64> {
        self.entries().map(|entries| entries.len() as u64)
    }

    /// Every entry of a hash map. Read bucket by bucket, so that entries which come and go meanwhile neither stop nor
    /// repeat the others.
    pub(super) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        let (mut keys, mut values) = (Vec::<K>::with_capacity(BATCH), Vec::<V>::with_capacity(BATCH));
        let mut bucket = [0_u32; 2];
        let mut started = false;
        loop {
            let mut attributes = Attributes::default();
            attributes[0] = if started { bucket.as_ptr() as u64 } else { 0 };
            attributes[1] = bucket.as_mut_ptr() as u64;
            attributes[2] = keys.as_mut_ptr() as u64;
            attributes[3] = values.as_mut_ptr() as u64;
            attributes[4] = pair(BATCH as u32, number(self.fd.as_fd()));
            // SAFETY: both arrays hold BATCH elements of the map's sizes; the kernel says how many it filled.
            let answer = unsafe { bpf(Command::MapLookupBatch, &mut attributes) };
            let filled = (attributes[4] & u64::from(u32::MAX)) as usize;
            let at_end = match answer {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) => return Err(error),
            };
            // SAFETY: the kernel filled that many of both arrays, and any bytes are values of plain types.
            unsafe {
                keys.set_len(filled.min(BATCH));
                values.set_len(filled.min(BATCH));
            }
            entries.extend(keys.drain(..).zip(values.drain(..)));
            if at_end {
                return Ok(entries);
            }
            started = true;
        }
    }
}

impl<K, V> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
