//! Tells when something in the folder may have changed. Never reads a file: whoever is told reads all of it again.

use std::{path::Path, time::Duration};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

/// A writer is thought to be done when nothing has happened for this long.
const QUIET: Duration = Duration::from_millis(50);
/// A folder that never comes to rest is read this often.
const RESTLESS: Duration = Duration::from_secs(1);
/// Read anyway after this long: a network file system may not tell of changes.
const BACKSTOP: Duration = Duration::from_secs(60);

/// Changes of a folder.
pub struct Changes {
    signals: mpsc::Receiver<()>,
    _watcher: RecommendedWatcher,
}

impl Changes {
    /// Watches `root` and everything below it.
    ///
    /// # Errors
    /// The folder does not exist, or the system has no watches left.
    pub fn of(root: &Path) -> notify::Result<Changes> {
        // One signal is as good as many: whoever receives it reads everything.
        let (sender, signals) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let is_change = event.as_ref().map_or(true, |event| is_change(event.kind));
            if is_change {
                // A full channel already holds a signal.
                let _ = sender.try_send(());
            }
        })?;
        watcher.watch(root, RecursiveMode::Recursive)?;
        Ok(Changes { signals, _watcher: watcher })
    }

    /// Waits until the folder has changed and come to rest.
    pub async fn next(&mut self) {
        // The outer error is the backstop; the sender lives as long as the watcher beside it.
        if timeout(BACKSTOP, self.signals.recv()).await.is_err() {
            return;
        }
        let deadline = Instant::now() + RESTLESS;
        while let Ok(Some(())) = timeout_at(deadline.min(Instant::now() + QUIET), self.signals.recv()).await {
            if Instant::now() >= deadline {
                return;
            }
        }
    }
}

/// Reading a file is an event too, and ours to cause.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}
