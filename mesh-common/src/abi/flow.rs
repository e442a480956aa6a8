//! What the hooks tell about connections: DIRECT (live ones between pods of the node, key: both ends), FLOWS (all other live
//! ones, key: socket cookie) and the records of the ring buffer EVENTS.

use super::{Endpoint, plain};

/// Which end of a connection a socket is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The socket dialled.
    Outbound = 1,
    /// The socket was accepted.
    Inbound = 2,
}

/// How a connection goes, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowFlags(u16);

impl FlowFlags {
    /// Nothing known.
    pub const NONE: Self = Self(0);
    /// Through the agent (outbound: redirected to 15001; inbound: dialled by the agent).
    pub const AGENT: Self = Self(1);
    /// Same node, without the agent, allowed by POLICY.
    pub const DIRECT: Self = Self(2);
    /// The pod reaches itself.
    pub const ITSELF: Self = Self(4);
    /// A kubelet probe.
    pub const PROBE: Self = Self(8);
    /// In the clear because the agent is away and the pod fails open.
    pub const FAIL_OPEN: Self = Self(16);
    /// Its FIN was acknowledged by the peer.
    pub const FIN_SENT: Self = Self(32);
    /// The peer's FIN arrived.
    pub const FIN_RECEIVED: Self = Self(64);
    /// Its handshake began before the pod was enrolled: no hook has judged it.
    pub const BEFORE_ENROLMENT: Self = Self(128);

    /// From the bits of a map value.
    #[inline(always)]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The bits.
    #[inline(always)]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// With the flags of `other` set too.
    #[inline(always)]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all flags of `other` are set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Value of FLOWS: one end of a live connection of an enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// 1.
    pub version: u8,
    direction: u8,
    flags: u16,
    /// The pod of the socket.
    pub pod: u32,
    /// Cookie of the socket's network namespace.
    pub namespace: u64,
    /// CLOCK_MONOTONIC when the handshake ended, in ns.
    pub established_ns: u64,
    /// The socket's own end.
    pub local: Endpoint,
    /// The other end as the socket's packets name it (for a redirected client: the pod's address and 15001).
    pub remote: Endpoint,
    /// Outbound: what the application dialled. Inbound: the real client.
    pub original: Endpoint,
    /// Low bits of the bytes received when the socket's own FIN was acknowledged: more at the end means that the peer's
    /// FIN arrived too.
    pub received_at_fin: u32,
}

impl Flow {
    /// A value of this version.
    #[inline(always)]
    pub const fn new(direction: Direction, pod: u32, namespace: u64, local: Endpoint, remote: Endpoint) -> Self {
        Self {
            version: super::VERSION,
            direction: direction as u8,
            flags: 0,
            pod,
            namespace,
            established_ns: 0,
            local,
            remote,
            original: remote,
            received_at_fin: 0,
        }
    }

    /// Which end the socket is.
    #[inline(always)]
    pub const fn direction(&self) -> Direction {
        match self.direction {
            1 => Direction::Outbound,
            _ => Direction::Inbound,
        }
    }

    /// Whether the record of this end tells of the connection. One between ends of this node is told by the end that dialled;
    /// one through the agent by the agent; a probe by nobody.
    #[inline(always)]
    pub const fn tells(&self) -> bool {
        let flags = self.flags();
        if flags.has(FlowFlags::AGENT) || flags.has(FlowFlags::PROBE) {
            return false;
        }
        flags.has(FlowFlags::BEFORE_ENROLMENT) || matches!(self.direction(), Direction::Outbound)
    }

    /// How it goes.
    #[inline(always)]
    pub const fn flags(&self) -> FlowFlags {
        FlowFlags(self.flags)
    }

    /// Sets more flags.
    #[inline(always)]
    pub const fn add(&mut self, flags: FlowFlags) {
        self.flags |= flags.0;
    }
}

/// Value of DIRECT, whose key is the connection's [`super::Tuple`]: one between two pods of the node, from its SYN to its end.
/// Ticket and flow in one: a short connection spends more on entries of maps than on all else that the hooks do.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectFlow {
    /// Cookie of the socket that dialled: nobody else writes here but the destination, which takes the ticket.
    pub socket: u64,
    /// The end that dialled. `established_ns` is 0 during the handshake.
    pub flow: Flow,
    /// 1 once the destination has accepted: it speaks for nobody after that.
    pub taken: u32,
    reserved: u32,
}

impl DirectFlow {
    /// A connection whose SYN is about to leave.
    #[inline(always)]
    pub const fn new(socket: u64, flow: Flow) -> Self {
        Self { socket, flow, taken: 0, reserved: 0 }
    }

    /// Whether it still says who dialled.
    #[inline(always)]
    pub const fn is_ticket(&self) -> bool {
        self.taken == 0
    }

    /// Whether its handshake has ended.
    #[inline(always)]
    pub const fn is_established(&self) -> bool {
        self.flow.established_ns != 0
    }
}

/// What a record tells.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A handshake ended that was under way when its pod was enrolled. The end of any other is told by FLOWS alone: nobody
    /// would read the record.
    Established = 1,
    /// A connection is over; byte counts are final. Only of an end that [`Flow::tells`].
    Closed = 2,
    /// A hook refused a connection: [`Record::reason`] says why.
    Refused = 3,
}

/// One record of EVENTS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    kind: u32,
    /// For refused ones the number of a [`crate::counter::Counter`], else 0.
    pub reason: u32,
    /// The socket's cookie; 0 when a destination refused, which sees no socket.
    pub socket: u64,
    /// The connection. For a refused one `remote` is the endpoint that was chosen.
    pub flow: Flow,
    /// CLOCK_MONOTONIC when the record was written, in ns.
    pub at_ns: u64,
    /// Payload bytes that the peer acknowledged.
    pub bytes_sent: u64,
    /// Payload bytes that arrived in order.
    pub bytes_received: u64,
    /// Smoothed round trip time in microseconds.
    pub rtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
}

/// What a connection did until it closed; zeros in records of other kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// [`Record::bytes_sent`].
    pub bytes_sent: u64,
    /// [`Record::bytes_received`].
    pub bytes_received: u64,
    /// [`Record::rtt_us`].
    pub rtt_us: u32,
    /// [`Record::retransmits`].
    pub retransmits: u32,
}

impl Record {
    /// A record of one connection.
    #[inline(always)]
    pub const fn new(kind: RecordKind, reason: u32, socket: u64, flow: Flow, at_ns: u64, totals: Totals) -> Self {
        Self {
            kind: kind as u32,
            reason,
            socket,
            flow,
            at_ns,
            bytes_sent: totals.bytes_sent,
            bytes_received: totals.bytes_received,
            rtt_us: totals.rtt_us,
            retransmits: totals.retransmits,
        }
    }

    /// What it tells; none when a future version wrote a kind that this code does not know.
    #[inline(always)]
    pub const fn kind(&self) -> Option<RecordKind> {
        match self.kind {
            1 => Some(RecordKind::Established),
            2 => Some(RecordKind::Closed),
            3 => Some(RecordKind::Refused),
            _ => None,
        }
    }
}

plain!(Flow: 88, DirectFlow: 104, Record: 136);
