//! What arrives on a stream, for whoever takes it next. While nobody does, frames are taken out of h2 and put together:
//! h2 keeps some 300 bytes for each frame besides its payload, so that a peer could make much of a small window.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::RecvStream;

use super::stream::reset;

/// Frames from this size on are kept as they are.
const BIG: usize = 4 << 10;

/// One direction of a stream.
pub(super) struct Inflow {
    receive: RecvStream,
    /// What was gathered, in order: first these, then the small frames behind them.
    gathered: VecDeque<Bytes>,
    small: Vec<u8>,
    /// How it ended, if that was met while gathering.
    end: Option<io::Result<()>>,
}

impl Inflow {
    pub(super) fn new(receive: RecvStream) -> Self {
        Self { receive, gathered: VecDeque::new(), small: Vec::new(), end: None }
    }

    pub(super) fn flow_control(&mut self) -> &mut h2::FlowControl {
        self.receive.flow_control()
    }

    /// The next bytes; none is the peer's orderly end.
    ///
    /// # Errors
    /// The peer reset the stream, or the tunnel ended without ending it.
    pub(super) fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if let Some(bytes) = self.gathered.pop_front() {
            return Poll::Ready(Ok(Some(bytes)));
        }
        if !self.small.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.small).into())));
        }
        if let Some(end) = self.end.take() {
            return Poll::Ready(end.map(|()| None));
        }
        self.poll_frame(context)
    }

    /// Gathers what is there. Ready when the peer has reset the stream.
    pub(super) fn poll_gather(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.end.is_none() {
            match ready!(self.poll_frame(context)) {
                Ok(Some(bytes)) if bytes.len() < BIG => self.append(&bytes),
                Ok(Some(bytes)) => {
                    self.close_small();
                    self.gathered.push_back(bytes);
                }
                Ok(None) => self.end = Some(Ok(())),
                Err(error) => self.end = Some(Err(error)),
            }
        }
        if matches!(self.end, Some(Err(_))) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Gathers for as long as this is polled.
    pub(super) async fn until_reset(&mut self) {
        poll_fn(|context| self.poll_gather(context)).await;
    }

    /// Grows by an eighth at most, so that what is counted, the payload, is about what is held.
    fn append(&mut self, bytes: &[u8]) {
        if self.small.capacity() - self.small.len() < bytes.len() {
            self.small.reserve_exact(bytes.len().max(self.small.len() / 8));
        }
        self.small.extend_from_slice(bytes);
    }

    /// In memory of its own size: small frames between big ones must not each keep a big buffer.
    fn close_small(&mut self) {
        if !self.small.is_empty() {
            self.gathered.push_back(Bytes::copy_from_slice(&self.small));
            self.small.clear();
        }
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        Poll::Ready(match ready!(self.receive.poll_data(context)) {
            Some(Ok(bytes)) => Ok(Some(bytes)),
            Some(Err(error)) => Err(reset(&error)),
            None if self.receive.is_end_stream() => Ok(None),
            None => Err(io::ErrorKind::ConnectionReset.into()),
        })
    }
}
