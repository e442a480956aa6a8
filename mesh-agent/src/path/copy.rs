//! Stage 6: bytes both ways until both ends have ended, or one is reset. Each way holds one read at most, and only while the
//! other end does not take it. Ends and resets pass as on a wire; nothing here looks into the bytes.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{io::AsyncWrite, net::TcpStream};

use crate::{
    hbone::{self, Stream},
    net,
};

/// Reads of one way before the other connections of the thread have their turn.
const TURNS: usize = 8;

/// One end of a connection.
#[derive(Debug)]
pub enum End {
    /// An application's socket, or a plain destination's.
    Socket(TcpStream),
    /// A stream of a tunnel.
    Stream(Stream),
}

/// Why bytes stopped passing before both ends had ended.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Who connected to us.
    #[error("the source's end: {0}")]
    Downstream(#[source] io::Error),
    /// Whom we connected to.
    #[error("the destination's end: {0}")]
    Upstream(#[source] io::Error),
}

/// What passed, counted while it does.
#[derive(Debug, Default)]
pub struct Transfer {
    /// From source to destination, bytes.
    pub to_destination: Cell<u64>,
    /// From destination to source, bytes.
    pub to_source: Cell<u64>,
}

/// Copies until both ends have ended in order. On an error both are reset; so are they when this future is dropped.
///
/// # Errors
/// The end that failed.
pub async fn copy(mut downstream: End, mut upstream: End, transfer: &Transfer) -> Result<(), CopyError> {
    let (mut forth, mut back) = (Way::default(), Way::default());
    let both = std::future::poll_fn(|context| {
        let to = forth.poll(context, &mut downstream, &mut upstream, &transfer.to_destination);
        if let Poll::Ready(Err(error)) = to {
            return Poll::Ready(Err(error.into_copy(CopyError::Downstream, CopyError::Upstream)));
        }
        let from = back.poll(context, &mut upstream, &mut downstream, &transfer.to_source);
        if let Poll::Ready(Err(error)) = from {
            return Poll::Ready(Err(error.into_copy(CopyError::Upstream, CopyError::Downstream)));
        }
        if to.is_ready() && from.is_ready() {
            return Poll::Ready(Ok(()));
        }
        // An end whose bytes have all come can still be reset while it is written to.
        if let (true, Poll::Ready(error)) = (back.is_read, upstream.poll_reset(context)) {
            return Poll::Ready(Err(CopyError::Upstream(error)));
        }
        if let (true, Poll::Ready(error)) = (forth.is_read, downstream.poll_reset(context)) {
            return Poll::Ready(Err(CopyError::Downstream(error)));
        }
        Poll::Pending
    });
    let result = both.await;
    for end in [downstream, upstream] {
        match (&result, end) {
            (Ok(()), End::Socket(socket)) => net::close_gently(&socket),
            (Err(_), End::Stream(stream)) => stream.reset(),
            // A socket is reset by being dropped; a stream that has ended both ways is gone.
            (Err(_), End::Socket(_)) | (Ok(()), End::Stream(_)) => (),
        }
    }
    result
}

/// Which end of a way failed.
enum WayError {
    Read(io::Error),
    Write(io::Error),
}

impl WayError {
    fn into_copy(self, read: fn(io::Error) -> CopyError, write: fn(io::Error) -> CopyError) -> CopyError {
        match self {
            Self::Read(error) => read(error),
            Self::Write(error) => write(error),
        }
    }
}

/// One direction.
#[derive(Default)]
struct Way {
    /// Read, not yet taken.
    pending: Bytes,
    /// The reading end has ended.
    is_read: bool,
    /// The end was passed on.
    is_done: bool,
}

impl Way {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &mut End,
        to: &mut End,
        passed: &Cell<u64>,
    ) -> Poll<Result<(), WayError>> {
        if self.is_done {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..TURNS {
            while !self.pending.is_empty() {
                let taken = ready!(to.poll_write(context, &mut self.pending)).map_err(WayError::Write)?;
                from.consumed(taken);
                passed.set(passed.get() + taken as u64);
            }
            if self.is_read {
                ready!(to.poll_finish(context)).map_err(WayError::Write)?;
                self.is_done = true;
                return Poll::Ready(Ok(()));
            }
            match ready!(from.poll_read(context)).map_err(WayError::Read)? {
                Some(bytes) => self.pending = bytes,
                None => self.is_read = true,
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl End {
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        match self {
            Self::Socket(socket) => {
                let bytes = ready!(hbone::read_chunk(Pin::new(socket), context))?;
                Poll::Ready(Ok(Some(bytes).filter(|bytes| !bytes.is_empty())))
            }
            Self::Stream(stream) => stream.poll_read(context),
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket(socket) => {
                let taken = ready!(Pin::new(socket).poll_write(context, bytes))?;
                bytes.advance(taken);
                Poll::Ready(Ok(taken))
            }
            Self::Stream(stream) => stream.poll_write(context, bytes),
        }
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Socket(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Stream(stream) => Poll::Ready(stream.finish()),
        }
    }

    fn consumed(&mut self, bytes: usize) {
        match self {
            // TCP's own window.
            Self::Socket(_) => (),
            Self::Stream(stream) => stream.consumed(bytes),
        }
    }

    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        match self {
            // A reset socket fails the write.
            Self::Socket(_) => Poll::Pending,
            Self::Stream(stream) => stream.poll_reset(context),
        }
    }
}
