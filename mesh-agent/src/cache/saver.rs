//! Writes the cache when what is in force has changed: soon, but never so often that a busy mesh keeps the disk busy.
//!
//! A file that cannot be replaced is removed. It would bring back what has been superseded, a permission that was taken
//! away for one, to an agent that starts without control.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::{sync::watch, time::sleep};

use crate::{control::Backoff, private};

use super::{CacheError, CacheStatus, Contents, Owner, SharedCacheStatus, SharedResources, image};

/// A change waits this long for those that follow it.
const GATHER: Duration = Duration::from_millis(100);
/// Shortest time between two writes.
const PAUSE: Duration = Duration::from_secs(1);
/// And at least this many times as long as the last write took: 5 % of the disk's time.
const REST: u32 = 20;
/// Longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The actor; [`Saver::run`] it on the control thread.
#[derive(Debug)]
pub struct Saver {
    path: PathBuf,
    owner: Owner,
    resources: SharedResources,
    view_changes: watch::Receiver<u64>,
    status: SharedCacheStatus,
    /// What the file on disk holds, as [`super::Resources::changes`] counts.
    saved: u64,
    backoff: Backoff,
    /// Held while the file is written, which goes on when nobody waits for it.
    writing: Arc<Mutex<()>>,
}

/// How a saver ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// What is not written yet is.
    Write,
    /// The file is a successor's: nothing is written, and nothing is being written any more.
    Leave,
}

impl Saver {
    /// Of the file at `path`. Nothing is written before `view_changes` says that there is a View: until then the
    /// resources are not complete.
    pub fn new(path: PathBuf, owner: Owner, resources: SharedResources, view_changes: watch::Receiver<u64>) -> Self {
        let backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
        Self {
            path,
            owner,
            resources,
            view_changes,
            status: SharedCacheStatus::default(),
            saved: 0,
            backoff,
            writing: Arc::default(),
        }
    }

    /// What operators are shown; stays current while the saver runs.
    pub fn status(&self) -> SharedCacheStatus {
        self.status.clone()
    }

    /// Has `restore` make a View of the file, if there is one; when it was written.
    ///
    /// # Errors
    /// The file is not to be believed; operators are shown why.
    pub fn load(
        &mut self,
        restore: impl FnOnce(&Contents) -> Result<(), CacheError>,
    ) -> Result<Option<SystemTime>, CacheError> {
        let loaded = super::load(&self.path, &self.owner).and_then(|contents| {
            let Some(contents) = contents else { return Ok(None) };
            restore(&contents)?;
            Ok(Some(contents.saved()))
        });
        match &loaded {
            Ok(_) => self.saved = self.changes(),
            Err(error) => self.note_failure(error),
        }
        loaded
    }

    /// Runs until `closing` says how to end.
    pub async fn run(mut self, closing: impl Future<Output = Ending>) {
        let ending = tokio::select! {
            () = self.follow() => Ending::Write,
            ending = closing => ending,
        };
        if ending == Ending::Leave {
            let writing = self.writing.clone();
            let ended = tokio::task::spawn_blocking(move || drop(writing.lock()));
            return drop(ended.await);
        }
        if self.saved != self.changes() {
            self.save().await;
        }
    }

    async fn follow(&mut self) {
        loop {
            if self.view_changes.changed().await.is_err() {
                return;
            }
            sleep(GATHER).await;
            while self.saved != self.changes() {
                let pause = self.save().await;
                sleep(pause).await;
            }
        }
    }

    /// How long to wait before the next one.
    async fn save(&mut self) -> Duration {
        let (path, (changes, contents)) = (self.path.clone(), self.copy());
        let begun = Instant::now();
        let writing = self.writing.clone();
        let write = move || {
            let _writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
            write(&path, &contents)
        };
        let written = tokio::task::spawn_blocking(write).await;
        let written = written.unwrap_or_else(|broken| Err(io::Error::other(broken)));
        match written {
            Ok(()) => {
                self.saved = changes;
                self.backoff.reset();
                self.change_status(|status| {
                    status.error.clear();
                    status.saves += 1;
                    status.saved = Some(SystemTime::now());
                });
                PAUSE.max(begun.elapsed() * REST)
            }
            Err(source) => {
                let error = CacheError::File { path: self.path.clone(), source };
                tracing::error!(%error, "the View is not kept on disk: an agent that restarts now needs control");
                self.note_failure(&error);
                self.backoff.next_wait()
            }
        }
    }

    fn copy(&self) -> (u64, Contents) {
        let resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        (resources.changes(), resources.contents(&self.owner, SystemTime::now()))
    }

    fn changes(&self) -> u64 {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner).changes()
    }

    fn note_failure(&self, error: &CacheError) {
        self.change_status(|status| {
            status.error = error.to_string();
            status.failures += 1;
        });
    }

    fn change_status(&self, change: impl FnOnce(&mut CacheStatus)) {
        let mut status = CacheStatus::clone(&self.status.load());
        change(&mut status);
        self.status.store(Arc::new(status));
    }
}

fn write(path: &Path, contents: &Contents) -> io::Result<()> {
    let written = private::make_parent(path).and_then(|()| private::replace(path, &image::encode(contents)));
    written.inspect_err(|_| {
        if let Err(error) = private::remove(path) {
            tracing::error!(%error, path = %path.display(), "what is superseded stays on disk");
        }
    })
}
