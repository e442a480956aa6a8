//! How an agent starts: alone, or beside one that is in charge and stays so until this one is ready.

use std::{path::Path, sync::Arc, time::Instant};

use tokio::sync::watch;

use crate::{
    admin::{self, Node, Runtimes, Sockets},
    cache::{self, Owner, Saver, SharedResources},
    certificates::{Feeds, Keeper, Vault},
    control::{Client, Line, Published, SharedControlStatus, TrustReporter},
    drain::Phase,
    enrol::{Enrolment, Handed, Registry, RegistrySettings},
    kernel::{Kernel, NetworkNamespace},
    path::WorkerHandle,
    steer::{Records, SharedClasses, Steering},
    takeover::{self, About, Beginning, Candidate, Holdings, Incumbent, Lock, Predecessors, Taken, Witnesses},
    view::Demand,
};

use super::{
    Agent, AgentError,
    kubernetes::{OnKubernetes, Outfit},
    precheck,
    running::{Groups, Running},
    shared::Shared,
};

/// Questions to control that wait; more make a connection wait for its turn.
const DEMANDS: usize = 256;
/// Of the slots that the kernel holds: a change needs room for the old and the new ones of a service.
const SLOT_SHARE: usize = 2;

/// Who is in charge while this agent starts.
enum Standing {
    /// This one.
    Alone(Lock),
    /// Another one.
    Beside(Box<Candidate>),
}

impl Standing {
    /// This agent's programs are on the hooks: it is in charge when the other one has let go.
    async fn becomes(&mut self, predecessors: &Predecessors) -> Result<Lock, AgentError> {
        match self {
            Self::Alone(lock) => Ok(lock.clone()),
            Self::Beside(candidate) => Ok(candidate.done(predecessors).await?),
        }
    }
}

/// What there is before any pod is taken up.
struct Prepared {
    shared: Shared,
    workers: Arc<[WorkerHandle]>,
    vault: Vault,
    saver: Saver,
    resources: SharedResources,
    control: SharedControlStatus,
    line: watch::Receiver<Option<Line>>,
    sockets: Sockets,
}

/// The pods, and what is done for them.
struct Pods {
    registry: Registry,
    enrolment: Enrolment,
    steering: Steering,
}

impl Agent {
    /// Takes charge, from nobody or from the agent that runs.
    pub(super) async fn start(&self, groups: &Groups) -> Result<Running, AgentError> {
        let begun = Instant::now();
        let outfit = Outfit::of(&self.config).await?;
        let mut standing = match takeover::begin(&self.config.run_dir, &About::of(&self.config)).await? {
            Beginning::Alone(lock) => Standing::Alone(lock),
            Beginning::Beside(candidate) => {
                tracing::info!(version = candidate.version(), "an agent runs: taking over from it");
                Standing::Beside(candidate)
            }
        };
        let taken = self.take_charge(&mut standing, groups).await;
        let (prepared, pods, lock) = match taken {
            Ok(taken) => taken,
            Err(error) => return Err(give_up(standing, error).await),
        };
        let served = pods.registry.served();
        let running = self.run_all(prepared, pods, lock, outfit, groups).await?;
        tracing::info!(pods = served, took_ms = begun.elapsed().as_millis() as u64, "in charge");
        Ok(running)
    }

    /// Until the last step nothing has changed for users, and everything is taken back when one fails.
    async fn take_charge(
        &self,
        standing: &mut Standing,
        groups: &Groups,
    ) -> Result<(Prepared, Pods, Lock), AgentError> {
        let settings = &self.config.kernel;
        let kernel = Arc::new(Kernel::prepare(settings).inspect_err(|_| precheck::log(settings))?);
        let taken = self.take_charge_of(&kernel, standing, groups).await;
        taken.inspect_err(|_| kernel.abandon())
    }

    async fn take_charge_of(
        &self,
        kernel: &Arc<Kernel>,
        standing: &mut Standing,
        groups: &Groups,
    ) -> Result<(Prepared, Pods, Lock), AgentError> {
        let prepared = self.prepare(kernel, standing, groups)?;
        let handed = self.prove(standing, &prepared).await?;
        let is_proven = handed.is_some();
        let mut pods = self.take_pods(&prepared, handed).await?;
        pods.steering.prime()?;
        if is_proven {
            kernel.beat_all()?;
        }
        let attached = kernel.attach()?;
        let lock = standing.becomes(&prepared.shared.predecessors).await?;
        attached.keep();
        Ok((prepared, pods, lock))
    }

