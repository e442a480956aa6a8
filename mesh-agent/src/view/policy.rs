//! Authorization policies as data; `path::authorize` judges by them.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

/// Key of a policy: namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName {
    /// The policy's namespace.
    pub namespace: Arc<str>,
    /// Its name there.
    pub name: Arc<str>,
}

impl std::fmt::Display for PolicyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which workloads a policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of the mesh.
    Global,
    /// All of its namespace.
    Namespace,
    /// Those whose `Workload::policies` name it.
    Selector,
}

/// What a match does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Lets matching connections through; others need another match.
    Allow,
    /// Refuses matching connections, whatever allows them.
    Deny,
}

/// One policy: rules are ORed; without rules it never matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its key.
    pub name: PolicyName,
    /// Whom it selects.
    pub scope: Scope,
    /// What a match does.
    pub action: Action,
    /// Matches are only told, never enforced.
    pub is_dry_run: bool,
    /// ORed.
    pub rules: Vec<Rule>,
    /// It stands in for a policy that cannot be read, and lets nobody through.
    pub is_stand_in: bool,
}

/// Clauses are ANDed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// ANDed.
    pub clauses: Vec<Clause>,
}

/// Matches are ORed; a clause without matches matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// ORed.
    pub matches: Vec<Match>,
}

/// Kinds of term are ANDed, values of one kind ORed; a match without any term never matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Match {
    /// Of the source's identity.
    pub namespaces: Vec<TextMatch>,
    /// None of these.
    pub not_namespaces: Vec<TextMatch>,
    /// The source's identity without `spiffe://`.
    pub principals: Vec<TextMatch>,
    /// None of these.
    pub not_principals: Vec<TextMatch>,
    /// The source's namespace and service account.
    pub service_accounts: Vec<ServiceAccount>,
    /// None of these.
    pub not_service_accounts: Vec<ServiceAccount>,
    /// The source's address.
    pub source_ranges: Vec<AddressRange>,
    /// None of these.
    pub not_source_ranges: Vec<AddressRange>,
    /// The workload's address that is reached.
    pub destination_ranges: Vec<AddressRange>,
    /// None of these.
    pub not_destination_ranges: Vec<AddressRange>,
    /// The workload's port that is reached.
    pub destination_ports: Vec<u16>,
    /// None of these.
    pub not_destination_ports: Vec<u16>,
}

/// A namespace and service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// The namespace.
    pub namespace: String,
    /// The service account.
    pub name: String,
}

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextMatch {
    /// All of it.
    Exact(String),
    /// How it begins.
    Prefix(String),
    /// How it ends.
    Suffix(String),
    /// Any text, but there must be one.
    Presence,
}

/// A range of addresses; v4-mapped addresses are compared as IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange(pub IpNet);

impl AddressRange {
    /// Whether the range holds this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}
