//! What a certificate says of itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A certificate's own words; nothing of it is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Every subject alternative name; a URI as it stands, others with their kind.
    pub names: Vec<String>,
    /// The subject, e.g. `O=cluster.local`.
    pub subject: String,
    /// Hexadecimal, as `openssl x509 -serial` prints it.
    pub serial: String,
    /// Start of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
}

/// It is no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FactsError(String);

impl CertificateFacts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// It is malformed.
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, FactsError> {
        let malformed = |error: &dyn std::fmt::Display| FactsError(error.to_string());
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| malformed(&error))?;
        let extension = certificate.subject_alternative_name().map_err(|error| malformed(&error))?;
        let names = extension.iter().flat_map(|names| &names.value.general_names).map(|name| match name {
            GeneralName::URI(uri) => (*uri).to_owned(),
            other => other.to_string(),
        });
        let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let validity = certificate.validity();
        Ok(Self {
            names: names.collect(),
            subject: certificate.subject().to_string(),
            serial: serial(certificate.raw_serial()),
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        })
    }
}

/// As OpenSSL prints it: without the byte of zeros that DER puts before a high first bit.
fn serial(raw: &[u8]) -> String {
    let number = raw.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(raw);
    crate::digest::hexadecimal(number).to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::serial;

    #[test]
    fn serial_numbers_are_written_as_openssl_does() {
        let shown = [&[0x00, 0xf1, 0x0a][..], &[0x01, 0xab], &[0x00]].map(serial);
        assert_eq!(shown, ["F10A", "01AB", "00"]);
    }
}
