//! Stage 4: may this source reach this destination? Synchronous, pure, the only maker of a [`Permit`], and a Permit is what
//! `connect` asks for. Judges by the policies of the View alone; never by an identity that an address suggests.

use std::net::IpAddr;

use mesh_api::Identity;

use super::resolve::{NextHop, Route};
use crate::view::{Action, Clause, Match, Policy, PolicyName, Rule, ServiceAccount, TextMatch, View, Workload};

/// Who asks: what was proved about the far end of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Proved by the kernel (a pod of this node) or by a verified certificate; none for plaintext from outside.
    pub identity: Option<Identity>,
    /// The address it came from; for ipBlocks and logs, never for an identity.
    pub address: IpAddr,
}

/// What the policies say, and which of them said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The outcome and its reason.
    pub verdict: Verdict,
    /// The policy that decided: the first that matched, or for [`Verdict::NoAllowMatched`] the first ALLOW that selects the
    /// destination. None when no policy selects it.
    pub policy: Option<PolicyName>,
    /// Policies in dry run that would have denied (DENY matched) or were the match (ALLOW); they decide nothing.
    pub dry_run: Vec<PolicyName>,
}

/// Why a connection is allowed or denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// No ALLOW policy selects the destination and no DENY matched.
    NoPolicy,
    /// A rule of an ALLOW policy matched.
    Allowed,
    /// A rule of a DENY policy matched.
    Denied,
    /// ALLOW policies select the destination and none of their rules matched.
    NoAllowMatched,
    /// The destination names a policy that the View does not hold.
    UnknownPolicy,
}

impl Verdict {
    /// Whether the connection may go on.
    pub fn is_allowed(self) -> bool {
        matches!(self, Self::NoPolicy | Self::Allowed)
    }

    /// A stable label for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoPolicy => "no_policy",
            Self::Allowed => "allowed_by_policy",
            Self::Denied => "denied_by_policy",
            Self::NoAllowMatched => "no_allow_matched",
            Self::UnknownPolicy => "unknown_policy",
        }
    }
}

/// Proof that a route was allowed. Holds the route, so that nothing else can be dialled with it; made by [`authorize`] only.
///
/// ```
/// use mesh_agent::path::{Permit, Route};
/// fn read(permit: &Permit) -> &Route {
///     permit.route()
/// }
/// ```
///
/// ```compile_fail,E0451
/// use mesh_agent::path::{Permit, Route};
/// fn forge(route: Route) -> Permit {
///     Permit { route, decision: None }
/// }
/// ```
#[derive(Debug)]
pub struct Permit {
    route: Route,
    decision: Option<Decision>,
}

impl Permit {
    /// Where the holder may go.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// What was decided here; none when the destination's own node decides, or nobody.
    pub fn decision(&self) -> Option<&Decision> {
        self.decision.as_ref()
    }
}

/// Judges a route. A destination of this node is judged by its policies; one of another node by its own agent, which sees
/// our certificate; one outside the mesh, and a pod that reaches itself, by nobody.
///
/// # Errors
/// The decision that denies.
pub fn authorize(view: &View, source: &Source, route: Route) -> Result<Permit, Decision> {
    let decision = match &route.next_hop {
        NextHop::Local { is_self: true, .. } => None,
        NextHop::Local { workload, address, .. } => Some(judge(view, source, workload, address.ip(), address.port())),
        NextHop::Hbone { .. } | NextHop::Plaintext { .. } => None,
    };
    match decision {
        Some(decision) if !decision.verdict.is_allowed() => Err(decision),
        decision => Ok(Permit { route, decision }),
    }
}

/// Judges a connection by the destination's policies: DENY first; without any ALLOW that selects it allowed; else one of
/// them must match. A policy that the destination names and the View does not hold denies. Cost: the rules of the policies
/// that select the destination.
pub fn judge(view: &View, source: &Source, destination: &Workload, address: IpAddr, port: u16) -> Decision {
    let asked = Asked { source, address: address.to_canonical(), port };
    let mut judgement = Judgement::default();
    for policy in view.policies_over(&destination.namespace) {
        judgement.add(policy, &asked);
    }
    for name in &destination.policies {
        match view.policy(name) {
            Some(policy) => judgement.add(policy, &asked),
            None => judgement.unknown = judgement.unknown.or_else(|| Some(name.clone())),
        }
    }
    judgement.decision()
}

/// What the policies seen so far say.
#[derive(Default)]
struct Judgement {
    denied: Option<PolicyName>,
    unknown: Option<PolicyName>,
    allowed: Option<PolicyName>,
    first_allow: Option<PolicyName>,
    dry_run: Vec<PolicyName>,
}

