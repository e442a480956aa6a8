//! A peer on the wire that is not our agent: it speaks TLS and HTTP/2 to port 15008 itself, with whatever certificate and
//! request a story gives it. Accepts any server, so that what the server does is the only thing judged.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{forge::Credentials, namespace::Namespace};

/// A CONNECT, or something that should have been one.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Usually CONNECT.
    pub method: http::Method,
    /// What is asked for, `address:port`.
    pub authority: String,
}

/// What came of it.
#[derive(Debug)]
pub struct Heard {
    /// The server's certificates, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The version that was agreed.
    pub version: rustls::ProtocolVersion,
    /// The response's status.
    pub status: u16,
    /// What came back for one line sent through the tunnel, when the status was 200.
    pub echo: String,
}

/// Connects from inside `namespace` and asks.
///
/// # Errors
/// The step that failed, in words: a refused certificate ends here.
pub fn ask(
    namespace: &Namespace,
    to: SocketAddr,
    credentials: Option<Credentials>,
    asked: &Asked,
) -> Result<Heard, String> {
    namespace.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let exchange = async {
            let limit = Duration::from_secs(10);
            tokio::time::timeout(limit, exchange(to, credentials, asked)).await.map_err(|_| "it hangs".to_owned())?
        };
        runtime.block_on(exchange)
    })
}

async fn exchange(to: SocketAddr, credentials: Option<Credentials>, asked: &Asked) -> Result<Heard, String> {
    let tcp = TcpStream::connect(to).await.map_err(|error| format!("connect: {error}"))?;
    let connector = TlsConnector::from(Arc::new(configuration(credentials)));
    let name = ServerName::IpAddress(to.ip().into());
    let tls = connector.connect(name, tcp).await.map_err(|error| format!("handshake: {error}"))?;
    let session = tls.get_ref().1;
    let chain = session.peer_certificates().unwrap_or_default().to_vec();
    let version = session.protocol_version().expect("after the handshake");
    let (sender, connection) = h2::client::handshake(tls).await.map_err(|error| format!("HTTP/2: {error}"))?;
    // The connection has to be driven beside the request; it ends with the runtime.
    tokio::spawn(connection);
    let (status, echo) = request(sender, asked).await?;
    Ok(Heard { chain, version, status, echo })
}

async fn request(sender: h2::client::SendRequest<bytes::Bytes>, asked: &Asked) -> Result<(u16, String), String> {
    let mut sender = sender.ready().await.map_err(|error| format!("ready: {error}"))?;
    let mut request = http::Request::new(());
    *request.method_mut() = asked.method.clone();
    let target = if asked.method == http::Method::CONNECT {
        asked.authority.clone()
    } else {
        format!("https://{}/", asked.authority)
    };
    *request.uri_mut() = target.parse().map_err(|error| format!("{target}: {error}"))?;
    let (response, mut body) = sender.send_request(request, false).map_err(|error| format!("request: {error}"))?;
    let response = response.await.map_err(|error| format!("response: {error}"))?;
    let status = response.status().as_u16();
    if status != 200 {
        return Ok((status, String::new()));
    }
    body.send_data("through the tunnel\n".into(), true).map_err(|error| format!("data: {error}"))?;
    let mut echo = Vec::new();
    let mut stream = response.into_body();
    while let Some(part) = stream.data().await {
        let part = part.map_err(|error| format!("data: {error}"))?;
        stream.flow_control().release_capacity(part.len()).map_err(|error| format!("window: {error}"))?;
        echo.extend_from_slice(&part);
    }
    Ok((status, String::from_utf8_lossy(&echo).into_owned()))
}

/// Offers TLS 1.2 and nothing newer, and reads what comes until the end.
///
/// # Panics
/// When nobody answers.
pub fn offers_tls_12(namespace: &Namespace, to: SocketAddr) -> Vec<u8> {
    use std::io::{Read, Write};
    let mut tcp = namespace.inside(|| std::net::TcpStream::connect(to).expect("a listener"));
    tcp.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket option");
    tcp.write_all(&hello_of_tls_12()).expect("an open connection");
    let mut answer = Vec::new();
    // A reset after the answer is as good an end as FIN.
    let _ = tcp.read_to_end(&mut answer);
    answer
}

