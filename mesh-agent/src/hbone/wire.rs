//! The TCP socket below TLS. Reads ahead in big pieces (rustls asks for 4 KiB at a time, which would be a system call each),
//! holds a buffer only while it has bytes in it, and says at the end whether the connection is to be reset or closed.

use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use super::lent::Lent;
use crate::net;

/// Whether the session ended in order (GOAWAY and close_notify): the socket is closed then. Else it is reset.
#[derive(Debug, Clone, Default)]
pub(super) struct Orderly(Rc<Cell<bool>>);

impl Orderly {
    pub(super) fn set(&self) {
        self.0.set(true);
    }
}

/// When the peer was heard last.
#[derive(Debug, Clone)]
pub(super) struct Heard(Rc<Cell<Instant>>);

impl Heard {
    pub(super) fn age(&self) -> Duration {
        self.0.get().elapsed()
    }
}

/// A tunnel's socket.
#[derive(Debug)]
pub(super) struct Wire {
    socket: TcpStream,
    ahead: Option<Ahead>,
    orderly: Orderly,
    heard: Heard,
}

/// Bytes that were read and not yet asked for: `start..end` of the buffer.
#[derive(Debug)]
struct Ahead {
    lent: Lent,
    start: usize,
    end: usize,
}

impl Wire {
    pub(super) fn new(socket: TcpStream) -> (Self, Orderly) {
        let orderly = Orderly::default();
        let heard = Heard(Rc::new(Cell::new(Instant::now())));
        (Self { socket, ahead: None, orderly: orderly.clone(), heard }, orderly)
    }

    pub(super) fn heard(&self) -> Heard {
        self.heard.clone()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.orderly.0.get() {
            net::close_gently(&self.socket);
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut ahead = match this.ahead.take() {
            Some(ahead) => ahead,
            None => {
                let mut lent = Lent::take();
                let mut read = ReadBuf::new(lent.bytes());
                ready!(Pin::new(&mut this.socket).poll_read(context, &mut read))?;
                let end = read.filled().len();
                this.heard.0.set(Instant::now());
                Ahead { lent, start: 0, end }
            }
        };
        let length = buffer.remaining().min(ahead.end - ahead.start);
        buffer.put_slice(&ahead.lent.bytes()[ahead.start..ahead.start + length]);
        ahead.start += length;
        if ahead.start < ahead.end {
            this.ahead = Some(ahead);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
