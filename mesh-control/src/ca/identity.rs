//! SPIFFE identities of workloads: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT` and no other shape.

use std::fmt;

use crate::objects::{
    metadata::{Name, is_label, is_subdomain},
    settings::is_trust_domain,
};

/// An identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Trust domain.
    pub trust_domain: String,
    /// Namespace and ServiceAccount.
    pub account: Name,
}

impl Identity {
    /// Reads an identity; `None` for any other text, also for SPIFFE names of another shape.
    pub fn parse(text: &str) -> Option<Identity> {
        let (trust_domain, path) = text.strip_prefix("spiffe://")?.split_once('/')?;
        let (namespace, account) = path.strip_prefix("ns/")?.split_once("/sa/")?;
        let is_good = is_trust_domain(trust_domain) && is_label(namespace) && is_subdomain(account);
        is_good.then(|| Identity { trust_domain: trust_domain.to_owned(), account: Name::new(namespace, account) })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.account.namespace, self.account.name)
    }
}
