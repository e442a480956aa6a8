//! TLS connections for the gRPC server. Handshakes run beside each other, so one slow caller keeps nobody waiting. How many
//! callers, how many handshakes, how long and how many frames is in `mesh_listen::limits`.

use std::{io, net::SocketAddr, sync::Arc, time::Instant};

use mesh_listen::{Crowd, Gate, Meter, Metered, Place, Reason, Refusals, limits};
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

/// Accepts connections, as many at a time as `agents` says, until the receiver is dropped.
pub fn connections(
    listener: TcpListener,
    config: ServerConfig,
    refusals: Arc<Refusals>,
    agents: Crowd,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, receiver) = mpsc::channel(16);
    let door = Door {
        acceptor: TlsAcceptor::from(Arc::new(config)),
        refusals,
        agents: Gate::new(agents),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::{ServerName, pem::PemObject};
    use tokio::io::AsyncReadExt;
    use tokio_rustls::{TlsConnector, client};
    use tokio_stream::StreamExt;

    use super::*;
    use crate::{
        ca::{authority::Authority, files, server::ServerCertificate},
        testing::{DEADLINE, TempFolder},
    };

    /// What agents trust, and what the daemon shows.
    fn credentials() -> (TlsConnector, ServerConfig) {
        let folder = TempFolder::new();
        let parts = files::load(&folder.0, None).expect("an authority");
        let authority = Authority::new(parts, Duration::from_secs(3600));
        let own = ServerCertificate::issue(&authority, &["mesh-control".to_owned()]).expect("a certificate");
        let root = std::fs::read(folder.0.join(files::ROOT_FILE)).expect("the root");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls::pki_types::CertificateDer::from_pem_slice(&root).expect("PEM")).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let client = client.expect("TLS 1.3").with_root_certificates(roots).with_no_client_auth();
        (TlsConnector::from(Arc::new(client)), own.config().expect("TLS 1.3"))
    }

    struct Caller {
        connector: TlsConnector,
        to: SocketAddr,
    }

    impl Caller {
        async fn calls(&self) -> io::Result<client::TlsStream<TcpStream>> {
            let name = ServerName::try_from("mesh-control").expect("a name");
            self.connector.connect(name, TcpStream::connect(self.to).await?).await
        }
    }

    #[tokio::test]
    async fn one_more_connection_than_there_are_places_is_ended_and_counted_and_a_place_that_is_free_is_taken() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let to = listener.local_addr().expect("an address");
        let (connector, config) = credentials();
        let refusals = Arc::new(Refusals::of("15012"));
        let crowd = Crowd { all: 3, of_one_address: 8 };
        let mut accepted = connections(listener, config, refusals.clone(), crowd);
        let caller = Caller { connector, to };
        let (mut inside, mut served) = (Vec::new(), Vec::new());
        for _ in 0..crowd.all {
            let (client, server) = tokio::join!(caller.calls(), accepted.next());
            inside.push(client.expect("it has a place"));
            served.push(server.expect("a connection"));
        }

        let mut last = TcpStream::connect(to).await.expect("it listens");
        let read = timeout(DEADLINE, last.read(&mut [0; 1])).await.expect("it is ended at once");
        assert_eq!(read.expect("FIN"), 0);
        assert!(caller.calls().await.is_err());
        let crowded = refusals.counts().find(|(reason, _)| *reason == Reason::Crowded);
        assert_eq!(crowded, Some((Reason::Crowded, 2)));

        // Its server side goes as the connection does.
        drop((inside.pop(), served.pop()));
        let (client, server) = tokio::join!(caller.calls(), accepted.next());
        assert!(client.is_ok() && server.is_some());
    }
}