    fn prepare(&self, kernel: &Arc<Kernel>, standing: &mut Standing, groups: &Groups) -> Result<Prepared, AgentError> {
        crate::memory::give_back();
        let vault = Vault::open(&self.config.run_dir)?;
        let shared = Shared::new(kernel.clone(), &self.config)?;
        let (demand, demands) = Demand::channel(DEMANDS);
        let workers = shared.start_workers(&self.config, demand)?;
        let (line, line_changes) = watch::channel(None);
        let published = Published { view: shared.view.clone(), changes: shared.view_changes.clone() };
        let reporter =
            TrustReporter::new(shared.wallet.clone(), shared.wallet_changes.subscribe(), groups.owned.clone());
        let client = Client::new(self.config.control.clone(), &self.config.node, published, demands, line);
        let mut client = client.reporting(reporter);
        let mut saver =
            Saver::new(self.config.cached_view(), self.owner(), client.resources(), shared.view_changes.subscribe());
        let sockets = match standing {
            Standing::Alone(_) => {
                recall(&mut saver, &mut client);
                admin::bind(&self.config, Vec::new())?
            }
            Standing::Beside(candidate) => {
                inherit(candidate, &mut client, &self.owner());
                let mut sockets = candidate.take_sockets();
                if candidate.namespace() != NetworkNamespace::current()?.cookie() {
                    sockets.retain(|(name, _)| name.is_path());
                }
                admin::bind(&self.config, sockets)?
            }
        };
        let (resources, control) = (client.resources(), client.status());
        groups.spawn(&groups.drain, client.run());
        Ok(Prepared { shared, workers, vault, saver, resources, control, line: line_changes, sockets })
    }

    fn owner(&self) -> Owner {
        Owner { node: self.config.node.clone(), control: self.config.control.uri.clone() }
    }

    /// Beside another agent: proves to be as well off as that one, and takes its pods.
    async fn prove(&self, standing: &mut Standing, prepared: &Prepared) -> Result<Option<Handed>, AgentError> {
        let Standing::Beside(candidate) = standing else { return Ok(None) };
        let own = Witnesses {
            view: &prepared.shared.view,
            control: &prepared.control,
            vault: &prepared.vault,
            workers: &prepared.workers,
        };
        takeover::self_test(candidate, &own).await.map_err(takeover::TakeOverError::from)?;
        tracing::info!("self-test passed");
        let Taken { handed, lock } = candidate.take(prepared.sockets.shares_pages).await?;
        if let Some(lock) = lock {
            *standing = Standing::Alone(lock);
        }
        Ok(Some(handed))
    }

    async fn take_pods(&self, prepared: &Prepared, handed: Option<Handed>) -> Result<Pods, AgentError> {
        let shared = &prepared.shared;
        let classes = SharedClasses::default();
        let cgroup_root = self.config.kernel.cgroup_root.clone();
        let settings = RegistrySettings { cgroup_root, record: self.config.run_dir.join("pods.json") };
        let wiring = shared.wiring(&prepared.workers, &classes);
        let (registry, enrolment) = Registry::start(settings, wiring, handed).await?;
        let view = (shared.view.clone(), shared.view_changes.subscribe());
        let pods = (shared.pods.clone(), shared.pod_changes.subscribe());
        let slots = self.config.kernel.map_sizes.backends as usize / SLOT_SHARE;
        let tables = (classes, shared.frozen.subscribe());
        let steering = Steering::new(shared.kernel.clone(), view, pods, tables, slots, prepared.control.clone())?;
        shared.telemetry.register(|registry| steering.register(registry));
        Ok(Pods { registry, enrolment, steering })
    }

