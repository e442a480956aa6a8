//! Stage 6: bytes both ways until both ends have ended, or one is reset. Each way holds one read at most, and only while the
//! other end does not take it. Ends and resets pass as on a wire; nothing here looks into the bytes.

use std::{
    cell::{Cell, RefCell},
    io,
    net::Shutdown,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use crate::{
    hbone::{self, Backlog, Begun, Stream},
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
    /// Read from a socket and not yet taken by the other end, with what HTTP/2 may hold of it; bytes.
    pub(super) waiting: Cell<usize>,
    backlog: RefCell<Option<Backlog>>,
}

impl Transfer {
    /// Memory that the connection makes the agent hold because an end takes nothing; never less than it is.
    pub fn held(&self) -> usize {
        self.waiting.get() + self.backlog.borrow().as_ref().map_or(0, Backlog::bytes)
    }

    /// Counts what arrives on the stream that is one of its ends.
    pub(super) fn watch(&self, backlog: Backlog) {
        *self.backlog.borrow_mut() = Some(backlog);
    }
}

/// Copies until both ends have ended in order; `begun` is what was read of the source before the destination was reached. On
/// an error both are reset; so are they when this future is dropped.
///
/// # Errors
/// The end that failed.
pub async fn copy(mut downstream: End, mut upstream: End, begun: Begun, transfer: &Transfer) -> Result<(), CopyError> {
    // One that came through a tunnel is watched from its request on.
    if let End::Stream(stream) = &mut upstream {
        transfer.watch(stream.backlog());
    }
    let result = pass(downstream.side(), upstream.side(), begun, transfer).await;
    transfer.backlog.take();
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

async fn pass(
    mut downstream: Side<'_>,
    mut upstream: Side<'_>,
    begun: Begun,
    transfer: &Transfer,
) -> Result<(), CopyError> {
    transfer.to_destination.set(begun.sent as u64);
    let (mut forth, mut back) = (Way::after(begun), Way::default());
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
        transfer.waiting.set(forth.waiting(&downstream, &upstream) + back.waiting(&upstream, &downstream));
        // An end that is not read, because its bytes have all come or because the other end takes none, can still be reset.
        if !back.is_reading()
            && let Poll::Ready(error) = upstream.poll_reset(context)
        {
            return Poll::Ready(Err(CopyError::Upstream(error)));
        }
        if !forth.is_reading()
            && let Poll::Ready(error) = downstream.poll_reset(context)
        {
            return Poll::Ready(Err(CopyError::Downstream(error)));
        }
        Poll::Pending
    });
    both.await
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
    fn after(begun: Begun) -> Self {
        Self { pending: begun.pending, is_read: begun.is_ended, is_done: false }
    }

    /// What arrives on a stream is its backlog's to count.
    fn waiting(&self, from: &Side<'_>, to: &Side<'_>) -> usize {
        match (self.pending.is_empty(), from, to) {
            (true, ..) | (_, Side::Stream(_), _) => 0,
            (_, _, Side::Socket(..)) => hbone::CHUNK,
            (_, _, Side::Stream(_)) => hbone::CHUNK + hbone::SEND_BUFFER,
        }
    }

    fn is_reading(&self) -> bool {
        self.pending.is_empty() && !self.is_read
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &mut Side<'_>,
        to: &mut Side<'_>,
        passed: &Cell<u64>,
    ) -> Poll<Result<(), WayError>> {
        if self.is_done {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..TURNS {
            while !self.pending.is_empty() {
                let Poll::Ready(taken) = to.poll_write(context, &mut self.pending) else {
                    from.gather(context);
                    return Poll::Pending;
                };
                let taken = taken.map_err(WayError::Write)?;
                from.consumed(taken);
                passed.set(passed.get() + taken as u64);
            }
            if self.is_read {
                to.finish().map_err(WayError::Write)?;
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

/// One end while bytes pass.
enum Side<'a> {
    Socket(&'a TcpStream, Option<Watch<'a>>),
    Stream(&'a mut Stream),
}

/// Waits for a socket's reset; made only for one that is not read.
type Watch<'a> = Pin<Box<dyn Future<Output = io::Error> + 'a>>;

impl End {
    fn side(&mut self) -> Side<'_> {
        match self {
            Self::Socket(socket) => Side::Socket(socket, None),
            Self::Stream(stream) => Side::Stream(stream),
        }
    }
}

impl Side<'_> {
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        match self {
            Self::Socket(socket, _) => {
                let bytes = ready!(hbone::read_chunk(|buffer| net::poll_read(socket, context, buffer)))?;
                Poll::Ready(Ok(Some(bytes).filter(|bytes| !bytes.is_empty())))
            }
            Self::Stream(stream) => stream.poll_read(context),
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket(socket, _) => {
                let taken = ready!(net::poll_write(socket, context, bytes))?;
                bytes.advance(taken);
                Poll::Ready(Ok(taken))
            }
            Self::Stream(stream) => stream.poll_write(context, bytes),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Socket(socket, _) => SockRef::from(*socket).shutdown(Shutdown::Write),
            Self::Stream(stream) => stream.finish(),
        }
    }

    /// Keeps what arrives and is not read.
    fn gather(&mut self, context: &mut Context<'_>) {
        match self {
            // The kernel does.
            Self::Socket(..) => (),
            Self::Stream(stream) => stream.gather(context),
        }
    }

    fn consumed(&mut self, bytes: usize) {
        match self {
            // TCP's own window.
            Self::Socket(..) => (),
            Self::Stream(stream) => stream.consumed(bytes),
        }
    }

    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        match self {
            Self::Socket(socket, watch) => watch.get_or_insert_with(|| Box::pin(reset(socket))).as_mut().poll(context),
            Self::Stream(stream) => stream.poll_reset(context),
        }
    }
}

/// After its FIN a socket is readable for ever, so that only EPOLLERR tells of a reset.
async fn reset(socket: &TcpStream) -> io::Error {
    match socket.ready(Interest::ERROR).await {
        Ok(_) => socket.take_error().ok().flatten().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()),
        Err(error) => error,
    }
}