/// A ClientHello. Source: RFC 5246, section 7.4.1.2; RFC 8446 asks for `supported_versions`, which is not there.
fn hello_of_tls_12() -> Vec<u8> {
    let extensions = [
        // supported_groups: x25519, secp256r1
        &[0, 10, 0, 6, 0, 4, 0, 29, 0, 23][..],
        // ec_point_formats: uncompressed
        &[0, 11, 0, 2, 1, 0],
        // signature_algorithms: ecdsa_secp256r1_sha256, rsa_pss_rsae_sha256
        &[0, 13, 0, 6, 0, 4, 4, 3, 8, 4],
        // application_layer_protocol_negotiation: h2
        &[0, 16, 0, 5, 0, 3, 2, b'h', b'2'],
    ];
    let extensions = extensions.concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    // No session; ECDHE with AES-128-GCM, by ECDSA and RSA; no compression.
    body.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    body.extend(length::<2>(&extensions));
    body.extend(extensions);
    let mut handshake = vec![1];
    handshake.extend(length::<3>(&body));
    handshake.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(length::<2>(&handshake));
    record.extend(handshake);
    record
}

fn length<const BYTES: usize>(of: &[u8]) -> [u8; BYTES] {
    let all = of.len().to_be_bytes();
    all[all.len() - BYTES..].try_into().expect("as many bytes")
}

pub(crate) fn configuration(credentials: Option<Credentials>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(aws_lc_rs::default_provider())));
    let mut configuration = match credentials {
        Some(Credentials { chain, key }) => builder.with_client_auth_cert(chain, key).expect("a key of its kind"),
        None => builder.with_no_client_auth(),
    };
    configuration.alpn_protocols = vec![b"h2".to_vec()];
    configuration
}

/// Trusts everybody, but the handshake must be signed with the certificate's key.
#[derive(Debug)]
struct AnyServer(CryptoProvider);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken in a mesh".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The URI names of a certificate.
///
/// # Panics
/// When it cannot be read.
pub fn uri_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(certificate).expect("a certificate");
    let names = certificate.subject_alternative_name().expect("at most one extension of the kind");
    let names = names.map(|extension| extension.value.general_names.clone()).unwrap_or_default();
    names
        .iter()
        .map(|name| if let GeneralName::URI(uri) = name { (*uri).to_owned() } else { format!("{name:?}") })
        .collect()
}

/// The serial number of a certificate, as `meshctl certificates` shows it.
///
/// # Panics
/// When it cannot be read.
pub fn serial(certificate: &CertificateDer<'_>) -> String {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(certificate).expect("a certificate");
    // DER puts a zero before a number whose first bit is set.
    let digits = certificate.raw_serial().iter().skip_while(|byte| **byte == 0);
    digits.map(|byte| format!("{byte:02X}")).collect()
}

/// A server at an address that control calls a workload's, with a certificate of another one.
pub struct Impostor {
    listener: std::net::TcpListener,
}

/// What the impostor's one caller did.
#[derive(Debug)]
pub struct Fooled {
    /// How the handshake ended for the server.
    pub handshake: Result<(), String>,
    /// Bytes of requests that arrived.
    pub bytes: usize,
}

impl Impostor {
    /// Listens on port 15008 inside `namespace`.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn listen(namespace: &Namespace) -> Self {
        let listener = namespace.inside(|| std::net::TcpListener::bind("[::]:15008").expect("a free port"));
        Self { listener }
    }

    /// Serves one caller with `credentials`.
    ///
    /// # Panics
    /// When nobody calls, or our own configuration is refused.
    pub fn serve(&self, credentials: Credentials) -> Fooled {
        let (mut tcp, _) = self.listener.accept().expect("a caller");
        tcp.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket option");
        let configuration = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites")
            .with_no_client_auth()
            .with_single_cert(credentials.chain, credentials.key);
        let mut configuration = configuration.expect("a key of its kind");
        configuration.alpn_protocols = vec![b"h2".to_vec()];
        let mut session = rustls::ServerConnection::new(Arc::new(configuration)).expect("a configuration");
        let handshake = session.complete_io(&mut tcp).map(drop).map_err(|error| error.to_string());
        let mut bytes = 0;
        while handshake.is_ok() && session.complete_io(&mut tcp).is_ok_and(|(read, _)| read > 0) {
            let mut request = Vec::new();
            use std::io::Read;
            let _ = session.reader().read_to_end(&mut request);
            bytes += request.len();
        }
        Fooled { handshake, bytes }
    }
}
