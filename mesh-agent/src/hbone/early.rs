//! What an application says before the far end has answered: sent right behind the CONNECT, and kept until the answer, so
//! that a stream which is refused can go elsewhere with nothing lost. The far end's agent hands none of it on before it has
//! authorised the request. Nothing goes ahead on a tunnel of which nothing was heard lately: bytes that are on their way when
//! the peer falls silent may have been delivered, so that the connection ends instead of going elsewhere.
//!
//! ```text
//! kept: 0 ......... sent ......... length (at most 64 KiB)
//!       on the stream   waits for the stream's window
//! ```

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{SendStream, client::ResponseFuture};
use http::Response;
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};

use super::{lent::Lent, stream};

/// Bytes that are kept; more wait in the application's socket.
const KEPT: usize = 64 << 10;

/// Of one connection, over all that is tried for it.
#[derive(Debug, Default)]
pub struct Early<'a> {
    /// None: nothing is said early.
    source: Option<&'a mut TcpStream>,
    /// Told what this holds, with what HTTP/2 may hold of it; bytes.
    held: Option<&'a Cell<usize>>,
    kept: Vec<u8>,
    /// How many are on the stream of now.
    sent: usize,
    is_ended: bool,
}

/// What has been read of the source when its stream is open.
#[derive(Debug, Default)]
pub struct Begun {
    /// Bytes that are on their way.
    pub sent: usize,
    /// Those that follow them.
    pub pending: Bytes,
    /// The source has ended.
    pub is_ended: bool,
}

/// Why a stream got no answer.
pub(super) enum Unanswered {
    /// The source was reset: nobody waits.
    Source(io::Error),
    Stream(h2::Error),
    /// The tunnel's peer gives no sign of life.
    Silence,
}

impl<'a> Early<'a> {
    /// What `source` says; `held` is told how much memory that takes.
    pub fn of(source: &'a mut TcpStream, held: &'a Cell<usize>) -> Self {
        Self { source: Some(source), held: Some(held), ..Self::default() }
    }

    /// Of a next hop that is not a stream, or another stream: nothing is on its way.
    pub fn restart(&mut self) {
        self.sent = 0;
    }

    /// Whether something is on the stream of now.
    pub(super) fn is_sent(&self) -> bool {
        self.sent > 0
    }

    /// What the open connection begins with.
    pub fn begun(self) -> Begun {
        let pending = Bytes::copy_from_slice(&self.kept[self.sent..]);
        Begun { sent: self.sent, pending, is_ended: self.is_ended }
    }

    /// Sends what there is while it waits for the answer, if it `goes_ahead`.
    pub(super) async fn until_answered(
        &mut self,
        mut response: ResponseFuture,
        send: &mut SendStream<Bytes>,
        goes_ahead: bool,
    ) -> Result<Response<h2::RecvStream>, Unanswered> {
        self.restart();
        if !goes_ahead {
            return response.await.map_err(Unanswered::Stream);
        }
        // Before the tunnel's task is run: the same record, and the same packet, as the CONNECT.
        self.read_now();
        poll_fn(|context| {
            if let Poll::Ready(answer) = Pin::new(&mut response).poll(context) {
                return Poll::Ready(answer.map_err(Unanswered::Stream));
            }
            self.poll_send(context, send).map(|error| Err(Unanswered::Source(error)))
        })
        .await
    }

    /// Ready only when the source is reset; what is wrong with the stream, its answer tells.
    fn poll_send(&mut self, context: &mut Context<'_>, send: &mut SendStream<Bytes>) -> Poll<io::Error> {
        loop {
            while self.sent < self.kept.len() {
                let unsent = self.kept.len() - self.sent;
                let Poll::Ready(Ok(room)) = stream::poll_room(send, context, unsent) else { return Poll::Pending };
                let part = Bytes::copy_from_slice(&self.kept[self.sent..self.sent + room]);
                if send.send_data(part, false).is_err() {
                    return Poll::Pending;
                }
                self.sent += room;
            }
            match self.poll_read(context) {
                Poll::Ready(Ok(())) => (),
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Keeps what comes; pending for ever once no more is kept.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let room = KEPT.saturating_sub(self.kept.len());
        let Some(source) = self.source.as_mut().filter(|_| room > 0 && !self.is_ended) else { return Poll::Pending };
        let mut lent = Lent::take();
        let mut buffer = ReadBuf::new(&mut lent.bytes()[..room]);
        std::task::ready!(Pin::new(&mut **source).poll_read(context, &mut buffer))?;
        self.is_ended = buffer.filled().is_empty();
        keep(&mut self.kept, buffer.filled(), self.held);
        Poll::Ready(Ok(()))
    }

    /// Keeps what is there, without asking the runtime, which knows of a socket's first bytes only after its next look. An
    /// end or a reset is left to [`Self::poll_read`].
    fn read_now(&mut self) {
        let Some(source) = self.source.as_ref().filter(|_| self.kept.is_empty() && !self.is_ended) else { return };
        let mut lent = Lent::take();
        if let Ok((read, _)) = rustix::net::recv(source, &mut lent.bytes()[..KEPT], rustix::net::RecvFlags::DONTWAIT) {
            keep(&mut self.kept, &lent.bytes()[..read], self.held);
        }
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8], held: Option<&Cell<usize>>) {
    kept.extend_from_slice(bytes);
    if let Some(held) = held {
        held.set(2 * kept.len());
    }
}