impl Judgement {
    fn add(&mut self, policy: &Policy, asked: &Asked<'_>) {
        let matches = policy.rules.iter().any(|rule| asked.matches_rule(rule));
        if policy.is_dry_run {
            if matches {
                self.dry_run.push(policy.name.clone());
            }
            return;
        }
        let first = match (policy.action, matches) {
            (Action::Deny, true) => &mut self.denied,
            (Action::Deny, false) => return,
            (Action::Allow, true) => &mut self.allowed,
            (Action::Allow, false) => &mut self.first_allow,
        };
        if first.is_none() {
            *first = Some(policy.name.clone());
        }
    }

    fn decision(self) -> Decision {
        let (verdict, policy) = match self {
            Self { denied: Some(policy), .. } => (Verdict::Denied, Some(policy)),
            Self { unknown: Some(policy), .. } => (Verdict::UnknownPolicy, Some(policy)),
            Self { allowed: Some(policy), .. } => (Verdict::Allowed, Some(policy)),
            Self { first_allow: Some(policy), .. } => (Verdict::NoAllowMatched, Some(policy)),
            _ => (Verdict::NoPolicy, None),
        };
        Decision { verdict, policy, dry_run: self.dry_run }
    }
}

/// One question to a rule.
struct Asked<'a> {
    source: &'a Source,
    address: IpAddr,
    port: u16,
}

impl Asked<'_> {
    fn matches_rule(&self, rule: &Rule) -> bool {
        rule.clauses.iter().all(|clause| self.matches_clause(clause))
    }

    fn matches_clause(&self, clause: &Clause) -> bool {
        clause.matches.is_empty() || clause.matches.iter().any(|one| self.matches(one))
    }

    /// Kinds of term are ANDed; a match without any never matches.
    fn matches(&self, one: &Match) -> bool {
        let identity = self.source.identity.as_ref();
        let namespace = identity.map(Identity::namespace);
        let principal = |text: &TextMatch| matches_principal(text, identity);
        let account = |wanted: &ServiceAccount| is_account(wanted, identity);
        let source = self.source.address.to_canonical();
        let mut terms = Terms::default();
        terms.any(&one.namespaces, |text| matches_text(text, namespace));
        terms.none(&one.not_namespaces, |text| matches_text(text, namespace));
        terms.any(&one.principals, principal);
        terms.none(&one.not_principals, principal);
        terms.any(&one.service_accounts, account);
        terms.none(&one.not_service_accounts, account);
        terms.any(&one.source_ranges, |range| range.contains(source));
        terms.none(&one.not_source_ranges, |range| range.contains(source));
        terms.any(&one.destination_ranges, |range| range.contains(self.address));
        terms.none(&one.not_destination_ranges, |range| range.contains(self.address));
        terms.any(&one.destination_ports, |port| *port == self.port);
        terms.none(&one.not_destination_ports, |port| *port == self.port);
        terms.hold()
    }
}

/// The terms of one match, ANDed.
#[derive(Default)]
struct Terms {
    are_some: bool,
    failed: bool,
}

impl Terms {
    fn any<T>(&mut self, wanted: &[T], holds: impl Fn(&T) -> bool) {
        self.term(wanted, |wanted| wanted.iter().any(&holds));
    }

    fn none<T>(&mut self, unwanted: &[T], holds: impl Fn(&T) -> bool) {
        self.term(unwanted, |unwanted| !unwanted.iter().any(&holds));
    }

    fn term<T>(&mut self, values: &[T], holds: impl Fn(&[T]) -> bool) {
        if !values.is_empty() {
            self.are_some = true;
            self.failed = self.failed || !holds(values);
        }
    }

    fn hold(&self) -> bool {
        self.are_some && !self.failed
    }
}

fn matches_text(wanted: &TextMatch, text: Option<&str>) -> bool {
    let Some(text) = text else { return false };
    match wanted {
        TextMatch::Exact(exact) => text == exact,
        TextMatch::Prefix(prefix) => text.starts_with(prefix.as_str()),
        TextMatch::Suffix(suffix) => text.ends_with(suffix.as_str()),
        TextMatch::Presence => !text.is_empty(),
    }
}

/// Principals are compared without `spiffe://`.
fn matches_principal(wanted: &TextMatch, identity: Option<&Identity>) -> bool {
    match (wanted, identity) {
        (_, None) => false,
        (TextMatch::Presence, Some(_)) => true,
        (_, Some(identity)) => matches_text(wanted, Some(&identity.principal())),
    }
}

fn is_account(wanted: &ServiceAccount, identity: Option<&Identity>) -> bool {
    identity
        .is_some_and(|identity| identity.namespace() == wanted.namespace && identity.service_account() == wanted.name)
}
