//! The desired state out of a Kubernetes API server, and all else that is done with one: telling authors what is wrong
//! with their objects, asking whose a token is, and keeping the root's key. Never decides what objects mean.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::metrics::Metrics;

pub mod kinds;
pub mod lease;
mod read;
pub mod review;
pub mod root;
pub mod store;
pub mod tell;
#[cfg(test)]
mod tests;
mod verdict;
mod watch;

use kinds::KINDS;
use store::Store;
use watch::KindWatch;

/// Who has written what is ours in an object, as server-side apply records it.
pub const WRITER: &str = "mesh-control";

/// An API server that does not even accept is tried again, perhaps at another of its addresses.
const CONNECT: Duration = Duration::from_secs(3);

/// A client of the API server that a file names, or of the one that this pod runs on.
///
/// # Errors
/// The file, or the pod's own credentials, are at fault. The API server itself is not asked.
pub async fn connect(kubeconfig: Option<&PathBuf>) -> anyhow::Result<Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {}", path.display()))?;
            let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
            config.with_context(|| format!("--kubeconfig {}", path.display()))?
        }
        None => Config::incluster().context(
            "--kubernetes without --kubeconfig is for a pod of the cluster, with a ServiceAccount token mounted",
        )?,
    };
    config.connect_timeout = Some(CONNECT);
    Client::try_from(config).context("the client of the API server")
}

/// Watches all kinds from now on.
pub fn watch(client: &Client, metrics: &Arc<Metrics>) -> Arc<Store> {
    let store = Arc::new(Store::default());
    for kind in &KINDS {
        let (client, store, metrics) = (client.clone(), store.clone(), metrics.clone());
        tokio::spawn(KindWatch { kind, client, store, metrics }.follow());
    }
    store
}

/// An error with its causes on one line; a cause that the text already holds is not repeated.
pub fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
