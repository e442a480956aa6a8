//! Simulated agents: each asks for all that a real one asks for, acknowledges it, and notes when it saw which revision. They keep
//! no View, so that what is measured is the control daemon and not twenty agents on one machine.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use mesh_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_CONFIG_TYPE,
    proto::{
        discovery::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
        workload::{Address, address},
    },
};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Streaming,
    metadata::MetadataValue,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};

/// The first answer holds everything.
const MESSAGE_LIMIT: usize = 256 << 20;
/// A stream on which nothing comes for so long has said all.
const QUIET: Duration = Duration::from_secs(2);

/// Where control is, and as whom it is asked.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub control: SocketAddr,
    pub root: PathBuf,
    pub token: PathBuf,
}

/// A first pod was seen at a revision.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub revision: usize,
    pub at: Instant,
}

/// What came over a stream.
#[derive(Debug, Clone, Copy, Default)]
pub struct Received {
    pub bytes: usize,
    pub resources: usize,
}

/// One agent with an open stream.
pub struct Agent {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    answers: Streaming<DeltaDiscoveryResponse>,
    /// Versions of what it has, by type and name: what it says when it comes back.
    pub versions: HashMap<String, HashMap<String, String>>,
    pub received: Received,
    pub pods: usize,
}

impl Agent {
    /// Opens a stream; `versions` are what it has from before.
    pub async fn open(
        node: &str,
        credentials: &Credentials,
        versions: HashMap<String, HashMap<String, String>>,
    ) -> Result<Self> {
        let read = |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(&credentials.root)?))
            .domain_name(credentials.control.ip().to_string());
        let endpoint = Endpoint::from_shared(format!("https://{}", credentials.control))?.tls_config(tls)?;
        let channel =
            endpoint.initial_connection_window_size(16 << 20).initial_stream_window_size(4 << 20).connect().await?;
        let bearer = MetadataValue::try_from(format!("Bearer {}", read(&credentials.token)?.trim()))?;
        let interceptor = move |mut request: Request<()>| {
            request.metadata_mut().insert("authorization", bearer.clone());
            request.metadata_mut().insert("clusterid", MetadataValue::from_static("Kubernetes"));
            Ok(request)
        };
        let mut client = AggregatedDiscoveryServiceClient::with_interceptor(channel, interceptor)
            .max_decoding_message_size(MESSAGE_LIMIT);
        let (requests, outgoing) = mpsc::channel(16);
        for kind in [MESH_CONFIG_TYPE, AUTHORIZATION_TYPE, ADDRESS_TYPE] {
            let request = DeltaDiscoveryRequest {
                node: Some(Node { id: node.to_owned(), ..Node::default() }),
                type_url: kind.to_owned(),
                resource_names_subscribe: vec!["*".to_owned()],
                initial_resource_versions: versions.get(kind).cloned().unwrap_or_default(),
                ..DeltaDiscoveryRequest::default()
            };
            requests.send(request).await?;
        }
        let answers = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Self { requests, answers, versions, received: Received::default(), pods: 0 })
    }

    /// Reads one answer and acknowledges it.
    pub async fn read(&mut self) -> Result<Vec<Seen>> {
        let Some(answer) = self.answers.message().await? else { bail!("control ended the stream") };
        let at = Instant::now();
        self.received.bytes += answer.encoded_len();
        self.received.resources += answer.resources.len();
        let mut seen = Vec::new();
        let known = self.versions.entry(answer.type_url.clone()).or_default();
        for resource in answer.resources {
            let body = resource.resource.as_ref().filter(|_| answer.type_url == ADDRESS_TYPE);
            if let Some(address::Type::Workload(workload)) =
                body.map(|body| Address::decode(body.value.as_slice())).transpose()?.and_then(|address| address.r#type)
            {
                self.pods += usize::from(!known.contains_key(&resource.name));
                let revision = workload.canonical_revision.parse().unwrap_or_default();
                seen.extend((revision > 0).then_some(Seen { revision, at }));
            }
            known.insert(resource.name, resource.version);
        }
        let ack = DeltaDiscoveryRequest {
            type_url: answer.type_url,
            response_nonce: answer.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(ack).await?;
        Ok(seen)
    }

    /// Reads until nothing more comes.
    pub async fn read_all(&mut self) -> Result<()> {
        while let Ok(answer) = tokio::time::timeout(QUIET, self.read()).await {
            answer?;
        }
        Ok(())
    }
}
