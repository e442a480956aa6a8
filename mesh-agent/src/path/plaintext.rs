//! The story of a connection that arrives at a pod in the clear: from outside the mesh, or from a pod of this node that is
//! not enrolled. It has no identity; policy decides (STRICT is a policy that denies whoever has none).

use std::{pin::pin, rc::Rc};

use super::{
    accept::Accepted,
    connect::{Dialler, connect},
    copy::{CopyError, End, copy},
    failure::Failure,
    inbound::permit,
    local::{Local, PodState},
    origin,
    outcome::{Direction, Outcome},
};
use crate::{
    hbone::{Begun, Early},
    telemetry::Party,
};

/// From accept to the last byte.
pub(super) async fn serve(worker: Rc<Local>, pod: Rc<PodState>, accepted: Accepted) {
    let outcome = Outcome::open(&worker, &pod.pod, Direction::Inbound, accepted.peer);
    let result = {
        let carried = pin!(carry(&worker, &pod, accepted, &outcome));
        outcome.unless_cut(&pod, carried).await
    };
    outcome.close(result);
}

async fn carry(worker: &Rc<Local>, pod: &PodState, accepted: Accepted, outcome: &Outcome) -> Result<(), Failure> {
    let local = accepted.socket.local_addr().map_err(CopyError::Downstream)?;
    outcome.dialled(origin::canonical(local));
    let origin = origin::plaintext(accepted.peer, local)?;
    outcome.origin(&origin, Party { address: Some(origin.source_address), ..Party::default() });
    let (view, permit) = Box::pin(permit(worker, pod, &origin, outcome)).await?;
    outcome.in_the_clear();
    let route = permit.route().clone();
    let dialler = Dialler { worker, view: &view, pod: &pod.pod, pool: &pod.pool, origin: &origin };
    let upstream = Box::pin(connect(permit, dialler, &mut Early::default())).await?;
    outcome.connected(&route, &upstream);
    Ok(copy(End::Socket(accepted.socket), upstream.end, Begun::default(), &outcome.live.transfer).await?)
}
