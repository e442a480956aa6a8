//! Network namespaces: opened by path or process, named by their cookie, entered for one closure. Never leaves a thread in
//! a foreign namespace: if coming back fails the process ends.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::KernelError;

/// Source: Linux 5.14, include/uapi/asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// A network namespace that is kept open.
#[derive(Debug)]
pub struct NetworkNamespace {
    fd: OwnedFd,
    cookie: u64,
}

impl NetworkNamespace {
    /// Opens the namespace of a file (`/run/netns/NAME`, `/proc/PID/ns/net`).
    ///
    /// # Errors
    /// No such file, or it is no network namespace.
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let fd = File::open(path)
            .map_err(|source| KernelError::system(format!("opening network namespace {}", path.display()), source))?;
        Self::from_fd(fd.into(), path)
    }

    /// Opens the namespace of a process.
    ///
    /// # Errors
    /// No such process.
    pub fn of_process(pid: u32) -> Result<Self, KernelError> {
        Self::open(&PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// /proc is not there.
    pub fn current() -> Result<Self, KernelError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    fn from_fd(fd: OwnedFd, path: &Path) -> Result<Self, KernelError> {
        let not_one = KernelError::Path { path: path.to_owned(), reason: "is not a network namespace" };
        let Ok(cookie) = run(fd.as_fd(), own_cookie) else { return Err(not_one) };
        Ok(Self { fd, cookie: cookie? })
    }

    /// The kernel's name of the namespace, unique until the machine restarts and never used again before.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Runs a closure with the calling thread inside the namespace.
    ///
    /// # Errors
    /// The namespace could not be entered.
    pub fn run<T>(&self, inside: impl FnOnce() -> T) -> Result<T, KernelError> {
        run(self.fd.as_fd(), inside)
    }
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Runs a closure with the calling thread inside a network namespace, and comes back, also when it panics. If coming back
/// fails, the process is aborted: a worker in the wrong namespace would carry one pod's traffic as another's.
///
/// Costs about 3 µs. The closure must not wait on a runtime.
///
/// # Errors
/// The namespace could not be entered.
pub fn run<T>(namespace: BorrowedFd<'_>, inside: impl FnOnce() -> T) -> Result<T, KernelError> {
    let home = File::open("/proc/thread-self/ns/net")
        .map_err(|source| KernelError::system("opening the thread's own network namespace", source))?;
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
        .map_err(|source| KernelError::system("entering a network namespace", source))?;
    let _return = Return(home);
    Ok(inside())
}

/// Goes home when dropped.
struct Return(File);

impl Drop for Return {
    fn drop(&mut self) {
        if let Err(error) = move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)) {
            tracing::error!(%error, "cannot return to the agent's network namespace; ending the process");
            std::process::abort();
        }
    }
}

/// The cookie of the namespace that the calling thread is in.
fn own_cookie() -> Result<u64, KernelError> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None)
        .map_err(|source| KernelError::system("opening a socket in a network namespace", source))?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers are to a live u64 and to its length, as SO_NETNS_COOKIE asks.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if status == 0 { Ok(cookie) } else { Err(KernelError::last("reading the cookie of a network namespace")) }
}
