//! A way to an API server that can be cut: connections over it end, and new ones are refused, until it is mended.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// The way.
pub struct Way {
    /// Where it begins.
    pub address: SocketAddr,
    is_open: watch::Sender<bool>,
}

impl Way {
    /// An open way to an address.
    pub async fn to(end: SocketAddr) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let is_open = watch::Sender::new(true);
        let state = is_open.subscribe();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, end, state.clone()));
            }
        });
        Way { address, is_open }
    }

    /// Cuts it.
    pub fn cut(&self) {
        self.is_open.send_replace(false);
    }

    /// Mends it.
    pub fn mend(&self) {
        self.is_open.send_replace(true);
    }
}

async fn carry(mut near: TcpStream, end: SocketAddr, mut is_open: watch::Receiver<bool>) {
    if !*is_open.borrow() {
        return;
    }
    let Ok(mut far) = TcpStream::connect(end).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => {}
        _ = is_open.wait_for(|is_open| !is_open) => {}
    }
}
