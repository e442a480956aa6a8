//! Reads a certificate signing request. Of everything a request may ask for, only the public key is used; a request
//! that names anything but the one identity it was sent for is refused, so that nobody believes to have got more.

use rcgen::SubjectPublicKeyInfo;
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY},
    pem::Pem,
    prelude::FromDer,
};

use super::identity::Identity;

/// Why a request is not signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not one PEM block with a request in it.
    #[error("not one PEM certificate request")]
    Unreadable,
    /// The request is not signed by the key it names: no proof that the caller has that key.
    #[error("the request is not signed by its own key")]
    NotSigned,
    /// RSA, Ed25519 or another curve.
    #[error("the key is not ECDSA P-256")]
    Key,
    /// No subject alternative name, or not exactly the identity that was asked for.
    #[error("the subject alternative name is not exactly the identity asked for")]
    Name,
}

/// The public key of a request for `identity`.
///
/// # Errors
/// The caller is at fault in all cases.
pub fn public_key(pem: &str, identity: &Identity) -> Result<SubjectPublicKeyInfo, RequestError> {
    let mut blocks = Pem::iter_from_buffer(pem.as_bytes());
    let block = blocks.next().and_then(Result::ok).ok_or(RequestError::Unreadable)?;
    let is_request = block.label == "CERTIFICATE REQUEST" || block.label == "NEW CERTIFICATE REQUEST";
    if !is_request || blocks.next().is_some() {
        return Err(RequestError::Unreadable);
    }
    public_key_of_der(&block.contents, identity)
}

/// The same of what is in the PEM block.
pub(crate) fn public_key_of_der(der: &[u8], identity: &Identity) -> Result<SubjectPublicKeyInfo, RequestError> {
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| RequestError::Unreadable)?;
    if !rest.is_empty() {
        return Err(RequestError::Unreadable);
    }
    let key = &request.certification_request_info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
        return Err(RequestError::Key);
    }
    request.verify_signature().map_err(|_| RequestError::NotSigned)?;
    check_names(&request, &identity.to_string())?;
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| RequestError::Key)
}

fn check_names(request: &X509CertificationRequest<'_>, identity: &str) -> Result<(), RequestError> {
    let mut names = Vec::new();
    for extension in request.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(list) = extension {
            names.extend(&list.general_names);
        }
    }
    match names.as_slice() {
        [GeneralName::URI(uri)] if *uri == identity => Ok(()),
        _ => Err(RequestError::Name),
    }
}
