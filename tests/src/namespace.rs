//! Network namespaces with a name, so that a person can enter one with `ip netns exec NAME`. Interfaces and routes are
//! made with iproute2. Never touches the namespace that the tests run in.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// One at a time: the first `ip netns add` on a machine mounts /run/netns, and two at once would mount over each other.
static ADDING: Mutex<()> = Mutex::new(());

/// A network namespace; removed when the last clone is dropped, which does not end processes in it.
#[derive(Debug, Clone)]
pub struct Namespace {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    /// An open file keeps the namespace alive.
    file: Mutex<Option<Arc<File>>>,
}

impl Namespace {
    /// Makes a namespace with its loopback up and without duplicate address detection.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn create(name: String) -> Self {
        {
            let _one_at_a_time = ADDING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            run(Command::new("ip").args(["netns", "add", &name]), "");
        }
        let file = Mutex::new(Some(Arc::new(File::open(path(&name)).expect("ip netns add made the file"))));
        let namespace = Self { shared: Arc::new(Shared { name, file }) };
        for family in ["all", "default"] {
            namespace.set(&format!("ipv6/conf/{family}/accept_dad"), "0");
            namespace.set(&format!("ipv6/conf/{family}/disable_ipv6"), "0");
        }
        namespace.ip("link set lo up");
        namespace
    }

    /// As in `ip netns`.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The file that names it: /run/netns/NAME.
    pub fn path(&self) -> PathBuf {
        path(self.name())
    }

    /// The kernel's own number of it, which is never used twice.
    ///
    /// # Panics
    /// When the kernel does not say (before Linux 5.14).
    pub fn cookie(&self) -> u64 {
        /// Source: Linux, include/uapi/asm-generic/socket.h.
        const SO_NETNS_COOKIE: libc::c_int = 71;
        self.inside(|| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
            let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
            // SAFETY: the pointers are to a live u64 and to its length.
            let answer = unsafe {
                let value = (&raw mut cookie).cast();
                libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, value, &raw mut length)
            };
            assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
            cookie
        })
    }

    pub(crate) fn file(&self) -> Arc<File> {
        let file = self.shared.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        file.clone().unwrap_or_else(|| panic!("{} was removed", self.name()))
    }

    /// Takes its name away and lets go of it: it ends with the last process and socket in it.
    ///
    /// # Panics
    /// When it has no name any more.
    pub(crate) fn remove(&self) {
        self.shared.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        run(Command::new("ip").args(["netns", "delete", self.name()]), "");
    }

    /// Runs `ip` commands, one per line, in this namespace.
    ///
    /// # Panics
    /// When one fails.
    pub fn ip(&self, commands: &str) {
        run(Command::new("ip").args(["-n", self.name(), "-batch", "-"]), commands);
    }

    /// The same for commands that do not tell IPv4 and IPv6 apart: once for each.
    ///
    /// # Panics
    /// When one fails.
    pub fn ip_for_both(&self, commands: &str) {
        for family in ["-4", "-6"] {
            run(Command::new("ip").args(["-n", self.name(), family, "-batch", "-"]), commands);
        }
    }

    /// Loads an nft script in this namespace.
    ///
    /// # Panics
    /// When nft refuses it.
    pub fn nft(&self, script: &str) {
        self.inside(|| run(Command::new("nft").args(["-f", "-"]), script));
    }

    /// Sets a kernel setting below /proc/sys/net.
    ///
    /// # Panics
    /// When there is no such setting.
    pub fn set(&self, setting: &str, value: &str) {
        self.inside(|| {
            let path = format!("/proc/sys/net/{setting}");
            std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
        });
    }

    /// Runs `task` on a thread of its own that is in this namespace; sockets it opens stay there.
    ///
    /// # Panics
    /// When `task` does, or the namespace cannot be entered.
    pub fn inside<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                move_into_link_name_space(self.file().as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root can enter a network namespace");
                task()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A sweep may have been quicker.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Runs a command with `input`; panics with what it printed when it fails.
fn run(command: &mut Command, input: &str) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}; run `cargo xtask setup`"));
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("the command reads its input");
    let output = child.wait_with_output().expect("our own child");
    assert!(
        output.status.success(),
        "{command:?} failed: {}{}\ninput:\n{input}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout),
    );
}
