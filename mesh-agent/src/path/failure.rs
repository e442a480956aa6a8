//! Every way in which a connection can fail to run its course: which stage, whose fault, and the label that logs, metrics
//! and dashboards know it by.

use http::StatusCode;
use mesh_api::Identity;

use super::{authorize::Decision, connect::ConnectError, copy::CopyError, origin::OriginError, resolve::ResolveError};
use crate::{
    hbone::{OpenError, ServerError, TunnelError},
    tls::TlsError,
};

/// Why a connection ended otherwise than by both ends.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The agent has no View yet.
    #[error("the agent is starting: it holds no View")]
    Starting,
    /// Where it came from or wanted to go cannot be told.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// A tunnel was not established.
    #[error(transparent)]
    Tunnel(#[from] ServerError),
    /// The certificate is of another workload than the one whose address the tunnel comes from.
    #[error("the peer proved to be {0} and comes from the address of another workload")]
    Mismatch(Identity),
    /// The pod has as many of these as it may.
    #[error("the pod has {0}: no more are taken")]
    Crowded(&'static str),
    /// A CONNECT was malformed; the status was answered.
    #[error("the request was answered {0}")]
    Request(StatusCode),
    /// There is no route.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Policy says no.
    #[error("denied: {}", Because(.0))]
    Denied(Box<Decision>),
    /// The next hop could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// An end was reset while bytes passed.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The agent ended it.
    #[error("{0}")]
    Cut(Cut),
}

/// Why the agent ends a connection that was running.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    /// A new View denies it.
    #[error("denied by a change of policy: {}", Because(.0))]
    Denied(Box<Decision>),
    /// The source's workload has another identity now, or its address is another's.
    #[error("the address of the source is no longer that of a workload with the identity {0}")]
    Identity(Identity),
    /// The destination is no longer in the View: nothing can be judged.
    #[error("the destination is no longer in the View")]
    Unknown,
    /// The pod was withdrawn, or has died.
    #[error("the pod was withdrawn")]
    Withdrawn,
    /// The pod's connections made the agent hold too much, and this one did not move.
    #[error("the pod's connections hold too much memory, and this one does not move")]
    Memory,
    /// The agent is going down.
    #[error("the agent is going down")]
    Draining,
    /// The task was dropped.
    #[error("cancelled")]
    Cancelled,
    /// The task panicked: a bug of the agent's.
    #[error("the agent has a bug: the connection's task panicked, see its log")]
    Panicked,
}

struct Because<'a>(&'a Decision);

impl std::fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.verdict.label())?;
        self.0.policy.as_ref().map_or(Ok(()), |policy| write!(f, " ({policy})"))
    }
}

/// Where on the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the stages of the path")]
pub enum Stage {
    Accept,
    Origin,
    Resolve,
    Authorize,
    Connect,
    Copy,
}

/// Whose fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the two sides, the rules, and ourselves")]
pub enum Blame {
    Downstream,
    Upstream,
    Policy,
    Mesh,
}

/// The label of `response_flags`: ztunnel's where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "named by their labels, below")]
pub enum Flag {
    None,
    Deny,
    Connect,
    TlsFailure,
    H2HandshakeFailure,
    IdentityError,
    NoCertificate,
    Starting,
    NotRedirected,
    BadRequest,
    UnknownDestination,
    Pending,
    NoEndpoint,
    OwnPort,
    Unsupported,
    Reset,
    Withdrawn,
    Overload,
    Draining,
    Panic,
}

impl Flag {
    /// How many there are.
    pub const COUNT: usize = Self::Panic as usize + 1;

    /// All of them, in order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2HandshakeFailure,
        Self::IdentityError,
        Self::NoCertificate,
        Self::Starting,
        Self::NotRedirected,
        Self::BadRequest,
        Self::UnknownDestination,
        Self::Pending,
        Self::NoEndpoint,
        Self::OwnPort,
        Self::Unsupported,
        Self::Reset,
        Self::Withdrawn,
        Self::Overload,
        Self::Draining,
        Self::Panic,
    ];

    /// The label.
    pub fn label(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::NoCertificate => "NO_CERTIFICATE",
            Self::Starting => "STARTING",
            Self::NotRedirected => "NOT_REDIRECTED",
            Self::BadRequest => "BAD_REQUEST",
            Self::UnknownDestination => "UNKNOWN_DESTINATION",
            Self::Pending => "PENDING",
            Self::NoEndpoint => "NO_ENDPOINT",
            Self::OwnPort => "OWN_PORT",
            Self::Unsupported => "UNSUPPORTED",
            Self::Reset => "RESET",
            Self::Withdrawn => "WITHDRAWN",
            Self::Overload => "OVERLOAD",
            Self::Draining => "DRAINING",
            Self::Panic => "PANIC",
        }
    }
}

