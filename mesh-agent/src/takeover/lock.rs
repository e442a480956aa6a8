//! One agent at a time is in charge of a run directory: who holds this lock. It goes with the process.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// How often a lock that another holds is tried: nobody tells when it is free.
const LOOK: Duration = Duration::from_millis(10);

/// Why this process is not in charge.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A file or directory of the run directory.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another agent works with the same run directory.
    #[error("{} is locked by another agent, which runs; stop that one first", .0.display())]
    Held(PathBuf),
}

/// Being in charge, until the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Lock(#[expect(dead_code, reason = "held for its lock")] Arc<File>);

impl Lock {
    /// Takes it, making the run directory first if need be.
    ///
    /// # Errors
    /// It cannot be made, or another agent is in charge.
    pub fn take(run_dir: &Path) -> Result<Self, LockError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| LockError::File { action, path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(run_dir).map_err(failed("create", run_dir))?;
        let path = run_dir.join("lock");
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(Arc::new(file))),
            Err(fs::TryLockError::WouldBlock) => Err(LockError::Held(run_dir.to_owned())),
            Err(fs::TryLockError::Error(source)) => Err(failed("lock", &path)(source)),
        }
    }

    /// Takes it as soon as it is free.
    ///
    /// # Errors
    /// It is not, in time.
    pub async fn wait(run_dir: &Path, limit: Duration) -> Result<Self, LockError> {
        let until = Instant::now() + limit;
        loop {
            match Self::take(run_dir) {
                Err(LockError::Held(_)) if Instant::now() < until => sleep(LOOK).await,
                taken => return taken,
            }
        }
    }
}
