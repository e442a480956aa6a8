//! The agents that a control daemon knows, from its page `/debug/agents`. One question, one answer; nothing is changed.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, client::conn::http1::handshake, header::HOST};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::failure::Failure;

/// The page of a few thousand agents.
const LARGEST_PAGE_BYTES: usize = 16 << 20;
const PAGE: &str = "/debug/agents";

/// One agent, as the control daemon that was asked knows it.
#[derive(Debug, Deserialize)]
pub struct Agent {
    pub node: String,
    pub address: Option<String>,
    pub version: u64,
    pub has_answered: bool,
    pub refused: BTreeMap<String, String>,
    pub lag_ms: u64,
    /// Version of the state that control publishes.
    #[serde(skip)]
    pub published: u64,
    /// The control daemon.
    #[serde(skip)]
    pub control: String,
}

impl Agent {
    /// It holds what is published, and has said so.
    pub fn is_in_sync(&self) -> bool {
        self.version == self.published && self.has_answered && self.refused.is_empty()
    }
}

#[derive(Deserialize)]
struct Page {
    version: u64,
    agents: Vec<Agent>,
}

/// The agents of all these control daemons, by node.
///
/// # Errors
/// One of them does not answer in time, or with something else.
pub async fn agents(controls: &[String], timeout: Duration) -> Result<Vec<Agent>, Failure> {
    let mut agents = Vec::new();
    for control in controls {
        let failed = |reason: String| Failure::Control { address: control.clone(), reason };
        let answered = tokio::time::timeout(timeout, page(control)).await;
        let text =
            answered.map_err(|_| failed(format!("no answer within {} s", timeout.as_secs())))?.map_err(failed)?;
        let page: Page =
            serde_json::from_slice(&text).map_err(|error| failed(format!("{PAGE} is not understood: {error}")))?;
        let with_control = |agent: Agent| Agent { published: page.version, control: control.clone(), ..agent };
        agents.extend(page.agents.into_iter().map(with_control));
    }
    agents.sort_by(|a, b| (&a.node, &a.control).cmp(&(&b.node, &b.control)));
    Ok(agents)
}

async fn page(address: &str) -> Result<Bytes, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let request =
        Request::get(PAGE).header(HOST, address).body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if response.status() != http::StatusCode::OK {
            return Err(format!(
                "{PAGE} answers {}; is this the debug address of a control daemon?",
                response.status()
            ));
        }
        let body = Limited::new(response.into_body(), LARGEST_PAGE_BYTES).collect().await;
        Ok(body.map_err(|error| error.to_string())?.to_bytes())
    };
    tokio::select! {
        answer = answer => answer,
        // The connection ends with an answer, or before there is one.
        Err(error) = connection => Err(error.to_string()),
    }
}
