//! What became of a connection: opened at accept, told by the stages, recorded exactly once, at the latest when it is
//! dropped. It alone writes the connection's metrics and its access-log line, so that they agree.

use std::{future::poll_fn, net::SocketAddr, pin::pin, rc::Rc, sync::Arc, task::Poll};

use super::{
    authorize::{Decision, Permit},
    connect::Upstream,
    failure::{Cut, Failure},
    live::{Judged, Live},
    local::{Local, PodState},
    origin::Origin,
    resolve::{NextHop, Route},
};
use crate::{
    drain::Phase,
    enrol::Pod,
    hbone::Peer,
    telemetry::{ConnectionRecord, Party, Reporter, Security},
};

/// One connection's.
pub(super) struct Outcome {
    pub live: Rc<Live>,
    worker: Rc<Local>,
    direction: Direction,
    is_closed: bool,
}

/// Seen from the pod of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Outbound,
    Inbound,
}

impl Outcome {
    /// A connection has arrived at a pod's listener.
    pub fn open(worker: &Rc<Local>, pod: &Arc<Pod>, direction: Direction, peer: SocketAddr) -> Self {
        let label = match direction {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        };
        let mut record = ConnectionRecord { pod: pod.full_name(), ..ConnectionRecord::new(label) };
        record.source.address = Some(peer);
        Self { live: worker.live.insert(pod.clone(), record), worker: worker.clone(), direction, is_closed: false }
    }

    /// What was dialled: all that is known of a connection that fails before it says more.
    pub fn dialled(&self, destination: SocketAddr) {
        let mut record = self.live.record.borrow_mut();
        record.original_destination = Some(destination);
        if self.direction == Direction::Inbound {
            record.destination.address = Some(destination);
            let view = self.worker.view();
            record.destination.workload = view.and_then(|view| self.live.pod.workload(&view).cloned());
        }
    }

    /// Where it comes from and wants to go.
    pub fn origin(&self, origin: &Origin, source: Party) {
        let mut record = self.live.record.borrow_mut();
        record.source = source;
        record.original_destination = Some(origin.destination);
    }

    /// It came through a tunnel.
    pub fn tunnelled(&self, peer: &Peer) {
        let mut record = self.live.record.borrow_mut();
        (record.path, record.security, record.cipher) = ("hbone", Security::MutualTls, peer.cipher);
        record.source.identity = Some(peer.identity.clone());
    }

    /// It came in the clear, and is not refused for that.
    pub fn in_the_clear(&self) {
        let mut record = self.live.record.borrow_mut();
        (record.path, record.plaintext_reason) = ("plaintext", "permissive");
        self.worker.context.telemetry.count_plaintext_inbound();
    }

    /// Where it goes.
    pub fn routed(&self, route: &Route) {
        let mut record = self.live.record.borrow_mut();
        record.service = route.service.clone();
        record.destination.workload = route.next_hop.workload().cloned();
        record.destination.identity = None;
        record.destination.address = Some(route.next_hop.address());
        if self.direction == Direction::Outbound {
            record.path = route.next_hop.path();
        }
        match &route.next_hop {
            NextHop::Local { workload, .. } => {
                // The kernel proves who is at the other end of a socket in the pod's namespace.
                record.destination.identity = Some(workload.identity.clone());
                if self.direction == Direction::Outbound {
                    record.security = Security::NodeLocal;
                }
            }
            NextHop::Hbone { .. } => record.security = Security::MutualTls,
            NextHop::Plaintext { reason, .. } => {
                record.plaintext_reason = reason.label();
                record.security = Security::None;
            }
        }
    }

    /// It may go on; from here on new Views are asked again.
    pub fn permitted(&self, permit: &Permit, origin: &Origin) {
        if let Some(decision) = permit.decision() {
            self.decided(decision);
            if let NextHop::Local { pod, address, .. } = &permit.route().next_hop {
                let judged = Judged { source: origin.source.clone(), pod: pod.clone(), address: *address };
                *self.live.judged.borrow_mut() = Some(judged);
            }
        }
    }

    fn decided(&self, decision: &Decision) {
        let mut record = self.live.record.borrow_mut();
        record.verdict = Some(decision.verdict);
        record.policy = decision.policy.clone();
        record.dry_run = decision.dry_run.clone();
    }

    /// The next hop is reached: the connection counts as open.
    pub fn connected(&self, route: &Route, upstream: &Upstream) {
        if let Some(peer) = &upstream.peer {
            let mut record = self.live.record.borrow_mut();
            record.destination.identity = Some(peer.identity.clone());
            record.cipher = peer.cipher;
        }
        if let NextHop::Plaintext { reason, .. } = &route.next_hop {
            self.worker.context.telemetry.count_plaintext_outbound(*reason);
        }
        self.count_open();
    }

    fn count_open(&self) {
        let mut series = self.live.series.borrow_mut();
        if !series.is_empty() {
            return;
        }
        let record = self.live.record.borrow();
        let own = self.live.pod.id;
        match self.direction {
            Direction::Inbound => series.push(self.worker.series(Reporter::Destination, &record, own)),
            Direction::Outbound => {
                series.push(self.worker.series(Reporter::Source, &record, own));
                let judged = self.live.judged.borrow();
                let other = judged.as_ref().map(|judged| judged.pod.id);
                let other = other.or_else(|| (record.path == "self").then_some(own));
                series.extend(other.map(|pod| self.worker.series(Reporter::Destination, &record, pod)));
            }
        }
        series.iter().for_each(|series| series.open());
    }

    /// What becomes of it, unless it must end before: cut, or its pod withdrawn.
    pub async fn unless_cut(
        &self,
        pod: &PodState,
        carried: impl Future<Output = Result<(), Failure>>,
    ) -> Result<(), Failure> {
        // Who closes a pod or the worker cuts what is live: only one that begins after that is not told.
        if pod.drain.phase() == Phase::Closing {
            return Err(Failure::Cut(Cut::Withdrawn));
        }
        let mut carried = pin!(carried);
        poll_fn(|context| match self.live.poll_cut(context) {
            Poll::Ready(cut) => Poll::Ready(Err(Failure::Cut(cut))),
            Poll::Pending => carried.as_mut().poll(context),
        })
        .await
    }

    /// It has ended.
    pub fn close(mut self, result: Result<(), Failure>) {
        self.record(result);
    }

    fn record(&mut self, result: Result<(), Failure>) {
        if std::mem::replace(&mut self.is_closed, true) {
            return;
        }
        if let Some(decision) = result.as_ref().err().and_then(Failure::decision) {
            self.decided(decision);
            self.worker.context.telemetry.count_denied(decision.verdict);
        }
        self.count_open();
        self.live.flush();
        self.worker.live.remove(self.live.id);
        let mut record = self.live.record.borrow().clone();
        record.duration = self.live.started.elapsed();
        record.to_destination = self.live.transfer.to_destination.get();
        record.to_source = self.live.transfer.to_source.get();
        if let Err(failure) = &result {
            record.flag = failure.flag();
            record.error = failure.to_string();
            tracing::debug!(stage = ?failure.stage(), blame = ?failure.blame(), error = %failure, "connection failed");
        }
        self.live.series.borrow().iter().for_each(|series| series.close(record.flag));
        self.worker.refused.borrow_mut().add(&record);
        self.worker.context.telemetry.log(record);
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        let cut = if std::thread::panicking() { Cut::Panicked } else { Cut::Cancelled };
        self.record(Err(Failure::Cut(cut)));
    }
}
