//! The story of a connection that a pod of this node has opened: to an application of this node, through a tunnel, or as it
//! is to whatever is not in the mesh.

use std::{pin::pin, rc::Rc, sync::Arc};

use super::{
    accept::Accepted,
    authorize::authorize,
    connect::{Dialler, connect},
    copy::{End, copy},
    failure::Failure,
    local::{HOLD, Local, PodState},
    origin::{self, Origin, workload_of},
    outcome::{Direction, Outcome},
    resolve::{self, Caller, Question, ResolveError, Route},
};
use crate::{
    hbone::Early,
    telemetry::Party,
    view::{Uid, View},
};

/// Endpoints that are tried for one connection.
const ATTEMPTS: usize = 3;

/// From accept to the last byte.
pub(super) async fn serve(worker: Rc<Local>, pod: Rc<PodState>, accepted: Accepted) {
    let outcome = Outcome::open(&worker, &pod.pod, Direction::Outbound, accepted.peer);
    let result = {
        // Where it is polled there is room for it once; handed on by value it would take that again.
        let carried = pin!(carry(&worker, &pod, accepted, &outcome));
        outcome.unless_cut(&pod, carried).await
    };
    outcome.close(result);
}

async fn carry(worker: &Rc<Local>, pod: &PodState, mut accepted: Accepted, outcome: &Outcome) -> Result<(), Failure> {
    let dialled = worker.context.steering.origin(&accepted.socket)?;
    outcome.dialled(origin::canonical(dialled.destination));
    let view = worker.view().ok_or(Failure::Starting)?;
    let origin = origin::outbound(&pod.pod, &view.mesh, accepted.peer, dialled)?;
    outcome.origin(&origin, source(&view, pod, &origin));
    let mut tried = Vec::new();
    let mut early = Early::of(&mut accepted.socket, &outcome.live.transfer.waiting);
    loop {
        let (view, route) = Box::pin(route(worker, pod, &origin, &tried)).await?;
        outcome.routed(&route);
        let permit = authorize(&view, &origin.source, route).map_err(|decision| Failure::Denied(decision.into()))?;
        outcome.permitted(&permit, &origin);
        let route = permit.route().clone();
        let dialler = Dialler { worker, view: &view, pod: &pod.pod, pool: &pod.pool, origin: &origin };
        // What connecting needs is given back before bytes pass: an idle connection holds none of it.
        match Box::pin(connect(permit, dialler, &mut early)).await {
            Ok(upstream) => {
                outcome.connected(&route, &upstream);
                let begun = early.begun();
                return Ok(copy(End::Socket(accepted.socket), upstream.end, begun, &outcome.live.transfer).await?);
            }
            Err(error) => match another(&route) {
                Some(failed) if error.may_try_another() && tried.len() + 1 < ATTEMPTS => {
                    // Judged for the endpoint that failed; the next one is judged anew.
                    outcome.live.judged.take();
                    tried.push(failed);
                }
                _ => return Err(error.into()),
            },
        }
    }
}

/// The endpoint that failed, where the service may have another.
fn another(route: &Route) -> Option<Uid> {
    route.service.as_ref()?;
    route.next_hop.workload().map(|workload| workload.uid.clone())
}

/// Resolves by the View of now; what that does not know yet is asked and waited for.
async fn route(
    worker: &Rc<Local>,
    pod: &PodState,
    origin: &Origin,
    tried: &[Uid],
) -> Result<(Arc<View>, Route), Failure> {
    let resolve = || {
        let view = worker.view().ok_or(ResolveError::Pending)?;
        // A pod that the View does not know has no place to choose endpoints by, and its peers no name to allow.
        let caller = Caller::enrolled(&view, &pod.pod);
        caller.workload.ok_or(ResolveError::Pending)?;
        let pods = worker.context.pods.load();
        let question = Question { view: &view, pods: &pods, caller, origin, tried };
        let route = resolve::outbound(question, &mut worker.random.borrow_mut())?;
        Ok((view, route))
    };
    let resolved = match resolve() {
        Err(ResolveError::Pending) => worker.hold(resolve, |error| *error == ResolveError::Pending).await,
        Err(ResolveError::UnknownDestination) => {
            worker.context.demand.ask(origin.destination.ip(), HOLD).await;
            resolve()
        }
        resolved => resolved,
    };
    Ok(resolved?)
}

fn source(view: &View, pod: &PodState, origin: &Origin) -> Party {
    Party {
        workload: workload_of(view, &pod.pod).cloned(),
        identity: origin.source.identity.clone(),
        claimed: None,
        address: Some(origin.source_address),
    }
}
