//! One question to control for one certificate. Runs beside the others; what comes of it is the keeper's to use.

use std::{sync::Arc, time::Duration};

use mesh_api::Identity;
use mesh_api::proto::ca::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient};
use mesh_api::proto::wellknown::{Struct, Value, value::Kind};

use crate::control::Line;

use super::{CertificateError, CertificateRequest, TrustBundle, request::Issued};

/// An answer that takes longer has failed.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// What is asked for; control may give less. Source: Istio's default.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Why an attempt gave no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    #[error("control refused: {0}")]
    Refused(Box<tonic::Status>),
    #[error("control did not answer within {} s", ANSWER_LIMIT.as_secs())]
    Silent,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// For whom, and what came of it.
pub(super) type Attempt = (Identity, Result<Issued, AttemptError>);

pub(super) async fn attempt(line: Line, identity: Identity, bundle: Option<Arc<TrustBundle>>) -> Attempt {
    let result = ask(line, &identity, bundle).await;
    (identity, result)
}

async fn ask(line: Line, identity: &Identity, bundle: Option<Arc<TrustBundle>>) -> Result<Issued, AttemptError> {
    let request = CertificateRequest::new(identity)?;
    let mut client = IstioCertificateServiceClient::with_interceptor(line.channel, line.bearer);
    let name = Value { kind: Some(Kind::StringValue(identity.to_string())) };
    let message = IstioCertificateRequest {
        csr: request.csr_pem.clone(),
        validity_duration: LIFETIME.as_secs() as i64,
        metadata: Some(Struct { fields: [("ImpersonatedIdentity".to_owned(), name)].into() }),
    };
    let answer = tokio::time::timeout(ANSWER_LIMIT, client.create_certificate(message)).await;
    let answer = answer.map_err(|_| AttemptError::Silent)?;
    let answer = answer.map_err(|status| AttemptError::Refused(Box::new(status)))?;
    Ok(request.accept(&answer.into_inner().cert_chain, bundle)?)
}
