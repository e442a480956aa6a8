//! The connection to the agent's Unix socket, and what its failure means to an operator. Never retries: one command,
//! one answer.

use std::{
    io::ErrorKind,
    os::unix::fs::FileTypeExt,
    time::{Duration, Instant},
};

use mesh_api::proto::admin::{enrolment_client::EnrolmentClient, inspect_client::InspectClient};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

use crate::failure::Failure;

/// Answers of a full node (50,000 workloads, 100,000 sockets) are larger than gRPC's default of 4 MiB.
const LARGEST_ANSWER_BYTES: usize = 256 << 20;

/// An open connection to one agent.
pub struct Agent {
    channel: Channel,
    timeout: Duration,
}

impl Agent {
    /// Connects to `socket`; every request made through it must be answered within `timeout`.
    ///
    /// # Errors
    /// The socket is absent, not ours to use, or nobody listens; the agent accepts and then says nothing.
    pub async fn connect(socket: &str, timeout: Duration) -> Result<Self, Failure> {
        let begun = Instant::now();
        // gRPC hides the system's error, which is what tells an absent agent from a dead one: so look first.
        let first = tokio::time::timeout(timeout, tokio::net::UnixStream::connect(socket)).await;
        match first {
            Err(_) => return Err(Failure::TooSlow { after: timeout }),
            Ok(Err(error)) => return Err(explain(socket, &error)),
            Ok(Ok(stream)) => drop(stream),
        }
        let remaining = timeout.saturating_sub(begun.elapsed());
        let refused =
            |error: tonic::transport::Error| Failure::Connect { socket: socket.into(), reason: chain(&error) };
        let endpoint = Endpoint::from_shared(format!("unix://{socket}")).map_err(refused)?;
        match tokio::time::timeout(remaining, endpoint.connect()).await {
            Err(_) => Err(Failure::TooSlow { after: timeout }),
            Ok(connected) => Ok(Self { channel: connected.map_err(refused)?, timeout }),
        }
    }

    /// The service that lists and explains.
    pub fn inspect(&self) -> InspectClient<Channel> {
        InspectClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_ANSWER_BYTES)
    }

    /// The service that enrols pods.
    pub fn enrolment(&self) -> EnrolmentClient<Channel> {
        EnrolmentClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_ANSWER_BYTES)
    }

    /// Waits for one answer.
    ///
    /// # Errors
    /// The agent refused or failed, or is slower than the time-out.
    pub async fn answer<T>(&self, request: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
        match tokio::time::timeout(self.timeout, request).await {
            Err(_) => Err(Failure::TooSlow { after: self.timeout }),
            Ok(answered) => Ok(answered?.into_inner()),
        }
    }
}

fn explain(socket: &str, error: &std::io::Error) -> Failure {
    let socket = socket.to_owned();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Failure::Absent { socket },
        ErrorKind::PermissionDenied => Failure::NotRoot { socket },
        // The kernel answers ECONNREFUSED for a plain file too.
        ErrorKind::ConnectionRefused => match std::fs::metadata(&socket) {
            Ok(metadata) if !metadata.file_type().is_socket() => Failure::NotASocket { socket },
            _ => Failure::Ended { socket },
        },
        _ => Failure::Connect { socket, reason: error.to_string() },
    }
}

/// An error with all its causes: tonic's own text is only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
