//! The order in which the agent's parts start and stop, and what each is given of the others.
//!
//! ```text
//! start: lock, or an agent to take over from -> kernel (nothing attached) -> workers -> View of before -> control
//!        -> self-test, if another is in charge -> pods of before -> programs on the hooks -> in charge: accept
//!        -> certificates, steering, records, admin socket, metrics, readiness
//! stop:  not ready -> no new connection -> drain -> what still runs is cut; steering stays pinned and refuses
//! taken over: nothing that outlives the process is touched any more -> as above, under the programs of the next
//! ```

mod kubernetes;
mod precheck;
mod running;
mod shared;
mod start;

pub use precheck::check;

use std::sync::Arc;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};

use crate::{
    admin::{self, LogControl},
    certificates::VaultError,
    cni::{self, InstallerError},
    config::{AfterTakeOver, Config, DetachArguments},
    drain::{self, Phase},
    enrol,
    kernel::{self, KernelError},
    kubernetes::ApiError,
    path::{WorkerError, WorkerHandle},
    privileges::{self, PrivilegeError},
    takeover::{self, InCharge, Lock, LockError, TakeOverError},
};

use self::running::{Groups, Running};

/// Why the agent does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The run directory, or who is in charge of it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The agent that runs was not followed.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// As above, whatever failed.
    #[error("not taken over from the agent that runs (version {version}), which stays in charge: {source}")]
    StaysInCharge {
        /// Of the agent that runs.
        version: String,
        /// What this one lacks.
        source: Box<Self>,
    },
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
    /// The API server's credentials.
    #[error(transparent)]
    Kubernetes(#[from] ApiError),
    /// The CNI plug-in.
    #[error("the CNI plug-in: {0}")]
    Cni(#[from] InstallerError),
    /// A part that runs as long as the agent is gone.
    #[error("{0}, and the agent does not work without it: see the line above; it ends in order, to be started again")]
    Broken(#[from] drain::Panicked),
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
}

impl Agent {
    /// Nothing is taken or changed yet.
    ///
    /// # Errors
    /// Core dumps cannot be forbidden.
    pub fn new(config: Config, log: LogControl) -> Result<Self, AgentError> {
        hide_memory()?;
        Ok(Self { config, log })
    }

    /// Runs until SIGTERM or SIGINT, or until another agent has taken over. The control side is on this thread.
    ///
    /// # Errors
    /// Something that the agent cannot start without.
    pub fn run(self) -> Result<(), AgentError> {
        let limit = enrol::raise_limit()?;
        privileges::shed()?;
        let system = |action| move |source| AgentError::System { action, source };
        enrol::open_settings().map_err(system("make /proc/sys writable, for settings of pods' network namespaces"))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("start the control runtime"))?;
        tracing::info!(node = self.config.node, version = env!("CARGO_PKG_VERSION"), nofile = limit, "agent starts");
        runtime.block_on(self.serve())
    }

    async fn serve(self) -> Result<(), AgentError> {
        let mut signals = Signals::new()?;
        let groups = Groups::default();
        let running = self.start(&groups).await?;
        let (next, result) = tokio::select! {
            () = signals.end() => (None, Ok(())),
            next = running.incumbent.handed_over() => (Some(next), Ok(())),
            () = groups.broken.notified() => (None, Err(drain::Panicked.into())),
        };
        let (after, telemetry) = (self.config.after_take_over, running.node.telemetry.clone());
        let is_followed = next.is_some();
        match next {
            None => self.stop(running, &groups).await,
            Some(next) => self.let_go(running, &groups, next).await,
        }
        groups.drain.advance(Phase::Closing);
        groups.close();
        groups.owned.joined().await;
        groups.drain.joined().await;
        telemetry.flush_log();
        if is_followed && after == AfterTakeOver::Wait {
            tracing::info!("drained; this process holds nothing and waits for SIGTERM");
            signals.end().await;
        }
        tracing::info!("agent stopped");
        result
    }

    /// Lets connections end; steering stays in force and refuses until the next agent.
    async fn stop(&self, running: Running, groups: &Groups) {
        tracing::info!(pods = running.node.pods.load().by_uid.len(), "agent stops");
        let Running { node, incumbent, lock, on_kubernetes, .. } = running;
        let leaving = match &on_kubernetes {
            Some(there) if there.cluster.is_removed().await => Some(there),
            _ => None,
        };
        drop(incumbent);
        if let Some(there) = leaving {
            there.leave().await;
        }
        groups.drain.advance(Phase::Draining);
        finish(self.drain(&node.workers)).await;
        groups.drain.advance(Phase::Closing);
        match leaving {
            None => tracing::info!("steering stays in force and refuses until the next agent"),
            Some(_) => self.leave_nothing(groups).await,
        }
        drop(lock);
    }

    /// As `mesh-agent detach`, and the View on disk.
    async fn leave_nothing(&self, groups: &Groups) {
        // Nothing is written any more.
        groups.close();
        groups.owned.joined().await;
        groups.drain.joined().await;
        let removed = kubernetes::remove_all(&self.config.kernel.bpffs, &self.config.run_dir);
        // Nobody answers there any more; the View may never have been written.
        for file in [self.config.admin_socket(), takeover::socket(&self.config.run_dir), self.config.cached_view()] {
            std::fs::remove_file(file).ok();
        }
        match removed {
            Ok(()) => tracing::info!("detached: nothing of the mesh is left on this node"),
            Err(error) => tracing::error!(%error, "something of the mesh is left on this node: mesh-agent detach"),
        }
    }

    /// Another agent is in charge: first nothing that outlives this process is touched any more, then it hears so.
    async fn let_go(&self, running: Running, groups: &Groups, mut next: InCharge) {
        let Running { node, incumbent, lock, predecessors, .. } = running;
        groups.owned.advance(Phase::Closing);
        groups.owned.joined().await;
        groups.ends.admin.advance(Phase::Closing);
        if next.shares_pages {
            groups.ends.pages.advance(Phase::Closing);
        }
        groups.drain.advance(Phase::Draining);
        let draining = self.drain(&node.workers);
        // The sockets that it shares with the next one.
        drop(incumbent);
        drop(lock);
        if let Err(error) = next.yours(&predecessors).await {
            tracing::error!(%error, "the agent that took over has ended: start one");
        }
        let drain_s = self.config.drain_time.as_secs_f32();
        tracing::info!(pods = node.pods.load().by_uid.len(), drain_s, "another agent has taken over: draining");
        groups.spawn(&groups.drain, next.follow(node.workers.clone(), node.pods.clone()));
        finish(draining).await;
    }

    /// All at once: the time is the same for each.
    fn drain(&self, workers: &Arc<[WorkerHandle]>) -> JoinSet<Result<(), WorkerError>> {
        let mut draining = JoinSet::new();
        for number in 0..workers.len() {
            let (workers, time) = (workers.clone(), self.config.drain_time);
            draining.spawn(async move { workers[number].drain(time).await });
        }
        draining
    }
}

async fn finish(mut draining: JoinSet<Result<(), WorkerError>>) {
    while let Some(ended) = draining.join_next().await {
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "worker did not drain");
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, AgentError> {
        let system = |action| move |source| AgentError::System { action, source };
        let terminate = signal(SignalKind::terminate()).map_err(system("listen for SIGTERM"))?;
        let interrupt = signal(SignalKind::interrupt()).map_err(system("listen for SIGINT"))?;
        Ok(Self { terminate, interrupt })
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// No core dump, and no other process's look, except root's: there are keys in it.
fn hide_memory() -> Result<(), AgentError> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| AgentError::System { action: "forbid core dumps", source: error.into() })
}

/// Removes all programs, maps, pins and keys, and puts back what pods' namespaces had: plain networking. Says how the node
/// stands then, as `mesh-agent check` does.
///
/// # Errors
/// An agent still runs, or something could not be removed.
pub fn detach(arguments: &DetachArguments) -> Result<(), AgentError> {
    let _lock = Lock::take(&arguments.run_dir)?;
    if let (Some(conf_dir), Some(bin_dir)) = (&arguments.cni_conf_dir, &arguments.cni_bin_dir) {
        cni::remove(conf_dir, bin_dir)?;
    }
    kubernetes::remove_all(&arguments.bpffs, &arguments.run_dir)?;
    let (bpffs, run_dir) = (arguments.bpffs.display(), arguments.run_dir.display());
    println!("detached: no program, map or pin is left in {bpffs}, no pod and no key in {run_dir}; the node now:");
    for fact in kernel::precheck(&arguments.cgroup_root, &arguments.bpffs) {
        println!("{}: {}", fact.name, fact.text);
    }
    Ok(())
}
