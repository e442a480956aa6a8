//! One tunnelled connection as the path sees it: bytes both ways, an end for each, and a reset. What carries it is hidden.

use std::{
    fmt, io,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{FlowControl, Reason, SendStream};

use super::inflow::Inflow;

/// An established CONNECT stream. Dropped before both ends have passed, it is reset.
pub struct Stream {
    send: SendStream<Bytes>,
    receive: Inflow,
    /// Both directions must end in order, or the stream is reset.
    is_sent: bool,
    is_received: bool,
    /// Keeps the tunnel's count of streams.
    _slot: Option<super::pool::Slot>,
}

/// How many bytes have arrived on a stream and were not yet taken, those of HTTP/2's own buffers included.
#[derive(Debug)]
pub struct Backlog(FlowControl);

impl Backlog {
    pub(super) fn of(flow: &mut FlowControl) -> Self {
        Self(flow.clone())
    }

    /// Bytes now.
    pub fn bytes(&self) -> usize {
        self.0.used_capacity()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("id", &self.send.stream_id()).finish_non_exhaustive()
    }
}

impl Stream {
    pub(super) fn new(send: SendStream<Bytes>, receive: Inflow, slot: Option<super::pool::Slot>) -> Self {
        Self { send, receive, is_sent: false, is_received: false, _slot: slot }
    }

    /// What arrives and waits, to be asked while somebody else has the stream.
    pub fn backlog(&mut self) -> Backlog {
        Backlog::of(self.receive.flow_control())
    }

    /// The next bytes; none is the peer's orderly end. Give back what was used with [`Stream::consumed`].
    ///
    /// # Errors
    /// The peer reset the stream, or the tunnel ended without ending it.
    pub fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let read = ready!(self.receive.poll_read(context))?;
        self.is_received |= read.is_none();
        Poll::Ready(Ok(read))
    }

    /// Puts together what arrives while the other end takes nothing; it is read later.
    pub fn gather(&mut self, context: &mut Context<'_>) {
        // A reset is told by `poll_reset`, and by the read behind what came before it.
        let _ = self.receive.poll_gather(context);
    }

    /// Lets the peer send as many bytes again: the application's socket has taken them.
    pub fn consumed(&mut self, bytes: usize) {
        // It fails only for more than was received, or on a stream that is gone.
        self.receive.flow_control().release_capacity(bytes).ok();
    }

    /// Sends as much of the front as the peer's window and the send buffer take now; waits for room for at least a byte.
    ///
    /// # Errors
    /// The stream was reset, or the tunnel is gone.
    pub fn poll_write(&mut self, context: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>> {
        let room = ready!(poll_room(&mut self.send, context, bytes.len()))?;
        let part = bytes.split_to(room);
        Poll::Ready(match self.send.send_data(part, false) {
            Ok(()) => Ok(room),
            Err(error) => Err(reset(&error)),
        })
    }

    /// Ends this direction in order.
    ///
    /// # Errors
    /// The stream was reset, or the tunnel is gone.
    pub fn finish(&mut self) -> io::Result<()> {
        self.send.send_data(Bytes::new(), true).map_err(|error| reset(&error))?;
        self.is_sent = true;
        Ok(())
    }

    /// Waits for the peer's reset: the only thing to hear once its direction has ended. With any reason: while ours has not
    /// ended, nobody is left to read it.
    pub fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        match ready!(self.send.poll_reset(context)) {
            Ok(_) => Poll::Ready(io::ErrorKind::ConnectionReset.into()),
            Err(error) => Poll::Ready(reset(&error)),
        }
    }

    /// Tells the peer that the application's connection was reset. Source: RFC 9113, section 8.5.
    pub fn reset(mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
    }
}

impl Drop for Stream {
    /// The connection is taken away by us (policy, withdrawal, drain). Said here, because h2 would say NO_ERROR when this
    /// direction has ended; not said when both have, because h2 would throw away what is still to be sent.
    fn drop(&mut self) {
        if !(self.is_sent && self.is_received) {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

/// How many of `wanted` bytes the peer's window and the send buffer take now; waits for room for at least one.
///
/// # Errors
/// The stream was reset, or the tunnel is gone.
pub(super) fn poll_room(
    send: &mut SendStream<Bytes>,
    context: &mut Context<'_>,
    wanted: usize,
) -> Poll<io::Result<usize>> {
    send.reserve_capacity(wanted);
    // h2 tells of new room only once: what is left of it is asked for first.
    loop {
        match send.capacity().min(wanted) {
            0 => (),
            room => return Poll::Ready(Ok(room)),
        }
        match ready!(send.poll_capacity(context)) {
            Some(Ok(_)) => (),
            Some(Err(error)) => return Poll::Ready(Err(reset(&error))),
            None => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

pub(super) fn reset(error: &h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error.to_string())
}
