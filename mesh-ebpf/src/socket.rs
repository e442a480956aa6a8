//! What is kept on a socket (META), and what a hook's context says about it. Reads contexts field by field with volatile
//! loads: merged by LLVM they would go through a moved context pointer, which the verifier refuses.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_ops};
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get};
use mesh_common::abi::{Endpoint, Ip16, Meta};

use crate::maps::{AGENT, META};

pub const AF_INET: u32 = 2;

/// Reads one field of a context.
macro_rules! field {
    ($context:expr, $($path:tt)+) => {
        // SAFETY: the kernel gives a valid context, and the verifier checks the access to it.
        unsafe { core::ptr::read_volatile(&raw const (*$context).$($path)+) }
    };
}
pub(crate) use field;

/// The socket of a connect or name hook.
#[inline(always)]
pub fn of_address(address: *const aya_ebpf::bindings::bpf_sock_addr) -> *mut bpf_sock {
    field!(address, __bindgen_anon_1.sk)
}

/// The socket of a sock_ops callback; none for a request that is no full socket yet.
#[inline(always)]
pub fn of_ops(ops: *const bpf_sock_ops) -> Option<*mut bpf_sock> {
    let socket = field!(ops, __bindgen_anon_2.sk);
    if socket.is_null() { None } else { Some(socket) }
}

/// META of a socket.
#[inline(always)]
pub fn meta(socket: *mut bpf_sock) -> Option<Meta> {
    // SAFETY: the socket is the hook's own and the map's values are `Meta`.
    let value = unsafe { bpf_sk_storage_get(META.as_ptr(), socket.cast(), core::ptr::null_mut(), 0) }.cast::<Meta>();
    // SAFETY: a non-null answer points to a value that lives as long as the socket.
    if value.is_null() { None } else { Some(unsafe { *value }) }
}

/// Sets META of a socket; whether that worked.
#[inline(always)]
pub fn set_meta(socket: *mut bpf_sock, meta: &Meta) -> bool {
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    let initial = core::ptr::from_ref(meta).cast_mut().cast();
    // SAFETY: as in `meta`; the initial value is copied during the call.
    let value = unsafe { bpf_sk_storage_get(META.as_ptr(), socket.cast(), initial, create) }.cast::<Meta>();
    if value.is_null() {
        return false;
    }
    // SAFETY: non-null, so it points to the socket's value, which is not ours; an older one is replaced.
    unsafe { core::ptr::copy_nonoverlapping(meta, value, 1) };
    true
}

/// Forgets META of a socket.
#[inline(always)]
pub fn clear_meta(socket: *mut bpf_sock) {
    // SAFETY: as in `meta`. Deleting what is not there is no error that matters.
    unsafe { bpf_sk_storage_delete(META.as_ptr(), socket.cast()) };
}

/// Whether the socket was accepted by one of the agent's listeners.
#[inline(always)]
pub fn is_agents(socket: *mut bpf_sock) -> bool {
    // SAFETY: as in `meta`.
    let value = unsafe { bpf_sk_storage_get(AGENT.as_ptr(), socket.cast(), core::ptr::null_mut(), 0) };
    !value.is_null()
}

/// The socket's own end.
#[inline(always)]
pub fn local(ops: *const bpf_sock_ops) -> Endpoint {
    Endpoint::new(local_ip(ops), field!(ops, local_port) as u16)
}

/// The other end.
#[inline(always)]
pub fn remote(ops: *const bpf_sock_ops) -> Endpoint {
    Endpoint::new(remote_ip(ops), u32::from_be(field!(ops, remote_port)) as u16)
}

// Both families are read, whichever it is, and one is chosen by value: loads in two branches would be merged into one from
// a chosen offset. The kernel answers zeros for the other family, or what nobody looks at.

#[inline(always)]
fn local_ip(ops: *const bpf_sock_ops) -> Ip16 {
    let v4 = Ip16::from_v4_word(field!(ops, local_ip4));
    let v6 = Ip16::from_words([
        field!(ops, local_ip6[0]),
        field!(ops, local_ip6[1]),
        field!(ops, local_ip6[2]),
        field!(ops, local_ip6[3]),
    ]);
    if field!(ops, family) == AF_INET { v4 } else { v6 }
}

#[inline(always)]
fn remote_ip(ops: *const bpf_sock_ops) -> Ip16 {
    let v4 = Ip16::from_v4_word(field!(ops, remote_ip4));
    let v6 = Ip16::from_words([
        field!(ops, remote_ip6[0]),
        field!(ops, remote_ip6[1]),
        field!(ops, remote_ip6[2]),
        field!(ops, remote_ip6[3]),
    ]);
    if field!(ops, family) == AF_INET { v4 } else { v6 }
}
