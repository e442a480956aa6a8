//! The connections of one worker while they live: shown by `meshctl sockets`, judged again on each new View, cut when they
//! must end. Belongs to its thread; nothing here locks.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::time::Instant;

use super::{
    authorize::{Source, judge},
    copy::Transfer,
    failure::Cut,
    origin::workload_of,
};
use crate::{
    enrol::Pod,
    telemetry::{ConnectionRecord, Series, Unreported},
    view::View,
};

/// What was judged, so that it can be again.
#[derive(Debug)]
pub(super) struct Judged {
    pub source: Source,
    /// The destination, of this node.
    pub pod: Arc<Pod>,
    pub address: SocketAddr,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Live {
    pub id: u64,
    /// The pod of this node at whose listener it arrived.
    pub pod: Arc<Pod>,
    pub started: Instant,
    pub record: RefCell<ConnectionRecord>,
    pub judged: RefCell<Option<Judged>>,
    pub transfer: Transfer,
    pub series: RefCell<Vec<Arc<Series>>>,
    pub unreported: Unreported,
    /// What had passed when the memory was looked at last.
    passed: Cell<u64>,
    cut: RefCell<Option<Cut>>,
    /// Who waits for that.
    waits: RefCell<Option<Waker>>,
}

impl Live {
    /// Ends it; the first reason counts.
    pub fn cut(&self, reason: Cut) {
        self.cut.borrow_mut().get_or_insert(reason);
        if let Some(waker) = self.waits.take() {
            waker.wake();
        }
    }

    /// Waits until it must end; one at a time waits. Asked with every byte that passes, so it costs next to nothing.
    pub fn poll_cut(&self, context: &Context<'_>) -> Poll<Cut> {
        if let Some(cut) = &*self.cut.borrow() {
            return Poll::Ready(cut.clone());
        }
        let mut waits = self.waits.borrow_mut();
        if !waits.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waits = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// Tells its series what has passed since the last time.
    pub fn flush(&self) {
        let Transfer { to_destination, to_source, .. } = &self.transfer;
        self.unreported.flush(&self.series.borrow(), to_destination.get(), to_source.get());
    }

    /// Whether no byte has passed since this was last asked.
    fn is_still(&self) -> bool {
        let Transfer { to_destination, to_source, .. } = &self.transfer;
        let passed = to_destination.get() + to_source.get();
        self.passed.replace(passed) == passed
    }

    fn judge_again(&self, view: &View) {
        let judged = self.judged.borrow();
        let Some(Judged { source, pod, address }) = &*judged else { return };
        if let Some(identity) = source.identity.as_ref().filter(|identity| !view.may_be_at(identity, source.address)) {
            return self.cut(Cut::Identity(identity.clone()));
        }
        let Some(workload) = workload_of(view, pod) else { return self.cut(Cut::Unknown) };
        let decision = judge(view, source, workload, address.ip(), address.port());
        if decision.verdict.is_allowed() {
            let mut record = self.record.borrow_mut();
            (record.verdict, record.policy, record.dry_run) =
                (Some(decision.verdict), decision.policy, decision.dry_run);
        } else {
            self.cut(Cut::Denied(Box::new(decision)));
        }
    }
}

/// One connection as `meshctl sockets` shows it.
#[derive(Debug, Clone)]
pub struct ConnectionSnapshot {
    /// The worker that carries it.
    pub worker: u32,
    /// Unique on this worker.
    pub id: u64,
    /// The pod of this node at whose listener it arrived.
    pub pod: Arc<Pod>,
    /// All that is known, with the bytes and the age of now.
    pub record: ConnectionRecord,
}

/// All of a worker's.
#[derive(Debug, Default)]
pub(super) struct Table {
    connections: RefCell<HashMap<u64, Rc<Live>>>,
    next: Cell<u64>,
}

impl Table {
    pub fn insert(&self, pod: Arc<Pod>, record: ConnectionRecord) -> Rc<Live> {
        let id = self.next.get();
        self.next.set(id + 1);
        let live = Rc::new(Live {
            id,
            pod,
            started: Instant::now(),
            record: RefCell::new(record),
            judged: RefCell::default(),
            transfer: Transfer::default(),
            series: RefCell::default(),
            unreported: Unreported::default(),
            passed: Cell::default(),
            cut: RefCell::default(),
            waits: RefCell::default(),
        });
        self.connections.borrow_mut().insert(id, live.clone());
        live
    }

