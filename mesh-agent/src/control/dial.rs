//! How control is reached: address, the root it is verified against, the name it must prove, the token that says which
//! node we are. Files are read at every attempt, so a rotated root or token needs no restart.

use std::{io, path::PathBuf, time::Duration};

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::private;

/// A dial and its handshake take at most this long.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A dead connection is known after about three of these.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Where control is and how both sides prove who they are.
#[derive(Debug, Clone)]
pub struct ControlAddress {
    /// `https://HOST:PORT`.
    pub uri: String,
    /// Name in control's certificate.
    pub name: String,
    /// PEM file of the roots that control is verified against.
    pub root: PathBuf,
    /// File with this node's token.
    pub token: PathBuf,
}

/// Why control cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// A file that is needed cannot be read.
    #[error("read {}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The token file holds no token that fits into a header.
    #[error("{} holds no token", .0.display())]
    Token(PathBuf),
    /// The address or the root is malformed, nobody answers, or the handshake failed.
    #[error("connect to {uri}: {reason}")]
    Connect {
        /// The address.
        uri: String,
        /// The innermost cause.
        reason: String,
    },
}

/// A connection to control that proves itself on every call.
#[derive(Debug, Clone)]
pub struct Line {
    /// Carries any number of calls.
    pub channel: Channel,
    /// Proves the node on each call.
    pub bearer: Bearer,
    /// The roots this connection was verified against, as read; a change of the file makes a new connection.
    pub root_pem: Vec<u8>,
}

/// Adds the node's token to each request.
#[derive(Debug, Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        request.metadata_mut().insert("clusterid", MetadataValue::from_static("Kubernetes"));
        Ok(request)
    }
}

impl ControlAddress {
    /// Connects, handshake included.
    ///
    /// # Errors
    /// See [`DialError`]; the reason of a failed handshake is the innermost one.
    pub async fn dial(&self) -> Result<Line, DialError> {
        let root_pem = self.read_root().await?;
        let bearer = self.read_token().await?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&root_pem))
            .domain_name(&self.name)
            .timeout(CONNECT_LIMIT);
        let connect = async {
            Endpoint::from_shared(self.uri.clone())?
                .tls_config(tls)?
                .connect_timeout(CONNECT_LIMIT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(2 * KEEPALIVE)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(16 << 20)
                .connect()
                .await
        };
        let failed = |reason| DialError::Connect { uri: self.uri.clone(), reason };
        let channel = match tokio::time::timeout(2 * CONNECT_LIMIT, connect).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(failed(crate::tls::explained(&causes(&error)))),
            Err(_) => return Err(failed(format!("no answer within {} s", (2 * CONNECT_LIMIT).as_secs()))),
        };
        Ok(Line { channel, bearer, root_pem })
    }

    /// The root file as it is now.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn read_root(&self) -> Result<Vec<u8>, DialError> {
        let read = tokio::fs::read(&self.root).await;
        read.map_err(|source| DialError::File { path: self.root.clone(), source })
    }

    async fn read_token(&self) -> Result<Bearer, DialError> {
        let path = self.token.clone();
        let read = tokio::task::spawn_blocking(move || private::read_secret(&path)).await;
        let read = read.unwrap_or_else(|broken| Err(io::Error::other(broken)));
        let text = read.map_err(|source| DialError::File { path: self.token.clone(), source })?;
        let token = text.trim();
        let header = MetadataValue::try_from(format!("Bearer {token}")).ok().filter(|_| !token.is_empty());
        let mut header = header.ok_or_else(|| DialError::Token(self.token.clone()))?;
        header.set_sensitive(true);
        Ok(Bearer(header))
    }
}

/// An error with all its causes: tonic's own text alone says only "transport error".
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
