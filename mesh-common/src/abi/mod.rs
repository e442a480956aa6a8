//! Keys and values of the maps that hooks and agent share. Never decides anything. Every type is plain bytes without
//! hidden padding, because the kernel compares and copies whole keys; addresses and ports are in network order here and
//! nowhere else.

mod address;
mod flow;
mod pod;
mod socket;
mod steering;

pub use address::{Endpoint, Ip16, Tuple};
pub use flow::{DirectFlow, Direction, Flow, FlowFlags, Record, RecordKind, Totals};
pub use pod::{AddressEntry, CgroupMark, ListenKey, Listener, POD_FAIL_OPEN, PodEntry, ProbeKey, Settings};
pub use socket::{Meta, MetaKind, PendingKey, Ticket, TicketKind, VERSION, meta_flags, ticket_flags};
pub use steering::{BackendKey, PolicyKey, PolicyValue, SERVICE_AGENT_ONLY, ServiceEntry};

/// A type that is plain bytes: `repr(C)`, no padding, every bit pattern valid.
///
/// # Safety
///
/// The implementing type must have no padding byte and accept any bytes as a value: it is copied to and from the kernel.
pub unsafe trait Plain: Copy + 'static {}

// SAFETY: integers and byte arrays have no padding and no invalid value.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}

// SAFETY: elements without padding follow each other without padding.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Declares types as [`Plain`] and refuses at compile time what has padding: the sum of the fields must be the size.
macro_rules! plain {
    ($($type:ty: $size:literal),+ $(,)?) => {$(
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        // SAFETY: repr(C), the fields are plain and sum up to the asserted size, so there is no padding.
        unsafe impl $crate::abi::Plain for $type {}
    )+};
}
pub(crate) use plain;
