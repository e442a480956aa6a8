//! Wakes the registry when something happened to a file that tells of a pod's death. Says only that, not what: the
//! pulses are looked at then.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::PathBuf,
};

use inotify::{Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;

/// The watches.
#[derive(Debug)]
pub struct Wakeups {
    inotify: AsyncFd<Inotify>,
    watched: HashMap<PathBuf, WatchDescriptor>,
}

impl Wakeups {
    /// None yet.
    ///
    /// # Errors
    /// The limit of inotify instances is reached.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        // SAFETY: it owns its descriptor and answers the same one until it is dropped, which the AsyncFd outlives.
        let inotify = unsafe { AsyncFd::register(inotify)? };
        Ok(Self { inotify, watched: HashMap::new() })
    }

    /// Watches exactly these. One that cannot be watched is left to the regular look.
    pub fn set(&mut self, wanted: &HashSet<PathBuf>) {
        let mut watches = self.inotify.get_ref().watches();
        self.watched.retain(|path, descriptor| {
            let stays = wanted.contains(path);
            if !stays {
                // The kernel may have removed it with the file.
                let _ = watches.remove(descriptor.clone());
            }
            stays
        });
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::MODIFY | WatchMask::DELETE_SELF;
        for path in wanted {
            if !self.watched.contains_key(path)
                && let Ok(descriptor) = watches.add(path, mask)
            {
                self.watched.insert(path.clone(), descriptor);
            }
        }
    }

    /// Waits for something to happen.
    pub async fn next(&mut self) {
        let Ok(mut ready) = self.inotify.readable_mut().await else {
            // Only when the runtime shuts down.
            return std::future::pending().await;
        };
        let mut events = [0; 4096];
        // What they say does not matter, only that they are read.
        let _ = ready.try_io(|inotify| inotify.get_mut().read_events(&mut events).map(drop));
    }
}
