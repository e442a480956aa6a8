//! The operator's verb to a daemon that runs: a Unix socket in the state directory, on which a line asks and a text
//! answers. Only root and the daemon's own user are heard.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::{fs::MetadataExt, net::UnixStream as Connection},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use crate::ca::rotation::{Rotation, RotationError, Step};

const SOCKET: &str = "operator.sock";
/// First word of an answer that is good.
const DONE: &str = "done";
/// An asker says its line within this time, and a daemon that runs answers within it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Replaces the root that a running mesh-control generated, in three steps: add, use, drop. Each is refused until every
/// agent has made the one before.
#[derive(Debug, Parser)]
#[command(name = "mesh-control rotate-root", version)]
pub struct RotateRoot {
    /// The --state-dir of the running daemon
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// The step to make; without it, how far the rotation is
    #[arg(long, value_enum)]
    pub step: Option<Step>,
}

impl RotateRoot {
    /// Asks the daemon, and answers its text.
    ///
    /// # Errors
    /// No daemon runs on the state directory, or it refuses the step; the message says why.
    pub fn run(&self) -> anyhow::Result<String> {
        let path = self.state_dir.join(SOCKET);
        let absent = || format!("{}: does mesh-control run on this --state-dir? Root rotation asks it", path.display());
        let mut connection = Connection::connect(&path).with_context(absent)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        let step = self.step.and_then(|step| step.to_possible_value());
        let word = step.as_ref().map_or("show", |step| step.get_name());
        connection.write_all(format!("{word}\n").as_bytes()).context("ask the daemon")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).context("the daemon's answer")?;
        match answer.split_once('\n') {
            Some((DONE, text)) => Ok(text.to_owned()),
            Some((_, text)) => Err(anyhow::anyhow!("{text}")),
            None => Err(anyhow::anyhow!("the daemon did not answer; its log says why")),
        }
    }
}

/// Binds the socket anew: whoever had it before is gone, or the state directory would be locked.
///
/// # Errors
/// The state directory cannot be written, or its path is too long for a socket.
pub fn bind(state_dir: &Path) -> anyhow::Result<UnixListener> {
    let path = state_dir.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).context(path.display().to_string()),
        _ => {}
    }
    UnixListener::bind(&path).with_context(|| path.display().to_string())
}

/// Answers for as long as the daemon runs, one asker after the other.
pub async fn serve(listener: UnixListener, rotation: Rotation) {
    let rotation = Arc::new(rotation);
    loop {
        let answered = match listener.accept().await {
            Ok((stream, _)) => timeout(PATIENCE, answer(stream, rotation.clone())).await.unwrap_or(Ok(())),
            Err(error) => Err(error),
        };
        if let Err(error) = answered {
            tracing::warn!(%error, "an operator was not answered");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn answer(mut stream: UnixStream, rotation: Arc<Rotation>) -> io::Result<()> {
    let (caller, own) = (stream.peer_cred()?.uid(), fs::metadata("/proc/self")?.uid());
    let (reading, mut writing) = stream.split();
    if caller != 0 && caller != own {
        tracing::warn!(uid = caller, "an operator's request of another user is refused");
        return writing.write_all(b"refused\nonly root and the daemon's own user may ask").await;
    }
    let mut line = String::new();
    BufReader::new(tokio::io::AsyncReadExt::take(reading, 64)).read_line(&mut line).await?;
    let said = match (line.trim(), Step::from_str(line.trim(), false)) {
        ("show", _) => rotation.show(),
        (_, Ok(step)) => rotation.make(step),
        (_, Err(_)) => Err(RotationError::Order("there are the steps add, use and drop")),
    };
    let text = match said {
        Ok(text) => format!("{DONE}\n{text}"),
        Err(error) => {
            tracing::warn!(line = line.trim(), %error, "an operator's request is refused");
            format!("refused\n{error}")
        }
    };
    writing.write_all(text.as_bytes()).await
}