    pub fn remove(&self, id: u64) {
        self.connections.borrow_mut().remove(&id);
    }

    /// Judges all again; those that the View denies are cut.
    pub fn judge_again(&self, view: &View) {
        self.connections.borrow().values().for_each(|live| live.judge_again(view));
    }

    /// Cuts those that have this pod at an end; all, without one.
    pub fn cut(&self, pod: Option<u32>, reason: &Cut) {
        let concerns = |live: &Live, pod: u32| {
            live.pod.id == pod || live.judged.borrow().as_ref().is_some_and(|judged| judged.pod.id == pod)
        };
        for live in self.connections.borrow().values() {
            if pod.is_none_or(|pod| concerns(live, pod)) {
                live.cut(reason.clone());
            }
        }
    }

    /// Cuts connections of pods that make the agent hold more than `limit` bytes: first those that do not move, of these
    /// those that hold most. How many.
    pub fn relieve(&self, limit: usize) -> usize {
        let mut pods: HashMap<u32, (usize, Vec<_>)> = HashMap::new();
        for live in self.connections.borrow().values() {
            let (held, is_still) = (live.transfer.held(), live.is_still());
            if held > 0 {
                let (sum, holders) = pods.entry(live.pod.id).or_default();
                *sum += held;
                holders.push((is_still, held, live.clone()));
            }
        }
        let mut cut = 0;
        for (mut sum, mut holders) in pods.into_values().filter(|(sum, _)| *sum > limit) {
            holders.sort_by_key(|(is_still, held, _)| std::cmp::Reverse((*is_still, *held)));
            for (_, held, live) in holders {
                if sum <= limit {
                    break;
                }
                live.cut(Cut::Memory);
                sum -= held;
                cut += 1;
            }
        }
        cut
    }

    pub fn flush(&self) {
        self.connections.borrow().values().for_each(|live| live.flush());
    }

    pub fn snapshots(&self, worker: u32) -> Vec<ConnectionSnapshot> {
        let snapshot = |live: &Rc<Live>| {
            let mut record = live.record.borrow().clone();
            record.duration = live.started.elapsed();
            record.to_destination = live.transfer.to_destination.get();
            record.to_source = live.transfer.to_source.get();
            ConnectionSnapshot { worker, id: live.id, pod: live.pod.clone(), record }
        };
        self.connections.borrow().values().map(snapshot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proving::{address, pod};

    #[test]
    fn a_pod_that_holds_too_much_loses_its_biggest_that_do_not_move_and_others_lose_nothing() {
        let table = Table::default();
        let pods = [pod(1, "web", address()), pod(2, "db", address())];
        let open = |pod: &Arc<Pod>, holds: usize, passes: u64| {
            let live = table.insert(pod.clone(), ConnectionRecord::new("outbound"));
            live.transfer.waiting.set(holds);
            live.transfer.to_source.set(passes);
            live
        };
        let [web, db] = &pods;
        let all = [open(web, 40, 0), open(web, 30, 0), open(web, 50, 9), open(web, 0, 0), open(db, 100, 0)];
        let cut = || all.each_ref().map(|live| live.cut.borrow().is_some());

        assert_eq!((table.relieve(120), cut()), (0, [false; 5]));
        // The third has moved meanwhile.
        all[2].transfer.to_source.set(10);
        assert_eq!((table.relieve(100), cut()), (1, [true, false, false, false, false]));
        all[0].transfer.waiting.set(0);
        all[2].transfer.to_source.set(11);
        assert_eq!((table.relieve(60), cut()), (2, [true, true, false, false, true]));
    }
}
