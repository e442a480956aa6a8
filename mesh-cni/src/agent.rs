//! The conversation with the node's agent. Asks again while there is none or it cannot answer yet, for a bounded time: an
//! agent that is replaced is away for a moment.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use mesh_api::proto::admin::{
    CniAddRequest, CniAddResponse, CniCheckRequest, CniDeleteRequest, Sandbox, cni_client::CniClient,
};
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

/// An agent that has taken a question answers it within this, or is asked again.
const ANSWER: Duration = Duration::from_secs(15);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(100);

/// What the agent said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// What was asked.
    Said(T),
    /// It is not there, or does not know.
    Nothing(String),
    /// There is no such pod.
    Unknown,
    /// It refuses.
    Refused(String),
}

/// Where the agent is, and how long it is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Agent<'a> {
    /// Its socket.
    pub socket: &'a Path,
    /// How long to go on asking one that gives no answer; zero: once.
    pub patience: Duration,
}

impl Agent<'_> {
    /// Shall this pod start?
    pub async fn add(self, request: CniAddRequest) -> Answer<CniAddResponse> {
        self.ask(async |mut client: CniClient<Channel>| client.add(request.clone()).await).await
    }

    /// Is all as it was?
    pub async fn check(self, sandbox: Sandbox) -> Answer<()> {
        let request = CniCheckRequest { sandbox: Some(sandbox) };
        self.ask(async |mut client: CniClient<Channel>| nothing(client.check(request.clone()).await)).await
    }

    /// Let go of this one.
    pub async fn delete(self, sandbox: Sandbox) -> Answer<()> {
        let request = CniDeleteRequest { sandbox: Some(sandbox) };
        self.ask(async |mut client: CniClient<Channel>| nothing(client.delete(request.clone()).await)).await
    }

    async fn ask<T>(self, question: impl AsyncFn(CniClient<Channel>) -> Result<Response<T>, Status>) -> Answer<T> {
        let begun = Instant::now();
        loop {
            let asked = tokio::time::timeout(ANSWER, async {
                let client = self.connect().await?;
                Ok::<_, String>(question(client).await)
            });
            let answer = match asked.await {
                Err(_) => Answer::Nothing(format!("it gives no answer within {} s", ANSWER.as_secs())),
                Ok(Err(reason)) => Answer::Nothing(reason),
                Ok(Ok(answered)) => read(answered),
            };
            if !matches!(answer, Answer::Nothing(_)) || begun.elapsed() + PAUSE > self.patience {
                return answer;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn connect(self) -> Result<CniClient<Channel>, String> {
        let shown = self.socket.display();
        // gRPC hides the system's error, which is what tells an absent agent from a dead one: so look first.
        let first = tokio::net::UnixStream::connect(self.socket).await;
        first.map_err(|error| format!("{shown}: {error}"))?;
        let failed = |error: tonic::transport::Error| format!("{shown}: {error}");
        let channel = Endpoint::from_shared(format!("unix://{shown}")).map_err(failed)?.connect().await;
        Ok(CniClient::new(channel.map_err(failed)?))
    }
}

fn nothing<T>(answered: Result<Response<T>, Status>) -> Result<Response<()>, Status> {
    answered.map(|response| response.map(drop))
}

fn read<T>(answered: Result<Response<T>, Status>) -> Answer<T> {
    let status = match answered {
        Ok(response) => return Answer::Said(response.into_inner()),
        Err(status) => status,
    };
    let reason = status.message().to_owned();
    match status.code() {
        Code::NotFound => Answer::Unknown,
        // A connection that ended before its answer is told as the latter three.
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => Answer::Nothing(reason),
        Code::Unknown if std::error::Error::source(&status).is_some() => Answer::Nothing(reason),
        Code::Unimplemented => Answer::Refused("it is of another version than the plug-in".into()),
        _ => Answer::Refused(reason),
    }
}
