//! The programs on cgroup and socket hooks: entry points only. Never decides: decisions are in `mesh_common`, tested on the
//! host; the modules here fetch what those ask for and carry out what they answer.

#![no_std]
#![no_main]

mod connect;
mod handshake;
mod lookup;
mod maps;
mod names;
mod refusal;
mod socket;
mod state;
mod telemetry;

use aya_ebpf::macros::{cgroup_sock_addr, sk_lookup, sock_ops};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext};

/// Where an IPv4 socket goes.
#[cgroup_sock_addr(connect4)]
pub fn mesh_connect4(context: SockAddrContext) -> i32 {
    connect::connect4(&context)
}

/// Where an IPv6 socket goes, v4-mapped destinations included.
#[cgroup_sock_addr(connect6)]
pub fn mesh_connect6(context: SockAddrContext) -> i32 {
    connect::connect6(&context)
}

/// Whom an IPv4 socket is connected to, as the application knows it.
#[cgroup_sock_addr(getpeername4)]
pub fn mesh_peer4(context: SockAddrContext) -> i32 {
    names::peer4(&context)
}

/// The same for IPv6 sockets.
#[cgroup_sock_addr(getpeername6)]
pub fn mesh_peer6(context: SockAddrContext) -> i32 {
    names::peer6(&context)
}

/// What the client behind an accepted IPv4 socket of the agent dialled.
#[cgroup_sock_addr(getsockname4)]
pub fn mesh_name4(context: SockAddrContext) -> i32 {
    names::name4(&context)
}

/// The same for IPv6 sockets.
#[cgroup_sock_addr(getsockname6)]
pub fn mesh_name6(context: SockAddrContext) -> i32 {
    names::name6(&context)
}

/// Handshakes carry META and TICKET from one end to the other; established and closed connections are reported.
#[sock_ops]
pub fn mesh_sock_ops(context: SockOpsContext) -> u32 {
    handshake::dispatch(&context)
}

/// Who gets a SYN that arrives in an enrolled pod's namespace.
#[sk_lookup]
pub fn mesh_lookup(context: SkLookupContext) -> u32 {
    lookup::lookup(&context)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers may be called only by programs under a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
