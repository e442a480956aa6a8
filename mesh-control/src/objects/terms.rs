//! What a rule of an AuthorizationPolicy asks of a connection, term by term. Terms that only HTTP can answer are
//! refused here by name.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    fields::{Fields, Problems, Spot},
    metadata,
};
use crate::source::document::{Node, Value};

/// What is asked of one connection: every list that is not empty has to match with any of its values; the `not_`
/// lists with none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Identities without `spiffe://`.
    pub principals: Vec<Pattern>,
    /// Negated.
    pub not_principals: Vec<Pattern>,
    /// Namespaces of the source's identity.
    pub namespaces: Vec<Pattern>,
    /// Negated.
    pub not_namespaces: Vec<Pattern>,
    /// Namespace and ServiceAccount of the source's identity.
    pub service_accounts: Vec<(String, String)>,
    /// Negated.
    pub not_service_accounts: Vec<(String, String)>,
    /// Source addresses.
    pub source_ranges: Vec<IpNet>,
    /// Negated.
    pub not_source_ranges: Vec<IpNet>,
    /// Destination addresses.
    pub destination_ranges: Vec<IpNet>,
    /// Negated.
    pub not_destination_ranges: Vec<IpNet>,
    /// Destination ports.
    pub ports: Vec<u16>,
    /// Negated.
    pub not_ports: Vec<u16>,
}

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// The same text.
    Exact(String),
    /// Text that begins so (`abc*`).
    Prefix(String),
    /// Text that ends so (`*abc`).
    Suffix(String),
    /// Any text at all (`*`).
    Presence,
}

const NEEDS_L7: &str = "speaks of HTTP requests; only connections (L4) are judged in this version";

/// Reads `from.source`; a ServiceAccount without a namespace is of the policy's own.
pub fn read_source(fields: &mut Fields<'_>, terms: &mut Terms, namespace: &str) {
    let l7 = ["requestPrincipals", "notRequestPrincipals"];
    l7.iter().for_each(|name| fields.refuse(name, NEEDS_L7));
    for name in ["remoteIpBlocks", "notRemoteIpBlocks"] {
        fields.refuse(name, "addresses out of HTTP headers or the PROXY protocol are not known at L4; use ipBlocks");
    }
    for name in ["trustDomains", "notTrustDomains"] {
        fields.refuse(name, "is not supported; write the trust domain in principals");
    }
    if fields.has("serviceAccounts") || fields.has("notServiceAccounts") {
        for name in ["principals", "notPrincipals", "namespaces", "notNamespaces"] {
            fields.refuse(name, "cannot stand beside serviceAccounts");
        }
    }
    terms.principals = list(fields, "principals", pattern);
    terms.not_principals = list(fields, "notPrincipals", pattern);
    terms.namespaces = list(fields, "namespaces", pattern);
    terms.not_namespaces = list(fields, "notNamespaces", pattern);
    terms.service_accounts =
        list(fields, "serviceAccounts", |spot, problems| service_account(spot, problems, namespace));
    terms.not_service_accounts =
        list(fields, "notServiceAccounts", |spot, problems| service_account(spot, problems, namespace));
    terms.source_ranges = list(fields, "ipBlocks", range);
    terms.not_source_ranges = list(fields, "notIpBlocks", range);
}

/// Reads `to.operation`.
pub fn read_operation(fields: &mut Fields<'_>, terms: &mut Terms) {
    for name in ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"] {
        fields.refuse(name, NEEDS_L7);
    }
    terms.ports = list(fields, "ports", port);
    terms.not_ports = list(fields, "notPorts", port);
}

/// Reads one `when`.
pub fn read_condition(mut fields: Fields<'_>, namespace: &str) -> Terms {
    let mut terms = Terms::default();
    let problems = fields.problems();
    if !fields.has("values") && !fields.has("notValues") {
        problems.push(fields.at(), fields.path_of("values"), "values or notValues is required");
    }
    let Some(key) = fields.required_text("key") else {
        fields.accept(&["values", "notValues"]);
        fields.finish();
        return terms;
    };
    let account = |spot: &Spot<String>, problems: &Problems| service_account(spot, problems, namespace);
    let fields_ref = &mut fields;
    match key.value.as_str() {
        "source.ip" => (terms.source_ranges, terms.not_source_ranges) = both(fields_ref, range),
        "source.namespace" => (terms.namespaces, terms.not_namespaces) = both(fields_ref, pattern),
        "source.principal" => (terms.principals, terms.not_principals) = both(fields_ref, pattern),
        "source.serviceAccount" => (terms.service_accounts, terms.not_service_accounts) = both(fields_ref, account),
        "destination.ip" => (terms.destination_ranges, terms.not_destination_ranges) = both(fields_ref, range),
        "destination.port" => (terms.ports, terms.not_ports) = both(fields_ref, port),
        other => {
            let reason = match other {
                "remote.ip" => "addresses out of HTTP headers are not known at L4; use source.ip".to_owned(),
                "connection.sni" | "source.trustDomain" => format!("{other} is not supported"),
                name if name.starts_with("request.") => format!("{name} {NEEDS_L7}"),
                name => format!("{name:?} is not a known key"),
            };
            key.refuse(problems, reason);
            fields.accept(&["values", "notValues"]);
        }
    }
    fields.finish();
    terms
}

