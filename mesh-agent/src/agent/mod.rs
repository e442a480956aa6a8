//! The order in which the agent's parts start and stop, and what each is given of the others.
//!
//! ```text
//! start: lock -> kernel -> workers -> pods of before -> admin socket -> certificates, steering -> View of before -> control ->
//!        metrics, readiness
//! stop:  not ready -> no new connection -> drain -> what still runs is cut; steering stays pinned and refuses
//! ```

mod precheck;
mod shared;

pub use precheck::check;

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

use crate::{
    admin::{self, LogControl, Node},
    cache::{Owner, Saver},
    certificates::{Feeds, Keeper, Vault, VaultError},
    config::{Config, DetachArguments},
    control::{Client, Published},
    drain::{Drain, Phase},
    enrol::{self, Registry, RegistrySettings},
    kernel::{self, Kernel, KernelError},
    path::{WorkerError, WorkerHandle},
    privileges::{self, PrivilegeError},
    steer::{Records, SharedClasses, Steering},
    view::Demand,
};

use self::shared::Shared;

/// Questions to control that wait; more make a connection wait for its turn.
const DEMANDS: usize = 256;
/// Of the slots that the kernel holds: a change needs room for the old and the new ones of a service.
const SLOT_SHARE: usize = 2;

/// Why the agent does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A file or directory of the run directory.
    #[error("{action} {}: {source}", path.display())]
    RunDirectory {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Another agent works with the same run directory.
    #[error("{} is locked by another agent, which runs; stop that one first", .0.display())]
    Running(PathBuf),
    /// Programs and maps.
    #[error("{}", crate::control::causes(.0))]
    Kernel(#[from] KernelError),
    /// Limits of the process.
    #[error(transparent)]
    Descriptors(#[from] enrol::DescriptorError),
    /// Pods of before the restart.
    #[error(transparent)]
    Enrolment(#[from] enrol::NodeError),
    /// Rights that the agent does not need.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// Where keys are kept.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The agent's own listeners.
    #[error(transparent)]
    Admin(#[from] admin::AdminError),
    /// The data path's threads.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A runtime or a signal handler.
    #[error("{action}: {source}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// The agent, ready to run.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    log: LogControl,
    /// Held until the process ends.
    _lock: fs::File,
}

impl Agent {
    /// Takes the run directory.
    ///
    /// # Errors
    /// It cannot be made, or another agent has it.
    pub fn new(config: Config, log: LogControl) -> Result<Self, AgentError> {
        hide_memory()?;
        let lock = lock(&config.run_dir)?;
        Ok(Self { config, log, _lock: lock })
    }

    /// Runs until SIGTERM or SIGINT. The control side is on this thread.
    ///
    /// # Errors
    /// Something that the agent cannot start without.
    pub fn run(self) -> Result<(), AgentError> {
        let limit = enrol::raise_limit()?;
        privileges::shed()?;
        let system = |action| move |source| AgentError::System { action, source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("start the control runtime"))?;
        tracing::info!(node = self.config.node, version = env!("CARGO_PKG_VERSION"), nofile = limit, "agent starts");
        runtime.block_on(self.serve())
    }

    async fn serve(self) -> Result<(), AgentError> {
        let system = |action| move |source| AgentError::System { action, source };
        let mut terminate = signal(SignalKind::terminate()).map_err(system("listen for SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system("listen for SIGINT"))?;
        let drain = Drain::default();
        let (node, workers) = self.start(&drain).await?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!(pods = node.pods.load().by_uid.len(), "agent stops");
        drain.advance(Phase::Draining);
        self.drain_workers(&workers).await;
        drain.advance(Phase::Closing);
        drain.joined().await;
        node.telemetry.flush_log();
        tracing::info!("agent stopped; steering stays in force and refuses until the next agent");
        Ok(())
    }

    async fn start(&self, drain: &Drain) -> Result<(Arc<Node>, Arc<[WorkerHandle]>), AgentError> {
        let settings = &self.config.kernel;
        let kernel = Kernel::start(settings).inspect_err(|_| precheck::log(settings))?;
        crate::memory::give_back();
        let vault = Vault::open(&self.config.run_dir)?;
        let shared = Shared::new(Arc::new(kernel), &self.config)?;
        let (demand, demands) = Demand::channel(DEMANDS);
        let workers = shared.start_workers(&self.config, demand)?;
        let classes = SharedClasses::default();
        let (cgroup_root, record) = (settings.cgroup_root.clone(), self.config.run_dir.join("pods.json"));
        let settings = RegistrySettings { cgroup_root, record };
        let (registry, enrolment) = Registry::start(settings, shared.wiring(&workers, &classes)).await?;
        let (line, line_changes) = watch::channel(None);
        let published = Published { view: shared.view.clone(), changes: shared.view_changes.clone() };
        let mut client = Client::new(self.config.control.clone(), &self.config.node, published, demands, line);
        let mut saver = self.saver(&client, &shared);
        let (wanted, wanted_changes) = watch::channel(None);
        let feeds = Feeds {
            control: client.status(),
            line: line_changes,
            wanted: wanted_changes,
            view_changes: shared.view_changes.subscribe(),
        };
        let keeper = Keeper::new((shared.wallet.clone(), shared.wallet_changes.clone()), vault, feeds);
        let node = Arc::new(Node {
            config: self.config.clone(),
            started: Instant::now(),
            kernel: shared.kernel.clone(),
            workers: workers.clone(),
            view: shared.view.clone(),
            pods: shared.pods.clone(),
            older: registry.older(),
            wallet: shared.wallet.clone(),
            certificates: keeper.status(),
            control: client.status(),
            cache: saver.status(),
            telemetry: shared.telemetry.clone(),
            log: self.log.clone(),
            drain: drain.clone(),
        });
        let steering = self.steering(&shared, classes)?;
        shared.telemetry.register(|registry| steering.register(registry));
        let sockets = admin::bind(&self.config)?;
        self.spawn(drain, registry.run());
        self.spawn(drain, keeper.run());
        self.spawn(drain, steering.run());
        self.spawn(drain, shared.confirm_identities(wanted));
        self.spawn(drain, shared.join_changes());
        self.spawn(drain, shared.forget_start_up());
        // All who follow the View are there: it wakes them.
        recall(&mut saver, &mut client);
        self.spawn(drain, client.run());
        let closing = drain.clone();
        drain.spawn(saver.run(async move { closing.reached(Phase::Closing).await }));
        let known = (shared.view.clone(), shared.pods.clone());
        let records = Records::new(&shared.kernel, known, shared.telemetry.clone(), shared.unseen.clone())?;
        self.spawn(drain, records.run());
        admin::serve(sockets, node.clone(), enrolment, drain);
        Ok((node, workers))
    }

    fn steering(&self, shared: &Shared, classes: SharedClasses) -> Result<Steering, AgentError> {
        let view = (shared.view.clone(), shared.view_changes.subscribe());
        let pods = (shared.pods.clone(), shared.pod_changes.subscribe());
        let slots = self.config.kernel.map_sizes.backends as usize / SLOT_SHARE;
        Ok(Steering::new(shared.kernel.clone(), view, pods, classes, slots)?)
    }

    fn saver(&self, client: &Client, shared: &Shared) -> Saver {
        let owner = Owner { node: self.config.node.clone(), control: self.config.control.uri.clone() };
        Saver::new(self.config.cached_view(), owner, client.resources(), shared.view_changes.subscribe())
    }

    /// All at once: the time is the same for each.
    async fn drain_workers(&self, workers: &Arc<[WorkerHandle]>) {
        let mut draining = JoinSet::new();
        for number in 0..workers.len() {
            let (workers, time) = (workers.clone(), self.config.drain_time);
            draining.spawn(async move { workers[number].drain(time).await });
        }
        while let Some(ended) = draining.join_next().await {
            if let Ok(Err(error)) = ended {
                tracing::warn!(%error, "worker did not drain");
            }
        }
    }

    /// Until the agent closes: each of these runs for ever.
    fn spawn(&self, drain: &Drain, task: impl Future<Output = ()> + Send + 'static) {
        let closing = drain.clone();
        drain.spawn(async move {
            tokio::select! {
                () = task => {}
                () = closing.reached(Phase::Closing) => {}
            }
        });
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

/// No core dump, and no other process's look, except root's: there are keys in it.
fn hide_memory() -> Result<(), AgentError> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| AgentError::System { action: "forbid core dumps", source: error.into() })
}

/// One agent at a time in a run directory; the lock goes with the process.
fn lock(run_dir: &Path) -> Result<fs::File, AgentError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| AgentError::RunDirectory { action, path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(run_dir).map_err(failed("create", run_dir))?;
    let path = run_dir.join("lock");
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(failed("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(AgentError::Running(run_dir.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(AgentError::RunDirectory { action: "lock", path, source }),
    }
}

/// Removes all programs, maps, pins and keys, and puts back what pods' namespaces had: plain networking. Says how the node
/// stands then, as `mesh-agent check` does.
///
/// # Errors
/// An agent still runs, or something could not be removed.
pub fn detach(arguments: &DetachArguments) -> Result<(), AgentError> {
    let _lock = lock(&arguments.run_dir)?;
    Kernel::detach(&arguments.bpffs)?;
    enrol::forget_all(&arguments.run_dir.join("pods.json"))?;
    Vault::empty(&arguments.run_dir)?;
    let (bpffs, run_dir) = (arguments.bpffs.display(), arguments.run_dir.display());
    println!("detached: no program, map or pin is left in {bpffs}, no pod and no key in {run_dir}; the node now:");
    for fact in kernel::precheck(&arguments.cgroup_root, &arguments.bpffs) {
        println!("{}: {}", fact.name, fact.text);
    }
    Ok(())
}
