//! What is kept per socket and per handshake: META, PENDING and TICKET. Their values are 64 bytes with a version byte and
//! are carried through all versions of the programs; a new need gets a map beside them.

use super::{Endpoint, Tuple, plain};

/// The version byte of META and TICKET values.
pub const VERSION: u8 = 1;

/// What a socket is to the hooks.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaKind {
    /// A client in the pod whose destination was rewritten: `getpeername` answers what it dialled.
    ActiveDestination = 1,
    /// The agent's accepted child of such a client: `getsockname` answers what the client dialled.
    PassiveDestination = 2,
    /// The agent's socket to an application, written before `connect`: the connect hook lets it pass.
    ActiveSource = 3,
    /// The application's accepted child of such a socket: `getpeername` and `accept` answer the real client.
    PassiveSource = 4,
    /// The agent's own outbound socket: the connect hook lets it pass and nothing else is done.
    Exempt = 5,
}

/// Flags of a [`Meta`].
pub mod meta_flags {
    /// The connection is direct and only a service address was replaced: no PENDING is written for it.
    pub const DIRECT: u16 = 1;
    /// A socket of the node's own processes outside pods that dials a declared probe port.
    pub const PROBE: u16 = 2;
}

/// Value of META (socket storage) and PENDING.
///
/// ```text
///  0        1     2       4         8                 28                48          64
///  +--------+-----+-------+---------+-----------------+-----------------+-----------+
///  | version| kind| flags | 0       | original        | endpoint        | 0         |
///  +--------+-----+-------+---------+-----------------+-----------------+-----------+
/// ```
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    version: u8,
    kind: u8,
    flags: u16,
    reserved: [u32; 1],
    original: Endpoint,
    endpoint: Endpoint,
    tail: [u32; 4],
}

impl Meta {
    /// A value of this version. `original` is what the client dialled (kinds 1, 2) or the real client (kinds 3, 4);
    /// `endpoint` is what the hook chose behind a service.
    #[inline(always)]
    pub const fn new(kind: MetaKind, flags: u16, original: Endpoint, endpoint: Endpoint) -> Self {
        Self { version: VERSION, kind: kind as u8, flags, reserved: [0; 1], original, endpoint, tail: [0; 4] }
    }

    /// The same value under another kind: what the accepted child gets from PENDING.
    #[inline(always)]
    pub const fn with_kind(self, kind: MetaKind) -> Self {
        Self { kind: kind as u8, ..self }
    }

    /// The kind; none when a future version wrote one that this code does not know.
    #[inline(always)]
    pub const fn kind(&self) -> Option<MetaKind> {
        match self.kind {
            1 => Some(MetaKind::ActiveDestination),
            2 => Some(MetaKind::PassiveDestination),
            3 => Some(MetaKind::ActiveSource),
            4 => Some(MetaKind::PassiveSource),
            5 => Some(MetaKind::Exempt),
            _ => None,
        }
    }

    /// Whether a flag of [`meta_flags`] is set.
    #[inline(always)]
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// What the client dialled (kinds 1 and 2), or the real client (kinds 3 and 4).
    #[inline(always)]
    pub const fn original(&self) -> Endpoint {
        self.original
    }

    /// The endpoint that the hook chose behind a service address, or [`Endpoint::NONE`].
    #[inline(always)]
    pub const fn endpoint(&self) -> Endpoint {
        self.endpoint
    }
}

/// Key of PENDING: one handshake inside one namespace, from SYN to established.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PendingKey {
    namespace: u64,
    tuple: Tuple,
    reserved: u32,
}

impl PendingKey {
    /// From the namespace's cookie and both ends as the source names them.
    #[inline(always)]
    pub const fn new(namespace: u64, tuple: Tuple) -> Self {
        Self { namespace, tuple, reserved: 0 }
    }
}

/// Who speaks for a ticket.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketKind {
    /// A socket of an enrolled pod.
    Pod = 1,
    /// A socket of the node's own namespace.
    Node = 2,
}

/// Flags of a [`Ticket`].
pub mod ticket_flags {
    /// Written by a process of the node outside pods that dialled a declared probe port.
    pub const PROBE: u16 = 1;
}

/// Value of TICKET: who dialled, written by the source side under the full [`Tuple`] before its SYN leaves.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    version: u8,
    kind: u8,
    flags: u16,
    pod: u32,
    namespace: u64,
    tail: [u64; 6],
}

impl Ticket {
    /// A value of this version.
    #[inline(always)]
    pub const fn new(kind: TicketKind, flags: u16, pod: u32, namespace: u64) -> Self {
        Self { version: VERSION, kind: kind as u8, flags, pod, namespace, tail: [0; 6] }
    }

    /// Who speaks; none when a future version wrote a kind that this code does not know.
    #[inline(always)]
    pub const fn kind(&self) -> Option<TicketKind> {
        match self.kind {
            1 => Some(TicketKind::Pod),
            2 => Some(TicketKind::Node),
            _ => None,
        }
    }

    /// Whether a flag of [`ticket_flags`] is set.
    #[inline(always)]
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The pod that dialled (0 for the node).
    #[inline(always)]
    pub const fn pod(&self) -> u32 {
        self.pod
    }

    /// The namespace's cookie of the socket that dialled.
    #[inline(always)]
    pub const fn namespace(&self) -> u64 {
        self.namespace
    }
}

plain!(Meta: 64, PendingKey: 48, Ticket: 64);
