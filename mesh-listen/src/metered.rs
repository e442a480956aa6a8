//! A transport of HTTP/2 that counts what passes: ends a peer that spends too many frames, or sends none in time, and counts
//! what h2 refuses by what h2 says to the peer. Changes no byte.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};
use tonic::transport::server::Connected;

use crate::{
    Fault, Meter, Place, Reason, Refusals,
    scanner::{Frame, Scanner},
};

/// One connection.
#[derive(Debug)]
pub struct Metered<S> {
    transport: S,
    meter: Meter,
    said: Scanner,
    /// Until the first frame.
    deadline: Option<Pin<Box<Sleep>>>,
    refusals: Arc<Refusals>,
    peer: Option<SocketAddr>,
    /// One refusal is enough of one connection.
    is_refused: bool,
    _place: Option<Place>,
}

impl<S> Metered<S> {
    /// Of a client that has connected to us.
    pub fn of_client(transport: S, meter: Meter, refusals: Arc<Refusals>, peer: Option<SocketAddr>) -> Self {
        let said = Scanner::of_server();
        Self { transport, meter, said, deadline: None, refusals, peer, is_refused: false, _place: None }
    }

    /// Of a server that we have connected to.
    pub fn of_server(transport: S, meter: Meter, refusals: Arc<Refusals>, peer: Option<SocketAddr>) -> Self {
        Self { said: Scanner::of_client(), ..Self::of_client(transport, meter, refusals, peer) }
    }

    /// Ends it when no frame comes in this time.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self { deadline: Some(Box::pin(tokio::time::sleep(limit))), ..self }
    }

    /// Gives the place back when it ends.
    #[must_use]
    pub fn holding(self, place: Place) -> Self {
        Self { _place: Some(place), ..self }
    }

    fn refuse(&mut self, reason: Reason, detail: &str) {
        if !std::mem::replace(&mut self.is_refused, true) {
            let peer = self.peer.map_or_else(|| "local".to_owned(), |peer| peer.to_string());
            self.refusals.refuse(reason, peer, detail);
        }
    }

    /// What has come.
    fn count(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            self.end();
        }
        match self.meter.read(bytes, Instant::now()) {
            Ok(()) => (),
            Err(Fault::Preface) => {
                self.refuse(Reason::Protocol, "no HTTP/2");
                return Err(io::Error::other("the peer speaks no HTTP/2"));
            }
            Err(Fault::Frames) => {
                self.refuse(Reason::Frames, "more frames without payload than a connection may send");
                return Err(io::Error::other("too many frames without payload"));
            }
        }
        if self.deadline.is_some() && self.meter.has_begun() {
            self.deadline = None;
        }
        Ok(())
    }

    /// Nothing more comes.
    fn end(&mut self) {
        if self.meter.is_truncated() {
            self.refuse(Reason::Truncated, "the connection ended inside a frame");
        }
    }

    /// What h2 says to the peer.
    fn listen(&mut self, bytes: &[u8]) {
        let mut fault = None;
        let _ = self.said.read(bytes, |frame| match frame {
            // Source: RFC 9113, section 7. NO_ERROR, and what ends a single stream in order.
            Frame::GoAway(0) | Frame::Reset(0 | 2 | 7 | 8 | 10) | Frame::Carrying | Frame::Bare => (),
            Frame::GoAway(code) | Frame::Reset(code) => fault = Some(code),
        });
        if let Some(code) = fault {
            self.refuse(Reason::Protocol, &format!("HTTP/2 error code {code}"));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.meter.is_turn_over() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.transport).poll_read(context, buffer) {
            Poll::Ready(Ok(())) => Poll::Ready(this.count(&buffer.filled()[before..])),
            Poll::Ready(Err(error)) => {
                // What rustls finds wrong with a record.
                if error.kind() == io::ErrorKind::InvalidData {
                    this.refuse(Reason::Records, &error.to_string());
                }
                this.end();
                Poll::Ready(Err(error))
            }
            Poll::Pending => {
                let Some(deadline) = &mut this.deadline else { return Poll::Pending };
                ready!(deadline.as_mut().poll(context));
                this.refuse(Reason::Timeout, "no HTTP/2 frame in time");
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.transport).poll_write(context, bytes))?;
        self.meter.sent(written);
        self.listen(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.transport).poll_write_vectored(context, pieces))?;
        self.meter.sent(written);
        let mut left = written;
        for piece in pieces {
            let part = left.min(piece.len());
            self.listen(&piece[..part]);
            left -= part;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(context)
    }
}

impl<S: Connected> Connected for Metered<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.transport.connect_info()
    }
}
