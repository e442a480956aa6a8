//! getpeername, accept and getsockname: applications see whom they talk to, not the agent between. Never refuses.

use aya_ebpf::programs::SockAddrContext;
use mesh_common::abi::{Endpoint, MetaKind};

use crate::socket;

const ALLOW: i32 = 1;

pub fn peer4(context: &SockAddrContext) -> i32 {
    answer4(context, peer(context))
}

pub fn peer6(context: &SockAddrContext) -> i32 {
    answer6(context, peer(context))
}

pub fn name4(context: &SockAddrContext) -> i32 {
    answer4(context, name(context))
}

pub fn name6(context: &SockAddrContext) -> i32 {
    answer6(context, name(context))
}

/// What a client dialled; for a server's accepted socket, the real client.
#[inline(always)]
fn peer(context: &SockAddrContext) -> Option<Endpoint> {
    let meta = socket::meta(socket::of_address(context.sock_addr))?;
    match meta.kind()? {
        MetaKind::ActiveDestination | MetaKind::PassiveSource => Some(meta.original()),
        MetaKind::PassiveDestination | MetaKind::ActiveSource | MetaKind::Exempt => None,
    }
}

/// For the agent's accepted socket, what the client dialled.
#[inline(always)]
fn name(context: &SockAddrContext) -> Option<Endpoint> {
    let meta = socket::meta(socket::of_address(context.sock_addr))?;
    match meta.kind()? {
        MetaKind::PassiveDestination => Some(meta.original()),
        MetaKind::ActiveDestination | MetaKind::ActiveSource | MetaKind::PassiveSource | MetaKind::Exempt => None,
    }
}

#[inline(always)]
fn answer4(context: &SockAddrContext, answer: Option<Endpoint>) -> i32 {
    let address = context.sock_addr;
    if let Some(answer) = answer {
        if let Some(word) = answer.ip().v4_word() {
            // SAFETY: these fields may be written by this hook.
            unsafe {
                core::ptr::write_volatile(&raw mut (*address).user_ip4, word);
                core::ptr::write_volatile(&raw mut (*address).user_port, u32::from(answer.port().to_be()));
            }
        }
    }
    ALLOW
}

#[inline(always)]
fn answer6(context: &SockAddrContext, answer: Option<Endpoint>) -> i32 {
    let address = context.sock_addr;
    if let Some(answer) = answer {
        let words = answer.ip().words();
        // SAFETY: these fields may be written by this hook.
        unsafe {
            core::ptr::write_volatile(&raw mut (*address).user_ip6[0], words[0]);
            core::ptr::write_volatile(&raw mut (*address).user_ip6[1], words[1]);
            core::ptr::write_volatile(&raw mut (*address).user_ip6[2], words[2]);
            core::ptr::write_volatile(&raw mut (*address).user_ip6[3], words[3]);
            core::ptr::write_volatile(&raw mut (*address).user_port, u32::from(answer.port().to_be()));
        }
    }
    ALLOW
}
