//! TLS connections for the gRPC server. Handshakes run beside each other, so one slow caller keeps nobody waiting, and
//! only so many at a time, so many slow callers do not fill the memory.

use std::{io, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at a time.
const HANDSHAKES: usize = 256;
/// After an error that has to pass (no descriptors left), the next connection is accepted this much later.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until the receiver is dropped.
pub fn connections(listener: TcpListener, config: ServerConfig) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let (ready, receiver) = mpsc::channel(16);
    tokio::spawn(accept(listener, TlsAcceptor::from(Arc::new(config)), ready));
    ReceiverStream::new(receiver)
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, ready: mpsc::Sender<io::Result<TlsStream<TcpStream>>>) {
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let caller = stream.peer_addr().ok();
            let _ = stream.set_nodelay(true); // only delays answers when it fails
            match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                // Without a receiver the server is stopping.
                Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                Ok(Err(error)) => tracing::debug!(?caller, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(?caller, "TLS handshake took too long"),
            }
        });
    }
}
