//! Who gets which certificate and who gets none, asked of the service as an agent asks it.

use std::time::{Duration, SystemTime};

use mesh_api::proto::ca::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType, SignatureAlgorithm,
};
use tonic::{Code, Status};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    pem::Pem,
};

use super::{identity::Identity, request};
use crate::testing::{Running, TOKEN_A, TOKEN_B, authorized};

const PODS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {nodeName: node-a, serviceAccountName: web}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop}
spec: {nodeName: node-b, serviceAccountName: db}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: shop}
spec: {nodeName: node-a, serviceAccountName: done}
status: {phase: Succeeded}
";

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// `openssl req -newkey rsa:1024 -addext subjectAltName=critical,URI:...`: a key that can be factored.
const RSA_1024: &str = "-----BEGIN CERTIFICATE REQUEST-----\n\
MIIBhTCB7wIBADAAMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDmEQTgLBu2\n\
xVBEOUVKtmCBw5MmZilfuPUMIr96dtefBpqQ/ftxp+VvgtfU3S81BlyM2BqJ9z7W\n\
yLNyWIMGcYZXW+AsEehzl1eBm//DfzEpSsb5SKFaJJMp6lWTyHOUm22QzGs9B/oT\n\
YA+gdPRtAx8j+FZm5SrQGfRjCWqw1zzl6wIDAQABoEYwRAYJKoZIhvcNAQkOMTcw\n\
NTAzBgNVHREBAf8EKTAnhiVzcGlmZmU6Ly9jbHVzdGVyLmxvY2FsL25zL3Nob3Av\n\
c2Evd2ViMA0GCSqGSIb3DQEBCwUAA4GBAC41O05l5uBA2OOiHRrFemJVocDgP6M+\n\
SpRxbav46HANLsrnEdstdud2WyUyV3HAZihbNS6ki4BKTqBareZpflVi7wTrGE0Q\n\
Bdpt2ZP3BglizneDzMAf+7wVQOS47UkbPB8A+IrYpivi/Ddid9nt3BAz8cU0C1A9\n\
iSb3D4r4OOhh\n\
-----END CERTIFICATE REQUEST-----\n";

pub fn csr_of(names: Vec<SanType>, algorithm: &'static SignatureAlgorithm) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    let key = KeyPair::generate_for(algorithm).expect("a key");
    params.serialize_request(&key).expect("a request").pem().expect("PEM")
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ascii"))
}

pub fn csr(identity: &str) -> String {
    csr_of(vec![uri(identity)], &PKCS_ECDSA_P256_SHA256)
}

/// A request of `identity` with a CSR.
pub fn asking(identity: Option<&str>, csr: String, seconds: i64) -> IstioCertificateRequest {
    let value = |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.to_owned())) };
    let fields = identity.map(|text| ("ImpersonatedIdentity".to_owned(), value(text))).into_iter().collect();
    IstioCertificateRequest { csr, validity_duration: seconds, metadata: Some(prost_types::Struct { fields }) }
}

pub async fn ask(daemon: &Running, token: &str, asking: IstioCertificateRequest) -> Result<Vec<String>, Status> {
    let mut client = IstioCertificateServiceClient::new(daemon.channel().await);
    client.create_certificate(authorized(token, asking)).await.map(|response| response.into_inner().cert_chain)
}

fn der(pem: &str) -> Vec<u8> {
    let mut blocks = Pem::iter_from_buffer(pem.as_bytes());
    let block = blocks.next().expect("a block").expect("PEM");
    assert!(blocks.next().is_none(), "one certificate each");
    block.contents
}

fn parsed(der: &[u8]) -> X509Certificate<'_> {
    x509_parser::parse_x509_certificate(der).expect("X.509").1
}

fn lifetime(certificate: &X509Certificate<'_>) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let end = u64::try_from(certificate.validity().not_after.timestamp()).expect("after 1970");
    Duration::from_secs(end.saturating_sub(now))
}

fn is_about(found: Duration, expected: Duration) -> bool {
    found.abs_diff(expected) <= Duration::from_secs(10)
}

