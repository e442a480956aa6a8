//! Who asks: an agent and its node, by the token that came with the request. What a token is worth is said by a file of
//! tokens or by an API server; nothing that the caller says of itself counts.

use std::sync::Arc;

use tonic::{Status, metadata::MetadataMap};

use super::token::{Shown, Tokens};
use crate::{kubernetes::review::Reviews, objects::metadata::Name, publish::Snapshot};

/// A node agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The node it serves.
    pub node: String,
    /// What it showed of a file of tokens; nothing in Kubernetes.
    pub token: Option<Shown>,
    /// The pod that it is, with its uid; nothing outside Kubernetes.
    pub pod: Option<(Name, String)>,
}

/// Who says whose a token is.
pub enum Callers {
    /// A file of tokens.
    Tokens(Arc<Tokens>),
    /// An API server.
    Kubernetes(Reviews),
}

/// Why a caller is no agent, or what it may have cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    /// No token, or not one of the file.
    #[error("no token of a node agent came with the request")]
    Token,
    /// The API server does not vouch for the token: forged, expired, or its pod is gone.
    #[error("the API server refuses the token: {0}")]
    Refused(String),
    /// The token is for somebody else to read.
    #[error("the token is not for the audience {0}")]
    Audience(String),
    /// The token is a good one of somebody else.
    #[error("the token is of {found}, not of the agents' ServiceAccount {expected}")]
    Account {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: Name,
    },
    /// The token is not bound to a pod, so nobody can say on which node it is.
    #[error("the token is not bound to a pod on a node")]
    Unbound,
    /// The pod of the token has gone, or runs elsewhere than the token says.
    #[error("the token's pod {0} is not the one that runs under this name and on this node now")]
    Pod(Name),
    /// The API server could not be asked.
    #[error("the API server could not be asked: {0}")]
    Unanswered(String),
}

impl CallerError {
    /// The metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            CallerError::Token => "token",
            CallerError::Refused(_) => "token_refused",
            CallerError::Audience(_) => "audience",
            CallerError::Account { .. } => "account",
            CallerError::Unbound => "unbound",
            CallerError::Pod(_) => "pod",
            CallerError::Unanswered(_) => "api_server",
        }
    }

    /// What the caller learns.
    pub fn status(&self) -> Status {
        match self {
            CallerError::Unanswered(_) => Status::unavailable("callers cannot be told now"),
            _ => Status::unauthenticated("not authenticated"),
        }
    }
}

impl Callers {
    /// The agent whose token a request carries as `authorization: Bearer TOKEN`.
    ///
    /// # Errors
    /// See [`CallerError`]; for the log, never for the caller.
    pub async fn caller(&self, metadata: &MetadataMap) -> Result<Caller, CallerError> {
        match self {
            Callers::Tokens(tokens) => {
                let shown = tokens.shown(metadata).ok_or(CallerError::Token)?;
                Ok(Caller { node: shown.node.clone(), token: Some(shown), pod: None })
            }
            Callers::Kubernetes(reviews) => reviews.caller(bearer(metadata).ok_or(CallerError::Token)?).await,
        }
    }

    /// True while the agent's token is still its node's, and the pod that it is is known to be there.
    pub fn is_there(&self, caller: &Caller) -> bool {
        match self {
            Callers::Tokens(tokens) => caller.token.as_ref().is_none_or(|shown| tokens.holds(shown)),
            Callers::Kubernetes(reviews) => {
                caller.pod.as_ref().is_none_or(|(name, uid)| reviews.store.has_pod(name, uid))
            }
        }
    }

    /// True when a workload of the ServiceAccount runs on the agent's node, now.
    ///
    /// # Errors
    /// The API server could not be asked.
    pub async fn runs(&self, caller: &Caller, account: &Name, state: &Snapshot) -> Result<bool, CallerError> {
        match self {
            Callers::Tokens(_) => Ok(state.runs(&caller.node, account)),
            Callers::Kubernetes(reviews) => {
                Ok(state.has_entry(&caller.node, account) || reviews.runs(&caller.node, account).await?)
            }
        }
    }
}

/// The token of a request.
pub fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let token = metadata.get("authorization")?.to_str().ok()?.strip_prefix("Bearer ")?;
    Some(token).filter(|token| !token.is_empty())
}
