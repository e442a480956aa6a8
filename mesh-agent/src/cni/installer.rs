//! Keeps the plug-in on the node while this agent is in charge. The program comes first and goes last, so that no runtime is
//! told to call what is not there.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use serde_json::{Value, json};

use super::{
    directory::{self, DirectoryError},
    files,
};
use crate::{
    config::{CniSettings, PLUGIN},
    enrol::Wakeups,
};

/// Besides every change that is seen.
const LOOK: Duration = Duration::from_secs(2);

/// Why the plug-in is not in place.
#[derive(Debug, thiserror::Error)]
pub enum InstallerError {
    /// The configuration.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The program.
    #[error("{}: {source}", path.display())]
    Program {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// inotify.
    #[error("watch the directories of the CNI plug-in: {0}")]
    Watch(io::Error),
}

/// The plug-in's keeper.
#[derive(Debug)]
pub struct Installer {
    settings: CniSettings,
    entry: Value,
    state: Mutex<State>,
    /// What is wrong; empty when it is in place.
    fault: ArcSwap<String>,
    /// It has been in place: what happens to it later is repaired, and a matter for `check`.
    was_in_place: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    installed: Option<Mark>,
    /// It was taken out for good.
    is_removed: bool,
}

/// Tells a file that nobody has written since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    inode: u64,
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Installer {
    /// Changes nothing yet. `socket`: the agent's, by the node's name of it.
    ///
    /// # Errors
    /// The program cannot be read.
    pub fn new(settings: &CniSettings, socket: &Path) -> Result<Arc<Self>, InstallerError> {
        let path = settings.plugin.clone();
        fs::File::open(&path).map_err(|source| InstallerError::Program { path, source })?;
        let entry = json!({"type": PLUGIN, "socket": socket, "excludeNamespaces": settings.excluded});
        Ok(Arc::new(Self {
            settings: settings.clone(),
            entry,
            state: Mutex::default(),
            fault: ArcSwap::from_pointee("not installed yet".into()),
            was_in_place: AtomicBool::default(),
        }))
    }

    /// What is wrong with the plug-in; empty when it is in place.
    pub fn fault(&self) -> Arc<String> {
        self.fault.load_full()
    }

    /// Whether it has been in place since this agent is in charge.
    pub fn was_in_place(&self) -> bool {
        self.was_in_place.load(Ordering::Relaxed)
    }

    /// Keeps it in place; never ends.
    pub async fn run(self: Arc<Self>) {
        let mut wakeups = match Wakeups::new() {
            Ok(wakeups) => wakeups,
            Err(error) => {
                tracing::error!(error = %InstallerError::Watch(error), "the CNI plug-in is not looked after");
                return std::future::pending().await;
            }
        };
        let directories = HashSet::from([self.settings.conf_dir.clone(), self.settings.bin_dir.clone()]);
        loop {
            wakeups.set(&directories);
            self.look();
            tokio::select! {
                () = wakeups.next() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Puts in place what is missing.
    fn look(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_removed {
            return;
        }
        let fault = match self.install(&mut state) {
            Ok(false) => String::new(),
            Ok(true) => {
                let (conf_dir, bin_dir) = (self.settings.conf_dir.display(), self.settings.bin_dir.display());
                tracing::info!(%conf_dir, %bin_dir, "the CNI plug-in is put in place");
                String::new()
            }
            Err(error) => error.to_string(),
        };
        if !fault.is_empty() && **self.fault.load() != fault {
            tracing::warn!(fault, "the CNI plug-in is not in place: pods start before they are enrolled");
        }
        self.was_in_place.fetch_or(fault.is_empty(), Ordering::Relaxed);
        self.fault.store(Arc::new(fault));
    }

    fn install(&self, state: &mut State) -> Result<bool, InstallerError> {
        let path = self.settings.bin_dir.join(PLUGIN);
        let mut is_missing = false;
        if state.installed.is_none() || mark(&path) != state.installed {
            // Only now, and not kept: it is megabytes.
            let plugin = &self.settings.plugin;
            let unread = |source| InstallerError::Program { path: plugin.clone(), source };
            let program = fs::read(plugin).map_err(unread)?;
            // After a restart it may be there as it should be.
            is_missing = fs::read(&path).ok().as_ref() != Some(&program);
            if is_missing {
                let unwritten = |source| InstallerError::Program { path: path.clone(), source };
                files::replace_program(&path, &program).map_err(unwritten)?;
            }
            state.installed = mark(&path);
        }
        Ok(directory::insert(&self.settings.conf_dir, &self.entry)? | is_missing)
    }

    /// Takes it out for good.
    ///
    /// # Errors
    /// A file cannot be changed.
    pub fn remove(&self) -> Result<(), InstallerError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_removed = true;
        remove(&self.settings.conf_dir, &self.settings.bin_dir)
    }
}

/// Takes the plug-in off a node.
///
/// # Errors
/// A file cannot be changed. The program stays while a configuration may name it.
pub fn remove(conf_dir: &Path, bin_dir: &Path) -> Result<(), InstallerError> {
    directory::clear(conf_dir)?;
    let path = bin_dir.join(PLUGIN);
    files::remove(&path).map_err(|source| InstallerError::Program { path, source })
}

fn mark(path: &Path) -> Option<Mark> {
    let file = fs::metadata(path).ok()?;
    Some(Mark { inode: file.ino(), bytes: file.len(), modified: file.modified().ok() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET: &str = "{\"cniVersion\":\"1.0.0\",\"name\":\"net\",\"plugins\":[{\"type\":\"ptp\"}]}";

    struct Node(PathBuf);

    impl Node {
        fn new(name: &str) -> (Self, Arc<Installer>) {
            let root = std::env::temp_dir().join(format!("mesh-installer-{name}-{}", std::process::id()));
            for directory in ["conf", "bin"] {
                fs::create_dir_all(root.join(directory)).unwrap();
            }
            fs::write(root.join("mesh-cni"), "program").unwrap();
            fs::write(root.join("conf/10-net.conflist"), NET).unwrap();
            let settings = CniSettings {
                is_wanted: true,
                conf_dir: root.join("conf"),
                bin_dir: root.join("bin"),
                plugin: root.join("mesh-cni"),
                excluded: vec!["kube-system".into()],
            };
            let installer = Installer::new(&settings, Path::new("/run/mesh/admin.sock")).unwrap();
            (Self(root), installer)
        }

        fn list(&self) -> String {
            fs::read_to_string(self.0.join("conf/10-net.conflist")).unwrap()
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn it_is_installed_repaired_and_taken_out() {
        let (node, installer) = Node::new("all");
        installer.look();
        assert_eq!(*installer.fault(), "");
        let program = node.0.join("bin/mesh-cni");
        assert_eq!(fs::read_to_string(&program).unwrap(), "program");
        assert_eq!(fs::metadata(&program).unwrap().mode() & 0o777, 0o755);
        assert!(node.list().contains("/run/mesh/admin.sock") && node.list().contains("kube-system"));

        for damage in [
            |node: &Node| fs::write(node.0.join("bin/mesh-cni"), "other").unwrap(),
            |node: &Node| {
                fs::remove_file(node.0.join("bin/mesh-cni")).unwrap();
                fs::write(node.0.join("conf/10-net.conflist"), NET).unwrap();
            },
        ] {
            damage(&node);
            installer.look();
            assert_eq!(fs::read_to_string(&program).unwrap(), "program");
            assert!(node.list().contains("mesh-cni"));
        }

        installer.remove().unwrap();
        installer.look();
        assert!(!program.exists());
        assert_eq!(node.list(), NET);
    }

    #[test]
    fn what_is_in_the_way_is_told() {
        let (node, installer) = Node::new("faults");
        fs::remove_file(node.0.join("conf/10-net.conflist")).unwrap();
        installer.look();
        assert!(installer.fault().contains("there is no CNI configuration yet"), "{}", installer.fault());
        fs::write(node.0.join("conf/10-net.conflist"), NET.replace("1.0.0", "0.2.0")).unwrap();
        installer.look();
        assert!(installer.fault().contains("is of cniVersion \"0.2.0\""), "{}", installer.fault());
        assert!(!node.list().contains("mesh-cni") && !installer.was_in_place());
        fs::write(node.0.join("conf/10-net.conflist"), NET).unwrap();
        installer.look();
        assert_eq!(*installer.fault(), "");
        fs::remove_dir_all(node.0.join("bin")).unwrap();
        installer.look();
        assert!(installer.was_in_place(), "that is for `check` to say");
        assert!(installer.fault().contains("bin/mesh-cni"), "{}", installer.fault());
        fs::create_dir(node.0.join("bin")).unwrap();
    }

    #[tokio::test]
    async fn what_an_installer_writes_anew_is_repaired_at_once() {
        let (node, installer) = Node::new("watch");
        let running = installer.clone().run();
        let observed = async {
            let has = async |wanted: bool| {
                while node.list().contains("mesh-cni") != wanted {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            has(true).await;
            fs::write(node.0.join("conf/10-net.conflist"), NET).unwrap();
            has(true).await;
        };
        tokio::select! {
            () = running => panic!("it never ends"),
            observed = tokio::time::timeout(LOOK / 2, observed) => observed.unwrap(),
        }
    }
}