#[tokio::test]
async fn a_certificate_is_an_x509_svid_of_the_one_identity() {
    let daemon = Running::on(&[("pods.yaml", PODS)]).await;
    // Everything the CSR asks for beside the identity is ignored: a subject, CA rights, a usage.
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(WEB)];
    params.distinguished_name.push(DnType::CommonName, "root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let csr = params.serialize_request(&key).expect("a request").pem().expect("PEM");

    let chain = ask(&daemon, TOKEN_A, asking(Some(WEB), csr, 0)).await.expect("issued");
    let [leaf, root] = chain.as_slice() else { panic!("leaf and root: {chain:?}") };
    assert_eq!(root, &daemon.root);
    let (leaf, root) = (der(leaf), der(root));
    let (leaf, root) = (parsed(&leaf), parsed(&root));
    leaf.verify_signature(Some(root.public_key())).expect("signed by the root");
    assert_eq!(leaf.public_key().subject_public_key.data.as_ref(), key.public_key_raw());

    let names = leaf.subject_alternative_name().expect("readable").expect("there");
    assert!(matches!(names.value.general_names.as_slice(), [GeneralName::URI(uri)] if *uri == WEB));
    assert!(names.critical && leaf.subject().iter().next().is_none(), "RFC 5280: critical where the subject is empty");
    let usage = leaf.key_usage().expect("readable").expect("there");
    assert!(
        usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign() && !usage.value.crl_sign()
    );
    let purposes = leaf.extended_key_usage().expect("readable").expect("there").value;
    assert!(purposes.server_auth && purposes.client_auth && !purposes.any);
    assert!(!leaf.is_ca());
    let is_keyed = leaf
        .extensions()
        .iter()
        .any(|extension| matches!(extension.parsed_extension(), ParsedExtension::AuthorityKeyIdentifier(_)));
    assert!(is_keyed);
    assert!(is_about(lifetime(&leaf), Duration::from_secs(86_400)));
    let backdated = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs() as i64
        - leaf.validity().not_before.timestamp();
    assert!((60..=70).contains(&backdated), "{backdated}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_lifetime_is_what_was_asked_up_to_the_longest() {
    let daemon = Running::on(&[("pods.yaml", PODS)]).await;
    for (asked, expected) in [(600, 600), (0, 86_400), (-5, 86_400), (i64::MAX, 86_400), (1, 10)] {
        let chain = ask(&daemon, TOKEN_A, asking(Some(WEB), csr(WEB), asked)).await.expect("issued");
        let leaf = der(&chain[0]);
        let found = lifetime(&parsed(&leaf));
        assert!(is_about(found, Duration::from_secs(expected)), "{asked}: {found:?}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn everybody_else_is_refused_without_learning_why() {
    let daemon = Running::on(&[("pods.yaml", PODS)]).await;
    let other = "spiffe://cluster.local/ns/shop/sa/db";
    let good = || csr(WEB);
    let p256 = |names| csr_of(names, &PKCS_ECDSA_P256_SHA256);
    let email = || SanType::Rfc822Name("web@shop.example".try_into().expect("ascii"));
    let dns = || SanType::DnsName("web.shop".try_into().expect("ascii"));
    let denied = Code::PermissionDenied;
    let cases = [
        ("no token", "", Some(WEB), good(), Code::Unauthenticated),
        ("a wrong token", "0123456789abcdef", Some(WEB), good(), Code::Unauthenticated),
        ("another node's token", TOKEN_B, Some(WEB), good(), denied),
        ("a workload of another node", TOKEN_A, Some(other), csr(other), denied),
        ("a workload that has ended", TOKEN_A, Some("spiffe://cluster.local/ns/shop/sa/done"), good(), denied),
        ("nobody's identity", TOKEN_A, Some("spiffe://cluster.local/ns/shop/sa/none"), good(), denied),
        ("the account of another namespace", TOKEN_A, Some("spiffe://cluster.local/ns/other/sa/web"), good(), denied),
        ("a foreign trust domain", TOKEN_A, Some("spiffe://example.org/ns/shop/sa/web"), good(), denied),
        ("another shape of SPIFFE name", TOKEN_A, Some("spiffe://cluster.local/web"), good(), denied),
        ("a path that goes on", TOKEN_A, Some("spiffe://cluster.local/ns/shop/sa/web/x"), good(), denied),
        ("no identity", TOKEN_A, None, good(), denied),
        ("a CSR of another identity", TOKEN_A, Some(WEB), csr(other), denied),
        ("a CSR with a second URI", TOKEN_A, Some(WEB), p256(vec![uri(WEB), uri(other)]), denied),
        ("a CSR with the URI twice", TOKEN_A, Some(WEB), p256(vec![uri(WEB), uri(WEB)]), denied),
        ("a CSR with a DNS name too", TOKEN_A, Some(WEB), p256(vec![uri(WEB), dns()]), denied),
        (
            "a CSR with an address too",
            TOKEN_A,
            Some(WEB),
            p256(vec![SanType::IpAddress([10, 0, 0, 1].into()), uri(WEB)]),
            denied,
        ),
        ("a CSR without names", TOKEN_A, Some(WEB), p256(vec![]), denied),
        ("a P-384 key", TOKEN_A, Some(WEB), csr_of(vec![uri(WEB)], &PKCS_ECDSA_P384_SHA384), denied),
        ("an RSA key of 1024 bits", TOKEN_A, Some(WEB), RSA_1024.to_owned(), denied),
        ("a CSR with an e-mail address too", TOKEN_A, Some(WEB), p256(vec![uri(WEB), email()]), denied),
        ("an Ed25519 key", TOKEN_A, Some(WEB), csr_of(vec![uri(WEB)], &PKCS_ED25519), denied),
        ("a CSR signed by another key", TOKEN_A, Some(WEB), forged(), denied),
        ("two CSRs", TOKEN_A, Some(WEB), good() + &good(), denied),
        ("a CSR with bytes behind it", TOKEN_A, Some(WEB), trailing(), denied),
        ("no CSR", TOKEN_A, Some(WEB), String::new(), denied),
        ("a certificate for a CSR", TOKEN_A, Some(WEB), daemon.root.clone(), denied),
    ];
    let count = cases.len();
    for (case, token, identity, csr, expected) in cases {
        let status = ask(&daemon, token, asking(identity, csr, 0)).await.expect_err(case);
        let message = if expected == denied { "not permitted" } else { "not authenticated" };
        assert_eq!((status.code(), status.message()), (expected, message), "{case}");
    }
    assert_eq!(count, 26);
    ask(&daemon, TOKEN_A, asking(Some(WEB), good(), 0)).await.expect("the right one is issued");
    daemon.stop().await;
}

/// A CSR whose last signature byte is another.
fn forged() -> String {
    reworked(|der| *der.last_mut().expect("bytes") ^= 1)
}

fn trailing() -> String {
    reworked(|der| der.push(0))
}

fn reworked(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut bytes = der(&csr(WEB));
    change(&mut bytes);
    let body = base64(&bytes);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let number = group.iter().chain(&[0, 0]).take(3).fold(0_usize, |number, byte| number << 8 | usize::from(*byte));
        let digits = [18, 12, 6, 0].map(|shift| char::from(DIGITS[number >> shift & 63]));
        text.extend(&digits[..=group.len()]);
        text.extend(std::iter::repeat_n('=', 3 - group.len()));
    }
    text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ascii")).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_csr_reworked_without_change_is_as_good_as_before() {
    let identity = Identity::parse(WEB).expect("an identity");
    assert!(request::public_key(&reworked(|_| {}), &identity).is_ok(), "so the forgeries fail for their reason");
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_reader_of_requests_panic(at in 0..200_usize, with: u8, bytes: Vec<u8>) {
        let identity = Identity::parse(WEB).expect("an identity");
        let changed = reworked(|der| *der.get_mut(at).unwrap_or(&mut 0) ^= with);
        let noise = format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", base64(&bytes));
        for text in [changed, noise, String::from_utf8_lossy(&bytes).into_owned()] {
            let _ = request::public_key(&text, &identity);
        }
    }
}

mod files;
