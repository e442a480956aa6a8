//! How the daemon begins on each of its sources: with keys, with somebody who says who callers are, and with a first
//! state that is published and followed. Serves nothing.

use std::{collections::HashSet, path::Path, sync::Arc};

use anyhow::Context;
use tokio::sync::watch;

use crate::{
    ca::{
        authority::{Authority, Parts},
        files,
    },
    kubernetes::{self, lease::Election, review::Reviews, root, tell::Teller},
    metrics::Metrics,
    observe::ConfigReport,
    publish::{Publisher, Snapshot},
    settings::Settings,
    source::{folder::Folder, watch::Changes},
    state::{Source, StateKeeper},
    xds::{caller::Callers, token::Tokens},
};

/// What serving needs.
pub struct Started {
    /// Who signs; another after a step of a rotation.
    pub signs: watch::Sender<Arc<Authority>>,
    /// Who says who asks.
    pub callers: Arc<Callers>,
    /// The file that says so; none in Kubernetes.
    pub tokens: Option<Arc<Tokens>>,
    /// What is told.
    pub state: watch::Receiver<Arc<Snapshot>>,
    /// What is known of the configuration.
    pub config: watch::Receiver<Arc<ConfigReport>>,
}

/// Begins on a folder of manifests.
///
/// # Errors
/// The operator's files are at fault.
pub fn on_folder(settings: &Settings, folder: &Path, metrics: &Arc<Metrics>) -> anyhow::Result<Started> {
    let state_dir = settings.state_dir.as_deref().context("--state-dir")?;
    let parts = files::load(state_dir, settings.ca_dir.as_deref()).context("the certificate authority")?;
    let signs = watch::Sender::new(Arc::new(Authority::new(parts, settings.certificate_lifetime)));
    let tokens = settings.node_tokens.as_deref().context("--node-tokens")?;
    let tokens = Arc::new(Tokens::read(tokens).context("--node-tokens")?);
    // Watched before it is read: a change in between is seen twice rather than never.
    let changes = Changes::of(folder).with_context(|| format!("--config-dir {}", folder.display()))?;
    let source = Source::Folder(Folder::new(folder, state_dir));
    let publisher = Arc::new(Publisher::new());
    let state = publisher.subscribe();
    let mut keeper = StateKeeper::new(source, foundation(settings, &signs), publisher, metrics.clone());
    let config = keeper.report();
    keeper.refresh().context("--config-dir")?;
    tokio::spawn(keeper.follow_folder(changes));
    let callers = Arc::new(Callers::Tokens(tokens.clone()));
    Ok(Started { signs, callers, tokens: Some(tokens), state, config })
}

/// Begins on an API server; returns once it has said all that there is.
///
/// # Errors
/// The operator's settings, or what the root's Secret holds, are at fault.
pub async fn on_kubernetes(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<Started> {
    let options = &settings.kubernetes;
    let client = kubernetes::connect(options.kubeconfig.as_ref()).await?;
    let namespace = options.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let authority =
        Arc::new(Authority::new(parts(settings, &client, &namespace).await?, settings.certificate_lifetime));
    let signs = watch::Sender::new(authority.clone());
    tokio::spawn(root::show(client.clone(), namespace.clone(), authority.roots().concat()));
    let store = kubernetes::watch(&client, metrics);
    let publisher = Arc::new(Publisher::new());
    let mut state = publisher.subscribe();
    let source = Source::Kubernetes(store.clone());
    let keeper = StateKeeper::new(source, foundation(settings, &signs), publisher, metrics.clone());
    let config = keeper.report();
    tokio::spawn(keeper.follow_store(store.clone()));
    let replica = options.replica.clone().unwrap_or_else(host_name);
    let (leads, leading) = watch::channel(false);
    let election = Election { client: client.clone(), namespace: namespace.clone(), replica: replica.clone() };
    tokio::spawn(election.follow(leads, stopping));
    let teller = Teller {
        client: client.clone(),
        store: store.clone(),
        replica,
        metrics: metrics.clone(),
        told: HashSet::new(),
    };
    tokio::spawn(teller.follow(leading));
    let agent = options.agent(&namespace);
    let reviews = Reviews { client, agent, audience: options.token_audience.clone(), store };
    // An agent that asked before would be told of an empty mesh.
    state.changed().await.context("the first state of the API server")?;
    Ok(Started { signs, callers: Arc::new(Callers::Kubernetes(reviews)), tokens: None, state, config })
}

/// In a pod this is the pod's name, which no other replica has.
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

async fn parts(settings: &Settings, client: &kube::Client, namespace: &str) -> anyhow::Result<Parts> {
    match &settings.ca_dir {
        Some(directory) => files::plugged(directory).context("--ca-dir"),
        None => root::load(client, namespace).await.context("the certificate authority"),
    }
}

/// What all that is compiled rests on.
fn foundation(settings: &Settings, signs: &watch::Sender<Arc<Authority>>) -> (String, watch::Receiver<Arc<Authority>>) {
    (settings.trust_domain.clone(), signs.subscribe())
}