fn both<T>(fields: &mut Fields<'_>, read: impl Fn(&Spot<String>, &Problems) -> Option<T>) -> (Vec<T>, Vec<T>) {
    (list(fields, "values", &read), list(fields, "notValues", &read))
}

/// Reads a list of texts. An empty list is refused: Istio reads it as absent, its author may have meant "nobody".
fn list<T>(fields: &mut Fields<'_>, name: &str, read: impl Fn(&Spot<String>, &Problems) -> Option<T>) -> Vec<T> {
    let problems = fields.problems();
    let is_there = fields.has(name);
    let (at, path) = (fields.at(), fields.path_of(name));
    let items = fields.list(name);
    if is_there && items.is_empty() {
        problems.push(at, path, "must not be empty");
    }
    items.iter().filter_map(|item| text(item, problems)).filter_map(|item| read(&item, problems)).collect()
}

/// The text of an item. Ports are written both as `8080` and as `"8080"`; anything else is text.
fn text(item: &Spot<&Node>, problems: &Problems) -> Option<Spot<String>> {
    let value = match &item.value.value {
        Value::Text(text) if !text.is_empty() => text.clone(),
        Value::Integer(number) => number.to_string(),
        other => {
            item.refuse(
                problems,
                format!("expected text, found {}", if matches!(other, Value::Text(_)) { "none" } else { other.kind() }),
            );
            return None;
        }
    };
    Some(Spot { value, path: item.path.clone(), at: item.at })
}

fn pattern(spot: &Spot<String>, problems: &Problems) -> Option<Pattern> {
    let text = spot.value.as_str();
    let pattern = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => Pattern::Presence,
        (Some(suffix), _) => Pattern::Suffix(suffix.to_owned()),
        (None, Some(prefix)) => Pattern::Prefix(prefix.to_owned()),
        (None, None) => Pattern::Exact(text.to_owned()),
    };
    let rest = match &pattern {
        Pattern::Exact(rest) | Pattern::Prefix(rest) | Pattern::Suffix(rest) => rest.as_str(),
        Pattern::Presence => "",
    };
    if rest.contains('*') {
        spot.refuse(problems, "a wildcard stands alone, first or last: \"*\", \"*abc\" or \"abc*\"");
        return None;
    }
    if text.starts_with("spiffe://") {
        spot.refuse(problems, "principals are written without spiffe://");
        return None;
    }
    Some(pattern)
}

fn service_account(spot: &Spot<String>, problems: &Problems, namespace: &str) -> Option<(String, String)> {
    let (home, account) = spot.value.split_once('/').unwrap_or((namespace, &spot.value));
    if metadata::is_label(home) && metadata::is_subdomain(account) {
        return Some((home.to_owned(), account.to_owned()));
    }
    spot.refuse(
        problems,
        format!("{:?} is not a ServiceAccount, or NAMESPACE/ServiceAccount; no wildcards", spot.value),
    );
    None
}

fn range(spot: &Spot<String>, problems: &Problems) -> Option<IpNet> {
    let parsed = spot.value.parse::<IpNet>().ok().or_else(|| spot.value.parse::<IpAddr>().ok().map(IpNet::from));
    if parsed.is_none() {
        spot.refuse(problems, format!("{:?} is neither an address nor a range like 10.0.0.0/16", spot.value));
    }
    parsed.map(|range| range.trunc())
}

fn port(spot: &Spot<String>, problems: &Problems) -> Option<u16> {
    let port = spot.value.parse().ok().filter(|port| *port > 0);
    if port.is_none() {
        spot.refuse(problems, format!("{:?} is not a port", spot.value));
    }
    port
}
