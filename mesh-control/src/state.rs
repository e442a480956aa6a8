//! Keeps the published state in step with the folder: read, compile, publish, report; and again on every change.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    ca::authority::Authority,
    compile::{Foundation, compile},
    metrics::Metrics,
    observe::ConfigReport,
    publish::Publisher,
    source::{
        folder::{Desired, FileReport, Folder},
        watch::Changes,
    },
};

/// Reads the folder and publishes what it says.
pub struct StateKeeper {
    folder: Folder,
    trust_domain: String,
    authority: watch::Receiver<Arc<Authority>>,
    publisher: Arc<Publisher>,
    metrics: Arc<Metrics>,
    report: watch::Sender<Arc<ConfigReport>>,
}

impl StateKeeper {
    /// A keeper of a folder that has not been read yet.
    pub fn new(
        folder: Folder,
        (trust_domain, authority): (String, watch::Receiver<Arc<Authority>>),
        publisher: Arc<Publisher>,
        metrics: Arc<Metrics>,
    ) -> StateKeeper {
        StateKeeper { folder, trust_domain, authority, publisher, metrics, report: watch::Sender::default() }
    }

    /// What is known of the configuration, now and later.
    pub fn report(&self) -> watch::Receiver<Arc<ConfigReport>> {
        self.report.subscribe()
    }

    /// Reads the folder once.
    ///
    /// # Errors
    /// The folder cannot be listed; what was published stays.
    pub fn refresh(&mut self) -> std::io::Result<()> {
        let desired = self.folder.read()?;
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
        self.tell(desired, version, resources.warnings);
        self.folder.keep();
        Ok(())
    }

    /// Follows the folder and the roots for as long as the daemon runs. Reading and compiling happen off the event loop.
    pub async fn follow(mut self, mut changes: Changes) {
        loop {
            tokio::select! {
                () = changes.next() => {}
                Ok(()) = self.authority.changed() => {}
            }
            let read = tokio::task::spawn_blocking(move || {
                let result = self.refresh();
                (self, result)
            });
            let Ok((keeper, result)) = read.await else { return };
            self = keeper;
            if let Err(error) = result {
                tracing::error!(folder = %self.folder.root().display(), %error, "the folder cannot be read; the last state stays in force");
            }
        }
    }

    /// Logs what is new in the report and replaces it.
    fn tell(&self, desired: Desired, version: u64, warnings: Vec<String>) {
        let errors = desired.problem_count();
        let report = ConfigReport { version, errors, files: desired.reports, warnings };
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

fn log(file: &FileReport) {
    for problem in &file.problems {
        tracing::error!(state = ?file.state, "{}:{problem}", file.file);
    }
    for ignored in &file.ignored {
        tracing::warn!("{}:{ignored}", file.file);
    }
}