    /// This agent is in charge: everything runs from here on.
    async fn run_all(
        &self,
        prepared: Prepared,
        pods: Pods,
        lock: Lock,
        outfit: Option<Outfit>,
        groups: &Groups,
    ) -> Result<Running, AgentError> {
        let Pods { mut registry, enrolment, steering } = pods;
        let (owned, drain) = (&groups.owned, &groups.drain);
        let (wanted, wanted_changes) = watch::channel(None);
        let holdings = self.holdings(&prepared, enrolment.clone())?;
        let Prepared { shared, workers, vault, saver, control, line, sockets, .. } = prepared;
        let view_changes = shared.view_changes.subscribe();
        let feeds = Feeds { control: control.clone(), line, wanted: wanted_changes, view_changes };
        let pod_changes = shared.pod_changes.subscribe();
        let on_kubernetes = outfit.map(|outfit| outfit.start(&self.config, enrolment.clone(), pod_changes, groups));
        let keeper = Keeper::new((shared.wallet.clone(), shared.wallet_changes.clone()), vault, feeds);
        let node = Arc::new(Node {
            config: self.config.clone(),
            started: Instant::now(),
            kernel: shared.kernel.clone(),
            workers,
            view: shared.view.clone(),
            pods: shared.pods.clone(),
            older: registry.older(),
            wallet: shared.wallet.clone(),
            certificates: keeper.status(),
            control,
            cache: saver.status(),
            telemetry: shared.telemetry.clone(),
            log: self.log.clone(),
            drain: drain.clone(),
            outside: on_kubernetes.as_ref().map(OnKubernetes::outside).unwrap_or_default(),
            installer: on_kubernetes.as_ref().and_then(|there| there.installer.clone()),
        });
        groups.spawn(drain, shared.join_changes());
        groups.spawn(owned, shared.confirm_identities(wanted));
        groups.spawn(owned, keeper.run());
        registry.accept().await?;
        groups.spawn(owned, registry.run());
        groups.spawn(owned, steering.run());
        groups.spawn(drain, shared.forget_start_up());
        let known = (shared.view.clone(), shared.pods.clone());
        let records = Records::new(&shared.kernel, known, shared.telemetry.clone(), shared.unseen.clone())?;
        let closing = owned.clone();
        owned.spawn(records.run(async move { closing.reached(Phase::Closing).await }));
        owned.spawn(saver.run(groups.ending()));
        let runtimes = Runtimes { enrolment, cluster: on_kubernetes.as_ref().map(|there| there.cluster.clone()) };
        let listener = admin::serve(sockets, node.clone(), runtimes, drain, &groups.ends);
        // The View may be older than those who follow it.
        shared.changes.send_modify(|generation| *generation += 1);
        let incumbent = Incumbent::new(listener, holdings);
        Ok(Running { node, incumbent, lock, predecessors: shared.predecessors, on_kubernetes })
    }

    fn holdings(&self, prepared: &Prepared, enrolment: Enrolment) -> Result<Holdings, AgentError> {
        let Prepared { shared, resources, control, sockets, .. } = prepared;
        let system = |source| AgentError::System { action: "keep the agent's listeners for a successor", source };
        Ok(Holdings {
            about: About::of(&self.config),
            sockets: sockets.share().map_err(system)?,
            namespace: NetworkNamespace::current()?.cookie(),
            kernel: shared.kernel.clone(),
            enrolment,
            view: shared.view.clone(),
            resources: resources.clone(),
            owner: self.owner(),
            wallet: shared.wallet.clone(),
            control: control.clone(),
            frozen: shared.frozen.clone(),
        })
    }
}

/// The agent that runs hears why it stays in charge.
async fn give_up(standing: Standing, error: AgentError) -> AgentError {
    let Standing::Beside(mut candidate) = standing else { return error };
    candidate.fail(crate::control::causes(&error)).await;
    AgentError::StaysInCharge { version: candidate.version().to_owned(), source: Box::new(error) }
}

/// Starts with the View of the agent that runs.
fn inherit(candidate: &Candidate, client: &mut Client, owner: &Owner) {
    let Some(image) = candidate.view() else { return tracing::info!("the agent that runs has no View") };
    let restored = cache::read(image, Path::new("the View of the agent that runs"), owner)
        .and_then(|contents| client.restore(&contents));
    if let Err(error) = restored {
        tracing::warn!(%error, "the View of the agent that runs cannot be used: waiting for control");
    }
}

/// Starts with the View of before a restart. Without one the agent waits for control, and refuses.
fn recall(saver: &mut Saver, client: &mut Client) {
    match saver.load(|contents| client.restore(contents)) {
        Ok(Some(saved)) => {
            let age_s = saved.elapsed().unwrap_or_default().as_secs();
            tracing::info!(age_s, "the View of before the restart is in force until control answers");
        }
        Ok(None) => tracing::info!("no View is kept on disk: waiting for control"),
        Err(error) => tracing::error!(%error, "the View on disk is refused: waiting for control"),
    }
}
