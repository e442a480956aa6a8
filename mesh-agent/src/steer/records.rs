//! Reads what the hooks tell of connections that the agent did not carry, and passes it on to metrics and access log.
//! Connections through the agent are told by the path itself and skipped here.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};

use crate::{
    enrol::{PodTable, SharedPods},
    kernel::{Counter, Events, FlowFlags, Kernel, KernelError, Record, RecordKind},
    path::Flag,
    telemetry::{Reporter, Telemetry},
    view::{SharedView, View},
};

use super::{closed::Closed, witness};

/// Closed connections do not wake the reader: it looks this often.
const LOOK: Duration = Duration::from_millis(250);

/// While a look finds [`MANY`], the next one follows soon: thousands of lines at once would hold a processor for
/// milliseconds, and who works on it would be late.
const SOON: Duration = Duration::from_millis(20);
const MANY: usize = 256;

/// The reader; [`Records::run`] it on the control thread.
#[derive(Debug)]
pub struct Records {
    events: Events,
    view: SharedView,
    pods: SharedPods,
    telemetry: Arc<Telemetry>,
    unseen: Arc<Notify>,
    closed: Closed,
}

impl Records {
    /// Opens the kernel's buffer. `unseen` is told of each handshake that was under way at its pod's enrolment.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub fn new(
        kernel: &Kernel,
        (view, pods): (SharedView, SharedPods),
        telemetry: Arc<Telemetry>,
        unseen: Arc<Notify>,
    ) -> Result<Self, KernelError> {
        Ok(Self { events: kernel.events()?, view, pods, telemetry, unseen, closed: Closed::default() })
    }

    /// Reads until `closing`, and then once more.
    pub async fn run(mut self, closing: impl Future<Output = ()>) {
        let mut pause = LOOK;
        let wakeups = wakeups(&self.events);
        if let Err(error) = &wakeups {
            tracing::warn!(%error, "refusals of the kernel are shown up to {} ms late", LOOK.as_millis());
        }
        let mut closing = std::pin::pin!(closing);
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = &mut closing => {
                    self.read();
                    return;
                }
                () = readable(wakeups.as_ref().ok()) => {}
            }
            pause = if self.read() < MANY { LOOK } else { SOON };
        }
    }

    /// How many records there were.
    fn read(&mut self) -> usize {
        // Without a View nobody has a name: the records wait for the first one, and what does not fit is counted as lost.
        let Some(view) = self.view.load_full() else { return 0 };
        let pods = self.pods.load_full();
        let Self { events, telemetry, unseen, closed, .. } = self;
        closed.follow(&view, &pods);
        let mut count = 0;
        events.drain(|record| {
            count += 1;
            match record.kind() {
                Some(RecordKind::Established) if record.flow.flags().has(FlowFlags::BEFORE_ENROLMENT) => {
                    unseen.notify_one();
                }
                Some(RecordKind::Closed) if record.flow.tells() => closed.tell(telemetry, record),
                Some(RecordKind::Refused) => refused(&view, &pods, telemetry, record),
                _ => {}
            }
        });
        closed.flush(telemetry);
        count
    }
}

/// The buffer's descriptor under a number of its own, so that its owner stays free to be read from.
fn wakeups(events: &Events) -> std::io::Result<AsyncFd<OwnedFd>> {
    let descriptor = events.as_fd().try_clone_to_owned()?;
    // SAFETY: it owns its descriptor until the AsyncFd is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(registered?)
}

async fn readable(wakeups: Option<&AsyncFd<OwnedFd>>) {
    match wakeups {
        Some(wakeups) => match wakeups.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

fn refused(view: &View, pods: &PodTable, telemetry: &Telemetry, record: &Record) {
    let Some(mut witness) = witness::tell(view, pods, &record.flow, record.at_ns) else { return };
    let Some(reason) = Counter::from_number(record.reason) else { return };
    witness.record.flag = flag(reason);
    witness.record.error = format!("refused in the kernel: {}", reason.name());
    witness.record.path = "denied";
    if witness.record.flag != Flag::Deny {
        // Not by policy, whatever policy says.
        (witness.record.verdict, witness.record.policy) = (None, None);
    }
    let own = if witness.record.direction == "outbound" { Reporter::Source } else { Reporter::Destination };
    let series = telemetry.direct_series(&witness.record, [(own, witness.own.id)]);
    telemetry.record_direct(witness.record, &series);
}

fn flag(reason: Counter) -> Flag {
    match reason {
        Counter::OutboundDenied | Counter::InboundDenied => Flag::Deny,
        Counter::OutboundAway | Counter::OutboundStale | Counter::InboundAway | Counter::InboundStale => Flag::Starting,
        Counter::OutboundOwnPort | Counter::InboundOwnPort => Flag::OwnPort,
        Counter::NoTicket | Counter::NestedNamespace => Flag::IdentityError,
        Counter::InboundForeignAddress => Flag::UnknownDestination,
        Counter::OutboundNoFamily => Flag::NoEndpoint,
        _ => Flag::Reset,
    }
}
