//! All that is known about one connection: what the access log writes and `meshctl sockets` shows.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{Party, Security};
use crate::{
    path::{Flag, Verdict},
    view::{PolicyName, Service},
};

/// One connection as one end on this node sees it.
#[derive(Debug, Clone)]
pub struct ConnectionRecord {
    /// The pod of this node that it belongs to, `namespace/name`: known from the first moment, whatever else is not.
    pub pod: String,
    /// `outbound` or `inbound`, seen from the pod of this node.
    pub direction: &'static str,
    /// `hbone`, `node_local`, `self`, `passthrough`, `plaintext`; empty while not known.
    pub path: &'static str,
    /// Why it is in the clear; empty when it is not.
    pub plaintext_reason: &'static str,
    /// When it was accepted.
    pub started: SystemTime,
    /// How long it has lived.
    pub duration: Duration,
    /// Who dialled.
    pub source: Party,
    /// Who was reached; its address is the endpoint's.
    pub destination: Party,
    /// What the application dialled.
    pub original_destination: Option<SocketAddr>,
    /// The service that was dialled.
    pub service: Option<Arc<Service>>,
    /// What protects it.
    pub security: Security,
    /// The TLS cipher suite; empty without TLS.
    pub cipher: &'static str,
    /// What policy said on this node; none when it was not asked here.
    pub verdict: Option<Verdict>,
    /// The policy that decided.
    pub policy: Option<PolicyName>,
    /// Policies in dry run that matched.
    pub dry_run: Vec<PolicyName>,
    /// Bytes from source to destination.
    pub to_destination: u64,
    /// Bytes from destination to source.
    pub to_source: u64,
    /// How it ended; `None` while it lives and when both ends ended it.
    pub flag: Flag,
    /// The failure in words; empty without one.
    pub error: String,
}

impl ConnectionRecord {
    /// One of which nothing is known but the direction.
    pub fn new(direction: &'static str) -> Self {
        Self {
            pod: String::new(),
            direction,
            path: "",
            plaintext_reason: "",
            started: SystemTime::now(),
            duration: Duration::ZERO,
            source: Party::default(),
            destination: Party::default(),
            original_destination: None,
            service: None,
            security: Security::None,
            cipher: "",
            verdict: None,
            policy: None,
            dry_run: Vec::new(),
            to_destination: 0,
            to_source: 0,
            flag: Flag::None,
            error: String::new(),
        }
    }
}
