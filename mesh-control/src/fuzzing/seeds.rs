//! Seeds that cannot be written by hand: made of valid values.

use mesh_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_CONFIG_TYPE,
    proto::{discovery::DeltaDiscoveryRequest, rpc},
};
use prost::Message;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, SanType, SignatureAlgorithm};

use super::WEB;

/// Target, file and content of each.
pub(super) fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let good = request(&[WEB], &PKCS_ECDSA_P256_SHA256);
    let two = request(&[WEB, "spiffe://cluster.local/ns/default/sa/db"], &PKCS_ECDSA_P256_SHA256);
    let curve = request(&[WEB], &PKCS_ECDSA_P384_SHA384);
    let unnamed = request(&[], &PKCS_ECDSA_P256_SHA256);
    let mut unsigned = good.1.clone();
    *unsigned.last_mut().expect("a signature") ^= 1;
    vec![
        ("certificate_request", "good.pem", good.0.into_bytes()),
        ("certificate_request", "good.der", good.1),
        ("certificate_request", "bad-two-names.der", two.1),
        ("certificate_request", "bad-curve.der", curve.1),
        ("certificate_request", "bad-unnamed.der", unnamed.1),
        ("certificate_request", "bad-unsigned.der", unsigned),
        ("discovery_requests", "good-all", conversation(&all())),
        ("discovery_requests", "good-on-demand", conversation(&on_demand())),
        ("discovery_requests", "bad-half", conversation(&all())[..20].to_vec()),
    ]
}

/// PEM and DER.
fn request(names: &[&str], algorithm: &'static SignatureAlgorithm) -> (String, Vec<u8>) {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.iter().map(|name| SanType::URI((*name).try_into().expect("ascii"))).collect();
    let key = KeyPair::generate_for(algorithm).expect("a key");
    let request = params.serialize_request(&key).expect("a request");
    (request.pem().expect("PEM"), request.der().to_vec())
}

fn conversation(requests: &[DeltaDiscoveryRequest]) -> Vec<u8> {
    requests.iter().flat_map(Message::encode_length_delimited_to_vec).collect()
}

fn asking(type_url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn answering(type_url: &str, nonce: u64, refusal: Option<&str>) -> DeltaDiscoveryRequest {
    let status = |message: &str| rpc::Status { code: 3, message: message.to_owned(), ..rpc::Status::default() };
    DeltaDiscoveryRequest {
        response_nonce: nonce.to_string(),
        error_detail: refusal.map(status),
        ..asking(type_url, &[])
    }
}

/// As an agent begins, with what it holds already, and its answers.
fn all() -> Vec<DeltaDiscoveryRequest> {
    let held = [("shop/gone".to_owned(), "0123456789abcdef0123456789abcdef".to_owned())];
    vec![
        asking(MESH_CONFIG_TYPE, &["*"]),
        DeltaDiscoveryRequest {
            initial_resource_versions: held.into_iter().collect(),
            ..asking(AUTHORIZATION_TYPE, &["*"])
        },
        asking(ADDRESS_TYPE, &["*"]),
        answering(MESH_CONFIG_TYPE, 1, None),
        answering(AUTHORIZATION_TYPE, 2, Some("shop/web: scope: 7 is unknown")),
        answering(ADDRESS_TYPE, 3, None),
        asking("type.googleapis.com/envoy.config.cluster.v3.Cluster", &[]),
    ]
}

/// As a pod dials, and stops to.
fn on_demand() -> Vec<DeltaDiscoveryRequest> {
    let no_wildcard = DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec!["*".to_owned()],
        ..asking(ADDRESS_TYPE, &["*", "/10.244.0.5", "shop/web.shop.svc.cluster.local", "/not-an-address"])
    };
    let release = DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec!["/10.244.0.5".to_owned()],
        ..asking(ADDRESS_TYPE, &[])
    };
    vec![no_wildcard, answering(ADDRESS_TYPE, 1, None), release, asking(ADDRESS_TYPE, &["/10.244.0.5"])]
}
