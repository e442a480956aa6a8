//! TLS connections for the gRPC server. Handshakes run beside each other, so one slow caller keeps nobody waiting. How many
//! callers, how many handshakes, how long and how many frames is in `mesh_listen::limits`.

use std::{io, net::SocketAddr, sync::Arc, time::Instant};

use mesh_listen::{Gate, Meter, Metered, Place, Reason, Refusals, limits};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

/// A connection whose handshake is done.
pub type Connection = Metered<TlsStream<TcpStream>>;

/// Accepts connections until the receiver is dropped.
pub fn connections(
    listener: TcpListener,
    config: ServerConfig,
    refusals: Arc<Refusals>,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, receiver) = mpsc::channel(16);
    let door = Door {
        acceptor: TlsAcceptor::from(Arc::new(config)),
        refusals,
        agents: Gate::new(limits::AGENTS),
        handshakes: Gate::new(limits::HANDSHAKES),
        ready,
    };
    tokio::spawn(door.keep(listener));
    ReceiverStream::new(receiver)
}

#[derive(Clone)]
struct Door {
    acceptor: TlsAcceptor,
    refusals: Arc<Refusals>,
    agents: Arc<Gate>,
    handshakes: Arc<Gate>,
    ready: mpsc::Sender<io::Result<Connection>>,
}

impl Door {
    async fn keep(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.ready.closed() => return,
            };
            match accepted {
                Ok((stream, caller)) => match self.places(caller) {
                    Ok((place, handshake)) => {
                        drop(tokio::spawn(self.clone().handshake(stream, caller, place, handshake)));
                    }
                    Err(reason) => self.refusals.refuse(reason, caller, "too many connections or handshakes"),
                },
                Err(error) => {
                    self.refusals.refuse(Reason::Descriptors, "nobody", error);
                    sleep(limits::ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn places(&self, caller: SocketAddr) -> Result<(Place, Place), Reason> {
        Ok((self.agents.enter(Some(caller.ip()))?, self.handshakes.enter(Some(caller.ip()))?))
    }

    async fn handshake(self, stream: TcpStream, caller: SocketAddr, place: Place, handshake: Place) {
        let _ = stream.set_nodelay(true); // only delays answers when it fails
        match timeout(limits::HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                drop(handshake);
                let meter = Meter::of_client(limits::FRAMES, Instant::now());
                let metered = Metered::of_client(stream, meter, self.refusals, Some(caller));
                // Without a receiver the server is stopping.
                drop(self.ready.send(Ok(metered.within(limits::HANDSHAKE_TIMEOUT).holding(place))).await);
            }
            Ok(Err(error)) => self.refusals.refuse(Reason::Handshake, caller, error),
            Err(_) => self.refusals.refuse(Reason::Timeout, caller, "the TLS handshake took too long"),
        }
    }
}
