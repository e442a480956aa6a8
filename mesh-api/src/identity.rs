//! The name of a workload: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`. Made only by checked constructors, so
//! an [`Identity`] in hand is well formed; proves nothing by itself (a certificate or the kernel does).

use std::{fmt, sync::Arc};

/// Longest SPIFFE ID in bytes. Source: SPIFFE-ID specification, section 2.3.
const MAX_LENGTH: usize = 2048;

/// A workload's SPIFFE name. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Arc<Parts>);

#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Parts {
    trust_domain: String,
    namespace: String,
    service_account: String,
}

/// Why a text is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The text does not have the one shape that the mesh uses.
    #[error("not of the form spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT")]
    Shape,
    /// More than 2048 bytes.
    #[error("longer than {MAX_LENGTH} bytes")]
    TooLong,
    /// A character that SPIFFE does not allow there.
    #[error("{0} is empty or has a character other than letters, digits, '.', '-' and '_'")]
    Character(&'static str),
}

impl Identity {
    /// Joins the three parts.
    ///
    /// # Errors
    /// A part is empty, `.` or `..`, or has a character outside SPIFFE's set; the whole is too long.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, IdentityError> {
        let domain_is_valid = !trust_domain.is_empty()
            && trust_domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b));
        if !domain_is_valid {
            return Err(IdentityError::Character("trust domain"));
        }
        for (part, name) in [(namespace, "namespace"), (service_account, "service account")] {
            let is_valid = !matches!(part, "" | "." | "..")
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
            if !is_valid {
                return Err(IdentityError::Character(name));
            }
        }
        let fixed = "spiffe:///ns//sa/".len();
        if fixed + trust_domain.len() + namespace.len() + service_account.len() > MAX_LENGTH {
            return Err(IdentityError::TooLong);
        }
        Ok(Self(Arc::new(Parts {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        })))
    }

    /// Reads the URI form, as it stands in a certificate.
    ///
    /// # Errors
    /// The text has another shape; nothing is repaired (no lower-casing, no percent decoding).
    pub fn parse(uri: &str) -> Result<Self, IdentityError> {
        if uri.len() > MAX_LENGTH {
            return Err(IdentityError::TooLong);
        }
        let rest = uri.strip_prefix("spiffe://").ok_or(IdentityError::Shape)?;
        let mut parts = rest.split('/');
        let shape = [parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next()];
        let [Some(domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None] = shape else {
            return Err(IdentityError::Shape);
        };
        Self::new(domain, namespace, account)
    }

    /// The trust domain, e.g. `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.0.trust_domain
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.0.service_account
    }

    /// The name as policies spell principals: without `spiffe://`.
    pub fn principal(&self) -> String {
        let Parts { trust_domain, namespace, service_account } = &*self.0;
        format!("{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { trust_domain, namespace, service_account } = &*self.0;
        write!(f, "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::{Identity, IdentityError};

    #[test]
    fn print_then_parse_is_identity() {
        let web = Identity::new("cluster.local", "default", "web").unwrap();
        assert_eq!(web.to_string(), "spiffe://cluster.local/ns/default/sa/web");
        assert_eq!(Identity::parse(&web.to_string()), Ok(web.clone()));
        assert_eq!(web.principal(), "cluster.local/ns/default/sa/web");
    }

    #[test]
    fn other_shapes_are_refused() {
        let shapes = [
            "",
            "spiffe://",
            "spiffe://td",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/c",
            "https://td/ns/a/sa/b",
            "spiffe://td/sa/b/ns/a",
            "SPIFFE://td/ns/a/sa/b",
            "spiffe://td/NS/a/sa/b",
        ];
        for text in shapes {
            assert_eq!(Identity::parse(text), Err(IdentityError::Shape), "{text}");
        }
        for text in [
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td:1/ns/a/sa/b",
            "spiffe://u@td/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/../sa/b",
            "spiffe://td/ns/a/sa/b?q",
            "spiffe://td/ns/a/sa/b#f",
            "spiffe://td/ns/a%2fb/sa/b",
            "spiffe://td/ns/a/sa/b\0",
        ] {
            assert!(matches!(Identity::parse(text), Err(IdentityError::Character(_))), "{text}");
        }
        let long = format!("spiffe://td/ns/a/sa/{}", "b".repeat(2048));
        assert_eq!(Identity::parse(&long), Err(IdentityError::TooLong));
    }
}
