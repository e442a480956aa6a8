//! What outlives a restart: which pods are enrolled, under which number, and what their namespace's settings were before.
//! One file in the run directory, replaced as a whole.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{kernel::NetworkNamespace, private};

use super::{claim::Claim, error::NodeError, sysctl::SavedSysctls};

/// Why the record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read or written.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// It is damaged, or of another version.
    #[error("{} is malformed: {source}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodRecord {
    /// Its number in the kernel's maps.
    pub id: u32,
    /// Cookie of its namespace: a path counts only if it still leads there.
    pub cookie: u64,
    /// What was enrolled.
    pub claim: Claim,
    /// What is put back at withdrawal.
    pub sysctls: SavedSysctls,
}

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Of the machine's current start; cookies of another one mean nothing.
    pub boot_id: String,
    /// Highest number given so far.
    pub last_id: u32,
    /// The enrolled pods.
    pub pods: Vec<PodRecord>,
}

impl Record {
    /// An empty one of this boot.
    ///
    /// # Errors
    /// /proc is not there.
    pub fn new() -> Result<Self, RecordError> {
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot_id = fs::read_to_string(path).map_err(|source| RecordError::File {
            action: "read",
            path: path.into(),
            source,
        })?;
        Ok(Self { boot_id: boot_id.trim().into(), ..Self::default() })
    }

    /// Reads the file; an empty record when there is none, or when it is of another boot.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn load(path: &Path) -> Result<Self, RecordError> {
        let empty = Self::new()?;
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(empty),
            Err(source) => return Err(RecordError::File { action: "read", path: path.into(), source }),
        };
        let record: Self =
            serde_json::from_slice(&text).map_err(|source| RecordError::Malformed { path: path.into(), source })?;
        Ok(if record.boot_id == empty.boot_id { record } else { empty })
    }

    /// Replaces the file: readers, and a restart after a crash, see the old one or the new one. Mode 0600.
    ///
    /// # Errors
    /// It cannot be written; the old one stays.
    pub fn store(&self, path: &Path) -> Result<(), RecordError> {
        let text =
            serde_json::to_vec_pretty(self).map_err(|source| RecordError::Malformed { path: path.into(), source })?;
        private::replace(path, &text).map_err(|source| RecordError::File { action: "write", path: path.into(), source })
    }
}

/// For `detach`: puts back the settings of every namespace that is still there, and removes the file.
///
/// # Errors
/// The file cannot be read or removed. A namespace that has gone, or is another one now, is passed over.
pub fn forget_all(path: &Path) -> Result<(), NodeError> {
    for pod in Record::load(path)?.pods {
        let namespace = NetworkNamespace::open(&pod.claim.network_namespace.path());
        if let Ok(namespace) = namespace.as_ref()
            && namespace.cookie() == pod.cookie
        {
            pod.sysctls.restore(namespace)?;
        }
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(RecordError::File { action: "remove", path: path.into(), source }.into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::enrol::claim::NamespaceSource;

    fn record() -> Record {
        let claim = Claim {
            uid: "u1".into(),
            namespace: "default".into(),
            name: "web".into(),
            service_account: "web".into(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            network_namespace: NamespaceSource::Pid(7),
            cgroup_path: "/sys/fs/cgroup/web".into(),
            probe_ports: vec![80],
            is_fail_open: true,
        };
        let sysctls = SavedSysctls { tcp_tw_reuse: "2".into(), reserved_ports: String::new() };
        Record { last_id: 9, pods: vec![PodRecord { id: 9, cookie: 42, claim, sysctls }], ..Record::new().unwrap() }
    }

    #[test]
    fn store_then_load_is_identity_and_private() {
        let directory = std::env::temp_dir().join(format!("node-record-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let path = directory.join("pods.json");
        assert_eq!(Record::load(&path).unwrap().pods, []);
        record().store(&path).unwrap();
        assert_eq!(Record::load(&path).unwrap(), record());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let other_boot = Record { boot_id: "another".into(), ..record() };
        other_boot.store(&path).unwrap();
        assert_eq!(Record::load(&path).unwrap().pods, []);
        fs::write(&path, "{").unwrap();
        assert!(matches!(Record::load(&path), Err(RecordError::Malformed { .. })));
        fs::remove_dir_all(&directory).unwrap();
    }
}
