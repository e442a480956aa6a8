//! What the hooks count, by reason. Numbers index the per-CPU array COUNTERS and never change meaning; names are the
//! `reason` labels of metrics.

macro_rules! counters {
    ($($(#[$doc:meta])+ $variant:ident = $number:literal, $name:literal;)+) => {
        /// A reason that a hook counts.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Counter {
            $($(#[$doc])+ $variant = $number,)+
        }

        impl Counter {
            /// Every counter, in the order of the numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The stable label.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

counters! {
    /// Outbound, given to the agent.
    OutboundAgent = 0, "outbound_agent";
    /// Outbound, direct to a pod of this node.
    OutboundDirect = 1, "outbound_direct";
    /// Outbound of a pod to itself.
    OutboundSelf = 2, "outbound_self";
    /// Outbound in the clear: agent away, pod fails open.
    OutboundFailOpen = 3, "outbound_fail_open";
    /// Outbound refused: POLICY denies.
    OutboundDenied = 4, "outbound_denied";
    /// Outbound refused: the agent is away.
    OutboundAway = 5, "outbound_agent_away";
    /// Outbound direct refused: the last heartbeat is too old.
    OutboundStale = 6, "outbound_heartbeat_stale";
    /// Outbound refused: one of our own ports in the pod itself.
    OutboundOwnPort = 7, "outbound_own_port";
    /// Outbound refused: the pod has no address of this family.
    OutboundNoFamily = 8, "outbound_no_family";
    /// Outbound refused: nested network namespace in an enrolled pod.
    NestedNamespace = 9, "nested_namespace";
    /// Outbound refused: socket storage could not be allocated.
    StorageFull = 10, "storage_full";
    /// PENDING or TICKET could not be written; the connection fails at its destination.
    HandshakeMapFull = 11, "handshake_map_full";
    /// A redirected connection was accepted without its PENDING entry.
    PendingMissing = 12, "pending_missing";
    /// Inbound of a pod from itself.
    InboundSelf = 13, "inbound_self";
    /// Inbound direct, proved by a ticket.
    InboundDirect = 14, "inbound_direct";
    /// Inbound probe of the node.
    InboundProbe = 15, "inbound_probe";
    /// Inbound given to the outbound listener.
    AssignOutbound = 16, "assign_outbound";
    /// Inbound given to the plaintext listener.
    AssignPlaintext = 17, "assign_plaintext";
    /// Inbound given to the HBONE listener.
    AssignHbone = 18, "assign_hbone";
    /// Inbound dropped: no live listener.
    InboundAway = 19, "inbound_agent_away";
    /// Inbound dropped: not an address of the pod (link-local, second interface).
    InboundForeignAddress = 20, "inbound_foreign_address";
    /// Inbound dropped: one of our own ports.
    InboundOwnPort = 21, "inbound_own_port";
    /// Inbound dropped: POLICY denies.
    InboundDenied = 22, "inbound_denied";
    /// Inbound dropped: a ticket whose pair of classes is not direct.
    InboundNotDirect = 23, "inbound_not_direct";
    /// Inbound direct dropped: the last heartbeat is too old.
    InboundStale = 24, "inbound_heartbeat_stale";
    /// Inbound dropped: from an enrolled pod's address without a ticket.
    NoTicket = 25, "no_ticket";
    /// FLOWS was full: a connection is not listed.
    FlowsFull = 26, "flows_full";
    /// EVENTS was full: a record was lost.
    EventsLost = 27, "events_lost";
    /// Connections of sockets of enrolled pods that were established.
    Established = 28, "established";
}

impl Counter {
    /// From a record's reason; none when a future version wrote it.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::Counter;

    #[test]
    fn numbers_are_positions_and_names_are_unique() {
        for (position, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, position);
            assert_eq!(Counter::from_number(*counter as u32), Some(*counter));
            let same = Counter::ALL.iter().filter(|other| other.name() == counter.name()).count();
            assert_eq!(same, 1, "{}", counter.name());
        }
        assert_eq!(Counter::from_number(Counter::ALL.len() as u32), None);
    }
}
