//! What the kernel programs and the agent agree on: map layouts, vocabulary and pure decisions. Never allocates, never
//! does I/O and has no dependency, so the same code runs in a hook and under the host's tests.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod counter;
pub mod lookup;
pub mod outbound;
pub mod verdict;

/// Outbound capture, inside each enrolled pod's network namespace.
pub const PORT_OUTBOUND: u16 = 15001;
/// Plaintext inbound capture, inside each enrolled pod's network namespace.
pub const PORT_PLAINTEXT: u16 = 15006;
/// HBONE, inside each enrolled pod's network namespace: the only port that payload crosses nodes on.
pub const PORT_HBONE: u16 = 15008;
/// Slots of the heartbeat array, hence the largest number of worker threads.
pub const MAX_WORKERS: u32 = 16;
/// A worker whose last beat is older gets no new connection.
pub const HEARTBEAT_MAX_AGE_NS: u64 = 3_000_000_000;

/// Whether a port is one of ours: never dialled by an application, never reachable but by steering.
#[inline(always)]
pub const fn is_own_port(port: u16) -> bool {
    matches!(port, PORT_OUTBOUND | PORT_PLAINTEXT | PORT_HBONE)
}
