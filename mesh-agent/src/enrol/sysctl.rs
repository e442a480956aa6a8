//! The two settings of a pod's network namespace that its connections through the agent need. Changed at enrolment, put
//! back at withdrawal.
//!
//! All redirected connections of a pod share one address pair: without `tcp_tw_reuse` the pod runs out of ports at about
//! 28,000 connections a minute. And an ephemeral port must never be one of ours.

use std::{fs, io};

use mesh_common::{PORT_HBONE, PORT_OUTBOUND, PORT_PLAINTEXT};
use rustix::{fs::StatVfsMountFlags, mount::MountFlags};
use serde::{Deserialize, Serialize};

use crate::kernel::{KernelError, NetworkNamespace};

const SETTINGS: &str = "/proc/sys";
const TW_REUSE: &str = "/proc/sys/net/ipv4/tcp_tw_reuse";
const RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Values of before enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSysctls {
    /// `net.ipv4.tcp_tw_reuse`
    pub tcp_tw_reuse: String,
    /// `net.ipv4.ip_local_reserved_ports`
    pub reserved_ports: String,
}

/// Why a setting cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] KernelError),
    /// The file of the setting refuses.
    #[error("{action} {file} in the pod's network namespace: {source}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        file: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl SavedSysctls {
    /// Changes the settings; what they were.
    ///
    /// # Errors
    /// See [`SysctlError`]; what was changed is put back.
    pub fn change(namespace: &NetworkNamespace) -> Result<Self, SysctlError> {
        // /proc/sys/net is that of the thread that opens the file.
        namespace.run(|| {
            let saved = Self { tcp_tw_reuse: read(TW_REUSE)?, reserved_ports: read(RESERVED_PORTS)? };
            write(TW_REUSE, "1")?;
            if let Err(error) = write(RESERVED_PORTS, &with_own_ports(&saved.reserved_ports)) {
                write(TW_REUSE, &saved.tcp_tw_reuse)?;
                return Err(error);
            }
            Ok(saved)
        })?
    }

    /// Puts them back.
    ///
    /// # Errors
    /// See [`SysctlError`].
    pub fn restore(&self, namespace: &NetworkNamespace) -> Result<(), SysctlError> {
        namespace.run(|| {
            write(TW_REUSE, &self.tcp_tw_reuse)?;
            write(RESERVED_PORTS, &self.reserved_ports)
        })?
    }
}

/// Makes the settings writable, in the mounts of this process's own container: runtimes mount them read-only there. What is
/// written are only those of pods' network namespaces.
///
/// # Errors
/// The kernel refuses.
pub fn open_settings() -> io::Result<()> {
    if rustix::fs::statvfs(SETTINGS)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount_remount(SETTINGS, flags, c"")?;
    }
    Ok(())
}

/// A list in the kernel's syntax (`1,5-7`), with our ports appended; the kernel merges what overlaps.
fn with_own_ports(reserved: &str) -> String {
    let own = format!("{PORT_OUTBOUND},{PORT_PLAINTEXT},{PORT_HBONE}");
    if reserved.is_empty() { own } else { format!("{reserved},{own}") }
}

fn read(file: &'static str) -> Result<String, SysctlError> {
    let text = fs::read_to_string(file).map_err(|source| SysctlError::File { action: "read", file, source })?;
    Ok(text.trim().into())
}

fn write(file: &'static str, value: &str) -> Result<(), SysctlError> {
    // An empty list is written as a line: a write of no bytes changes nothing.
    fs::write(file, format!("{value}\n")).map_err(|source| SysctlError::File { action: "write", file, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network, and mounts, of its own for a thread that ends with them.
    fn in_new_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            // SAFETY: only this thread's namespaces change, and the thread ends with the test.
            let status = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
            assert_eq!(status, 0, "needs root");
            test()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    #[test]
    fn settings_are_changed_and_put_back() {
        in_new_namespace(|| {
            let namespace = NetworkNamespace::current().unwrap();
            write(RESERVED_PORTS, "7000-7002").unwrap();
            let before = (read(TW_REUSE).unwrap(), read(RESERVED_PORTS).unwrap());
            let saved = SavedSysctls::change(&namespace).unwrap();
            assert_eq!(read(TW_REUSE).unwrap(), "1");
            assert_eq!(read(RESERVED_PORTS).unwrap(), "7000-7002,15001,15006,15008");
            saved.restore(&namespace).unwrap();
            assert_eq!((read(TW_REUSE).unwrap(), read(RESERVED_PORTS).unwrap()), before);
        });
    }

    #[test]
    fn settings_that_a_runtime_has_mounted_read_only_are_opened() {
        use rustix::mount::{MountPropagationFlags, mount_bind, mount_change, mount_remount};
        in_new_namespace(|| {
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            mount_bind(SETTINGS, SETTINGS).unwrap();
            mount_remount(SETTINGS, MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
            assert!(write(TW_REUSE, "1").is_err());
            open_settings().unwrap();
            write(TW_REUSE, "1").unwrap();
            open_settings().unwrap();
        });
    }

    #[test]
    fn an_empty_list_is_empty_again() {
        in_new_namespace(|| {
            let namespace = NetworkNamespace::current().unwrap();
            let saved = SavedSysctls::change(&namespace).unwrap();
            assert_eq!(saved.reserved_ports, "");
            saved.restore(&namespace).unwrap();
            assert_eq!(read(RESERVED_PORTS).unwrap(), "");
        });
    }
}
