//! Keeps the published state in step with its source: read, compile, publish, report; and again on every change.

use std::{
    io::{Error, Result},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    ca::authority::Authority,
    compile::{Foundation, compile},
    kubernetes::store::{KindReport, Store},
    metrics::Metrics,
    observe::ConfigReport,
    publish::Publisher,
    source::{
        folder::{Desired, FileReport, Folder},
        watch::Changes,
    },
};

/// Objects that change together are published together when they come this close.
const QUIET: Duration = Duration::from_millis(20);
/// Objects that never come to rest are published this often.
const RESTLESS: Duration = Duration::from_millis(200);

/// Where the state comes from.
pub enum Source {
    /// Manifests.
    Folder(Folder),
    /// Objects of an API server.
    Kubernetes(Arc<Store>),
}

/// Reads the source and publishes what it says.
pub struct StateKeeper {
    source: Source,
    trust_domain: String,
    authority: watch::Receiver<Arc<Authority>>,
    publisher: Arc<Publisher>,
    metrics: Arc<Metrics>,
    report: watch::Sender<Arc<ConfigReport>>,
}

impl StateKeeper {
    /// A keeper of a source that has not been read yet.
    pub fn new(
        source: Source,
        (trust_domain, authority): (String, watch::Receiver<Arc<Authority>>),
        publisher: Arc<Publisher>,
        metrics: Arc<Metrics>,
    ) -> StateKeeper {
        StateKeeper { source, trust_domain, authority, publisher, metrics, report: watch::Sender::default() }
    }

    /// What is known of the configuration, now and later.
    pub fn report(&self) -> watch::Receiver<Arc<ConfigReport>> {
        self.report.subscribe()
    }

    /// Reads the source once.
    ///
    /// # Errors
    /// The folder cannot be listed; what was published stays.
    pub fn refresh(&mut self) -> Result<()> {
        let (desired, kinds) = match &mut self.source {
            Source::Folder(folder) => {
                let root = folder.root().to_owned();
                let named = |error: Error| Error::new(error.kind(), format!("{}: {error}", root.display()));
                (folder.read().map_err(named)?, Vec::new())
            }
            Source::Kubernetes(store) => (store.desired(), store.kinds()),
        };
        let trust_bundle = self.authority.borrow().roots().to_vec();
        let foundation = Foundation { trust_domain: self.trust_domain.clone(), trust_bundle };
        let resources = compile(&desired.objects, &foundation);
        let version = self.publisher.publish(&resources);
        self.metrics.config_reads.inc();
        self.metrics.config_errors.set(desired.problem_count().try_into().unwrap_or(i64::MAX));
        let ignored: usize = desired.reports.iter().map(|report| report.ignored.len()).sum();
        self.metrics.config_warnings.set((resources.warnings.len() + ignored).try_into().unwrap_or(i64::MAX));
        self.metrics.state_version.set(version);
        self.metrics.set_ready();
        self.tell(desired, version, resources.warnings, kinds);
        if let Source::Folder(folder) = &mut self.source {
            folder.keep();
        }
        Ok(())
    }

    /// Follows a folder and the roots for as long as the daemon runs.
    pub async fn follow_folder(mut self, mut changes: Changes) {
        loop {
            tokio::select! {
                () = changes.next() => {}
                Ok(()) = self.authority.changed() => {}
            }
            let Some(keeper) = self.refresh_aside().await else { return };
            self = keeper;
        }
    }

    /// Follows the objects of an API server for as long as the daemon runs, from the time that all kinds are known.
    pub async fn follow_store(mut self, store: Arc<Store>) {
        let mut changes = store.changes();
        loop {
            if store.is_complete() {
                let Some(keeper) = self.refresh_aside().await else { return };
                self = keeper;
            }
            if changes.changed().await.is_err() {
                return;
            }
            come_to_rest(&mut changes).await;
        }
    }

    /// Reads and compiles off the event loop. Nothing when that has panicked: the state can be no more trusted.
    async fn refresh_aside(mut self) -> Option<StateKeeper> {
        let read = tokio::task::spawn_blocking(move || {
            if let Err(error) = self.refresh() {
                tracing::error!(%error, "the folder of manifests cannot be read; the last state stays in force");
            }
            self
        });
        read.await.inspect_err(|error| tracing::error!(%error, "the state is not refreshed any more")).ok()
    }

    /// Logs what is new in the report and replaces it.
    fn tell(&self, desired: Desired, version: u64, warnings: Vec<String>, kinds: Vec<KindReport>) {
        let errors = desired.problem_count();
        let report = ConfigReport { version, errors, files: desired.reports, kinds, warnings };
        let old = self.report.send_replace(Arc::new(report.clone()));
        for file in report.files.iter().filter(|file| !old.files.contains(file)) {
            log(file);
        }
        for warning in report.warnings.iter().filter(|warning| !old.warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
        if old.version != version {
            tracing::info!(version, files = report.files.len(), errors, "state published");
        }
    }
}

async fn come_to_rest(changes: &mut watch::Receiver<u64>) {
    let deadline = Instant::now() + RESTLESS;
    while Instant::now() < deadline {
        changes.mark_unchanged();
        if timeout_at(deadline.min(Instant::now() + QUIET), changes.changed()).await.is_err() {
            return;
        }
    }
}

fn log(file: &FileReport) {
    for problem in &file.problems {
        tracing::error!(state = ?file.state, "{}:{problem}", file.file);
    }
    for ignored in &file.ignored {
        tracing::warn!("{}:{ignored}", file.file);
    }
}
