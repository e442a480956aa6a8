//! A conversation between two agents: messages in JSON, each with descriptors if need be.
//!
//! ```text
//! 0       4
//! length  JSON, `length` bytes         the length is little-endian; descriptors go with its bytes
//! ```

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::UnixStream,
    time::timeout,
};

/// Descriptors in one message. Source: Linux, include/net/scm.h, SCM_MAX_FD is 253.
pub(super) const DESCRIPTORS: usize = 250;
/// A longer message is none of ours.
const LONGEST: usize = 16 << 20;
const SPACE: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS));

/// Why the conversation is over.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other agent has ended, or has closed its end.
    #[error("the other agent has ended")]
    Ended,
    /// Sending or receiving failed.
    #[error("talking to the other agent: {0}")]
    Socket(#[source] io::Error),
    /// The other agent says nothing.
    #[error("the other agent does not answer within {0:?}; if it hangs, end it and start this one again")]
    Silent(Duration),
    /// What it says is not understood.
    #[error("the other agent says what this version does not understand: {0}")]
    Unknown(String),
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Ended,
            _ => Self::Socket(error),
        }
    }
}

/// One end.
#[derive(Debug)]
pub(super) struct Channel(UnixStream);

impl Channel {
    /// Of a connected socket; only a process of our own user is talked to.
    pub fn new(stream: UnixStream) -> Result<Self, ChannelError> {
        let (theirs, ours) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
        if theirs != ours {
            return Err(ChannelError::Unknown(format!("it belongs to user {theirs}, not to {ours}")));
        }
        Ok(Self(stream))
    }

    /// Of a socket that was handed over.
    pub fn of(socket: OwnedFd) -> Result<Self, ChannelError> {
        let stream = std::os::unix::net::UnixStream::from(socket);
        stream.set_nonblocking(true)?;
        Self::new(UnixStream::from_std(stream)?)
    }

    /// Sends a message with at most [`DESCRIPTORS`] descriptors.
    pub async fn send(&mut self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let body = serde_json::to_vec(message).map_err(|error| ChannelError::Unknown(error.to_string()))?;
        let length = u32::try_from(body.len()).map_err(|error| ChannelError::Unknown(error.to_string()))?.to_le_bytes();
        let send = || {
            let mut space = [MaybeUninit::uninit(); SPACE];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(io::Error::other("too many descriptors for one message"));
            }
            Ok(sendmsg(self.0.as_fd(), &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL)?)
        };
        let sent = self.0.async_io(Interest::WRITABLE, send).await?;
        self.0.write_all(&length[sent..]).await?;
        Ok(self.0.write_all(&body).await?)
    }

    /// The next message and its descriptors.
    pub async fn receive<M: DeserializeOwned>(&mut self) -> Result<(M, Vec<OwnedFd>), ChannelError> {
        let mut length = [0; 4];
        let mut descriptors = Vec::new();
        let receive = || {
            let mut space = [MaybeUninit::uninit(); SPACE];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut length)];
            let received = recvmsg(self.0.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            Ok(received)
        };
        let received = self.0.async_io(Interest::READABLE, receive).await?;
        if received == 0 {
            return Err(ChannelError::Ended);
        }
        self.0.read_exact(&mut length[received..]).await?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LONGEST {
            return Err(ChannelError::Unknown(format!("a message of {length} bytes")));
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        let message = serde_json::from_slice(&body).map_err(|error| ChannelError::Unknown(error.to_string()))?;
        Ok((message, descriptors))
    }

    /// The next message, if it comes in time.
    pub async fn receive_within<M: DeserializeOwned>(
        &mut self,
        limit: Duration,
    ) -> Result<(M, Vec<OwnedFd>), ChannelError> {
        timeout(limit, self.receive()).await.map_err(|_| ChannelError::Silent(limit))?
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn pair() -> (Channel, Channel) {
        let (one, other) = UnixStream::pair().unwrap();
        (Channel::new(one).unwrap(), Channel::new(other).unwrap())
    }

    #[tokio::test]
    async fn messages_arrive_whole_with_their_descriptors_and_an_end_is_told() {
        let (mut one, mut other) = pair();
        let file = File::open("/dev/null").unwrap();
        let many = vec![file.as_fd(); DESCRIPTORS];
        let long = "x".repeat(300_000);
        let talk = async {
            one.send(&("first", 1), &many).await.unwrap();
            one.send(&(&long, 2), &[]).await.unwrap();
            one.send(&("third", 3), &many[..1]).await.unwrap();
            drop(one);
        };
        let listen = async {
            let mut heard = Vec::new();
            loop {
                match other.receive::<(String, u32)>().await {
                    Ok(((text, number), descriptors)) => heard.push((text.len(), number, descriptors.len())),
                    Err(error) => return (heard, error),
                }
            }
        };
        let ((), (heard, end)) = tokio::join!(talk, listen);
        assert_eq!(heard, [(5, 1, DESCRIPTORS), (300_000, 2, 0), (5, 3, 1)]);
        assert!(matches!(end, ChannelError::Ended), "{end}");
    }

    #[tokio::test]
    async fn what_is_no_message_ends_the_conversation() {
        for garbage in [&b"\xff\xff\xff\xff"[..], b"\x02\0\0\0{]", b"\x09\0\0\0{}"] {
            let (mut one, mut other) = pair();
            one.0.write_all(garbage).await.unwrap();
            drop(one);
            assert!(other.receive::<(String, u32)>().await.is_err(), "{garbage:?}");
        }
    }
}
