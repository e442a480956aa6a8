//! Keys and certificates of this node's workloads in memory that outlives the process: files in a tmpfs, so that an agent
//! that starts without control goes on with mutual TLS, and a machine that was off has none of them.
//!
//! One file for each identity, mode 0600, in a directory of mode 0700; gone with its last pod or at its expiry.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use mesh_api::Identity;

use crate::{
    digest::{hexadecimal, sha256},
    private,
};

use super::{CertificateError, PrivatePem, TrustBundle, WorkloadCertificate};

/// Why there is no place for keys.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// It cannot be made, or others may enter it.
    #[error("the directory of keys {}: {source}", path.display())]
    Directory {
        /// Where.
        path: PathBuf,
        /// Why it is not used.
        source: io::Error,
    },
    /// It is on a disk, which keys must not touch.
    #[error(
        "the directory of keys {path} is not on a tmpfs: give a --run-dir that is, or run \
         `mount -t tmpfs -o mode=0700,nosuid,nodev,noexec,size=16m tmpfs {path}`",
        path = .0.display()
    )]
    Disk(PathBuf),
    /// It cannot be emptied.
    #[error("remove the keys in {}: {source}", path.display())]
    Remove {
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Why a kept key is not used.
#[derive(Debug, thiserror::Error)]
enum KeptError {
    #[error("reading it: {0}")]
    File(#[from] io::Error),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// The directory; no key is in memory because of it.
#[derive(Debug)]
pub struct Vault {
    directory: PathBuf,
}

impl Vault {
    /// Where the keys of an agent with this run directory are.
    pub fn directory(run_dir: &Path) -> PathBuf {
        run_dir.join("keys")
    }

    /// Makes the directory, or checks the one that is there.
    ///
    /// # Errors
    /// See [`VaultError`]: it must be in memory and the agent's alone.
    pub fn open(run_dir: &Path) -> Result<Self, VaultError> {
        let directory = Self::directory(run_dir);
        let failed = |source| VaultError::Directory { path: directory.clone(), source };
        let opened = private::make_directory(&directory).map_err(failed)?;
        match private::is_on_tmpfs(&opened).map_err(failed)? {
            true => Ok(Self { directory }),
            false => Err(VaultError::Disk(directory)),
        }
    }

    /// What an earlier run kept for `identity`, and when it was issued. What cannot be used any more is removed.
    pub fn load(&self, identity: &Identity, bundle: &TrustBundle) -> Option<(WorkloadCertificate, SystemTime)> {
        match self.read(identity, bundle) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%identity, %error, "the key that was kept over the restart is discarded");
                self.remove(identity);
                None
            }
        }
    }

    /// Whether a valid certificate of `identity` is kept; whatever is there stays.
    ///
    /// # Errors
    /// Why there is none.
    pub fn check(&self, identity: &Identity, bundle: &TrustBundle) -> Result<(), String> {
        match self.read(identity, bundle) {
            Ok(Some((certificate, _))) if certificate.not_after > SystemTime::now() => Ok(()),
            Ok(Some(_)) => Err("it has expired".into()),
            Ok(None) => Err("there is none".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn read(
        &self,
        identity: &Identity,
        bundle: &TrustBundle,
    ) -> Result<Option<(WorkloadCertificate, SystemTime)>, KeptError> {
        let path = self.path(identity);
        let Some(pem) = private::read(&path)? else { return Ok(None) };
        let issued = fs::metadata(&path)?.modified()?;
        let certificate = WorkloadCertificate { issued, ..WorkloadCertificate::from_pem(identity, &pem, bundle)? };
        Ok(Some((certificate, issued)))
    }

    /// Keeps a certificate that was issued just now.
    ///
    /// # Errors
    /// The memory is full; nothing is kept for this identity then.
    pub fn store(&self, identity: &Identity, pem: &PrivatePem) -> io::Result<()> {
        private::replace(&self.path(identity), pem.as_bytes()).inspect_err(|_| self.remove(identity))
    }

    /// Its last pod has gone, or its certificate has expired.
    pub fn remove(&self, identity: &Identity) {
        if let Err(error) = private::remove(&self.path(identity)) {
            tracing::error!(%identity, %error, "a key that nobody needs any more was not removed");
        }
    }

    /// Removes all but those of these identities: pods have died while there was no agent.
    pub fn retain(&self, identities: &BTreeSet<Identity>) {
        let kept: HashSet<PathBuf> = identities.iter().map(|identity| self.path(identity)).collect();
        for path in fs::read_dir(&self.directory).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if !kept.contains(&path)
                && let Err(error) = private::remove(&path)
            {
                tracing::error!(path = %path.display(), %error, "a key that nobody needs any more was not removed");
            }
        }
    }

    /// For `detach`: removes the keys, and the directory unless it is a mount.
    ///
    /// # Errors
    /// A key stays.
    pub fn empty(run_dir: &Path) -> Result<(), VaultError> {
        let directory = Self::directory(run_dir);
        let failed = |source| VaultError::Remove { path: directory.clone(), source };
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            entry.and_then(|entry| private::remove(&entry.path())).map_err(failed)?;
        }
        // A mount stays; it is empty.
        let _ = fs::remove_dir(&directory);
        Ok(())
    }

    /// Names may be longer than a file's.
    fn path(&self, identity: &Identity) -> PathBuf {
        let name = hexadecimal(&sha256([identity.to_string().as_bytes()]));
        self.directory.join(format!("{name}.pem"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::{
        certificates::{CertificateRequest, request::Issued},
        private::tests::Scratch,
        proving::{Authority, identity},
    };

    fn issue(authority: &Authority, name: &str) -> Issued {
        let request = CertificateRequest::new(&identity(name)).unwrap();
        let chain = authority.sign(&request.csr_pem);
        request.accept(&chain, Some(authority.trust.clone())).unwrap()
    }

    fn files(vault: &Vault) -> usize {
        fs::read_dir(&vault.directory).unwrap().count()
    }

    #[test]
    fn a_key_that_is_kept_is_found_again_and_is_ours_alone() {
        let (scratch, authority) = (Scratch::new("vault"), Authority::new());
        let vault = Vault::open(&scratch.0).unwrap();
        let web = identity("web");
        assert!(vault.load(&web, &authority.trust).is_none());
        let issued = issue(&authority, "web");
        vault.store(&web, &issued.pem).unwrap();
        let (certificate, since) = Vault::open(&scratch.0).unwrap().load(&web, &authority.trust).unwrap();
        assert_eq!(certificate.serial, issued.certificate.serial);
        assert!(since.elapsed().unwrap_or_default().as_secs() < 60);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&vault.directory), mode(&vault.path(&web))), (0o700, 0o600));
    }

    #[test]
    fn what_cannot_be_used_any_more_is_discarded() {
        let (scratch, authority) = (Scratch::new("discard"), Authority::new());
        let vault = Vault::open(&scratch.0).unwrap();
        let web = identity("web");
        let issued = issue(&authority, "web");
        let damages: [&dyn Fn(&Path); 4] = [
            &|path| fs::write(path, "damaged").unwrap(),
            &|path| fs::write(path, issue(&authority, "db").pem.as_bytes()).unwrap(),
            &|path| fs::write(path, issue(&Authority::new(), "web").pem.as_bytes()).unwrap(),
            &|path| fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap(),
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            vault.store(&web, &issued.pem).unwrap();
            assert!(vault.load(&web, &authority.trust).is_some());
            damage(&vault.path(&web));
            assert!(vault.load(&web, &authority.trust).is_none(), "damage {number}");
            assert_eq!(files(&vault), 0, "damage {number}");
        }
    }

    #[test]
    fn keys_go_with_their_pods_and_with_the_mesh() {
        let (scratch, authority) = (Scratch::new("retain"), Authority::new());
        let vault = Vault::open(&scratch.0).unwrap();
        for name in ["web", "db", "api"] {
            vault.store(&identity(name), &issue(&authority, name).pem).unwrap();
        }
        vault.remove(&identity("api"));
        assert_eq!(files(&vault), 2);
        vault.retain(&[identity("db")].into());
        assert!(vault.load(&identity("web"), &authority.trust).is_none());
        assert!(vault.load(&identity("db"), &authority.trust).is_some());
        Vault::empty(&scratch.0).unwrap();
        assert!(!vault.directory.exists());
        Vault::empty(&scratch.0).unwrap();
    }

    #[test]
    fn a_place_on_a_disk_or_open_to_others_is_refused() {
        let scratch = Scratch::new("place");
        let directory = Vault::directory(&scratch.0);
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(Vault::open(&scratch.0), Err(VaultError::Directory { .. })));
        // A memory file system of another kind stands for a disk.
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let cgroup = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("needs cgroup v2");
        let cgroup = Path::new(cgroup.split(' ').nth(1).unwrap()).join(format!("mesh-vault-{}", std::process::id()));
        fs::create_dir_all(cgroup.join("keys")).expect("needs root");
        fs::set_permissions(cgroup.join("keys"), fs::Permissions::from_mode(0o700)).unwrap();
        let refused = Vault::open(&cgroup);
        fs::remove_dir(cgroup.join("keys")).unwrap();
        fs::remove_dir(&cgroup).unwrap();
        let error = refused.unwrap_err();
        assert!(matches!(error, VaultError::Disk(_)) && error.to_string().contains("mount -t tmpfs"), "{error}");
    }
}
