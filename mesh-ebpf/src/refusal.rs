//! How a connection is refused: counted, told to the agent, and answered with ECONNREFUSED where the kernel lets us choose.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use mesh_common::abi::{Direction, Endpoint, Flow, RecordKind, Totals};
use mesh_common::counter::Counter;

use crate::state::count;
use crate::telemetry;

const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// Whether the kernel has bpf_set_retval (5.18); set by the agent before loading. Without it the answer is EPERM.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u32 = 1;

/// A refused connect.
pub struct Refused;

impl Refused {
    /// Counts the reason.
    #[inline(always)]
    pub fn because(reason: Counter) -> Self {
        count(reason);
        Self
    }

    /// The hook's answer.
    #[inline(always)]
    pub fn answer(self) -> i32 {
        // SAFETY: a constant of the loaded object; volatile, because the loader writes it after compilation.
        if unsafe { core::ptr::read_volatile(&raw const HAS_SET_RETVAL) } != 0 {
            // SAFETY: the helper only stores the value that connect() will answer.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
        }
        REFUSE
    }
}

/// Tells the agent of a refusal at the source. `target` is what would have been dialled.
#[inline(always)]
pub fn report_outbound(context: &SockAddrContext, pod: u32, dialled: Endpoint, target: Endpoint, reason: Counter) {
    // SAFETY: the context is this hook's.
    let (namespace, socket) =
        unsafe { (bpf_get_netns_cookie(context.as_ptr()), bpf_get_socket_cookie(context.as_ptr())) };
    let mut flow = Flow::new(Direction::Outbound, pod, namespace, Endpoint::NONE, target);
    flow.original = dialled;
    telemetry::report(RecordKind::Refused, reason as u32, socket, &flow, &Totals::default());
}

/// Tells the agent of a refusal at the destination, which sees no socket.
#[inline(always)]
pub fn report_inbound(pod: u32, namespace: u64, source: Endpoint, destination: Endpoint, reason: Counter) {
    let flow = Flow::new(Direction::Inbound, pod, namespace, destination, source);
    telemetry::report(RecordKind::Refused, reason as u32, 0, &flow, &Totals::default());
}