impl Failure {
    /// The stage that failed.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Starting | Self::Tunnel(_) | Self::Mismatch(_) | Self::Crowded(_) => Stage::Accept,
            Self::Origin(_) | Self::Request(_) => Stage::Origin,
            Self::Resolve(_) => Stage::Resolve,
            Self::Denied(_) => Stage::Authorize,
            Self::Connect(_) => Stage::Connect,
            Self::Copy(_) | Self::Cut(_) => Stage::Copy,
        }
    }

    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Starting | Self::Crowded(_) | Self::Tunnel(ServerError::Credentials(_)) => Blame::Mesh,
            Self::Origin(OriginError::NotRedirected) | Self::Tunnel(_) | Self::Mismatch(_) | Self::Request(_) => {
                Blame::Downstream
            }
            Self::Origin(_) => Blame::Mesh,
            Self::Resolve(ResolveError::NoEndpoint) => Blame::Upstream,
            Self::Resolve(ResolveError::Pending | ResolveError::Unsupported(_)) => Blame::Mesh,
            Self::Resolve(_) => Blame::Downstream,
            Self::Denied(_) | Self::Cut(Cut::Denied(_)) => Blame::Policy,
            Self::Connect(error) => error.blame(),
            Self::Copy(CopyError::Downstream(_)) => Blame::Downstream,
            Self::Copy(CopyError::Upstream(_)) => Blame::Upstream,
            Self::Cut(_) => Blame::Mesh,
        }
    }

    /// The label in logs, metrics and dashboard.
    pub fn flag(&self) -> Flag {
        match self {
            Self::Starting => Flag::Starting,
            Self::Origin(OriginError::NotRedirected) => Flag::NotRedirected,
            Self::Origin(OriginError::Kernel(_)) => Flag::NotRedirected,
            Self::Tunnel(ServerError::Credentials(error)) => credentials_flag(error),
            Self::Origin(OriginError::Identity(_)) | Self::Mismatch(_) | Self::Cut(Cut::Identity(_)) => {
                Flag::IdentityError
            }
            Self::Tunnel(ServerError::Tls(_) | ServerError::Timeout) => Flag::TlsFailure,
            Self::Tunnel(ServerError::Http(_)) => Flag::H2HandshakeFailure,
            Self::Request(_) => Flag::BadRequest,
            Self::Resolve(error) => match error {
                ResolveError::UnknownDestination | ResolveError::NoSuchPort => Flag::UnknownDestination,
                ResolveError::Pending => Flag::Pending,
                ResolveError::NoEndpoint => Flag::NoEndpoint,
                ResolveError::OwnPort => Flag::OwnPort,
                ResolveError::Unsupported(_) => Flag::Unsupported,
            },
            Self::Denied(_) => Flag::Deny,
            Self::Connect(error) => connect_flag(error),
            Self::Copy(_) => Flag::Reset,
            Self::Cut(Cut::Denied(_) | Cut::Unknown) => Flag::Deny,
            Self::Cut(Cut::Withdrawn) => Flag::Withdrawn,
            Self::Cut(Cut::Memory) | Self::Crowded(_) => Flag::Overload,
            Self::Cut(Cut::Draining | Cut::Cancelled) => Flag::Draining,
            Self::Cut(Cut::Panicked) => Flag::Panic,
        }
    }

    /// What policy said, if it was policy.
    pub fn decision(&self) -> Option<&Decision> {
        match self {
            Self::Denied(decision) | Self::Cut(Cut::Denied(decision)) => Some(decision),
            _ => None,
        }
    }

    /// The status that answers a CONNECT which failed before its 200. Source: wire.md, section 1.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Request(status) => *status,
            Self::Denied(_) => StatusCode::UNAUTHORIZED,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

fn credentials_flag(error: &TlsError) -> Flag {
    match error {
        TlsError::NoCertificate(_) | TlsError::NoTrust | TlsError::Expired(_) => Flag::NoCertificate,
        TlsError::Config(_) => Flag::IdentityError,
    }
}

fn connect_flag(error: &ConnectError) -> Flag {
    match error {
        ConnectError::Dial(_) => Flag::Connect,
        ConnectError::Request(_) => Flag::BadRequest,
        ConnectError::Open(OpenError::Tunnel(error)) => match &**error {
            TunnelError::Credentials(error) => credentials_flag(error),
            TunnelError::Dial(_) => Flag::Connect,
            TunnelError::Tls { .. } | TunnelError::Timeout(_) => Flag::TlsFailure,
            TunnelError::Http { .. } => Flag::H2HandshakeFailure,
            TunnelError::Draining => Flag::Draining,
        },
        ConnectError::Open(OpenError::Status(StatusCode::UNAUTHORIZED)) => Flag::Deny,
        ConnectError::Open(OpenError::Source(_)) => Flag::Reset,
        ConnectError::Open(
            OpenError::Status(_)
            | OpenError::Lost(_)
            | OpenError::MayBeDelivered(_)
            | OpenError::Timeout
            | OpenError::Silent,
        ) => Flag::Connect,
    }
}
