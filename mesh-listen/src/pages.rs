//! Serves pages over HTTP/1: metrics, readiness, what people look at. Every connection has a place, a time for its requests
//! and an end.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use axum::Router;
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{Gate, Place, Reason, Refusals, limits};

/// Serves until `stop`; then answers under way are given, as long as [`limits::ANSWER_TIMEOUT`].
pub async fn pages(listener: TcpListener, router: Router, refusals: Arc<Refusals>, stop: impl Future<Output = ()>) {
    let gate = Gate::new(limits::PAGES);
    let (mut stop, mut connections) = (std::pin::pin!(stop), JoinSet::new());
    let (stopping, stopped) = tokio::sync::watch::channel(false);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((socket, peer)) => match gate.enter(Some(peer.ip())) {
                Ok(place) => {
                    let (router, refusals, mut stopped) = (router.clone(), refusals.clone(), stopped.clone());
                    connections.spawn(async move {
                        let stop = async move { drop(stopped.wait_for(|is_stopping| *is_stopping).await) };
                        converse(socket, peer, router, &refusals, place, stop).await;
                    });
                }
                Err(reason) => refusals.refuse(reason, peer, "too many connections"),
            },
            Err(error) => {
                refusals.refuse(Reason::Descriptors, "nobody", error);
                sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }
    stopping.send_replace(true);
    let ended = async { while connections.join_next().await.is_some() {} };
    // What is left is dropped with the set.
    let _ = timeout(limits::ANSWER_TIMEOUT, ended).await;
}

/// One connection from its first byte to its last.
async fn converse(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    router: Router,
    refusals: &Refusals,
    _place: Place,
    stop: impl Future<Output = ()>,
) {
    let has_asked = AtomicBool::new(false);
    let service = Asked { service: TowerToHyperService::new(router), has_asked: &has_asked };
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits::HEAD_TIMEOUT);
    builder.max_buf_size(limits::HEAD_BYTES).max_headers(limits::HEAD_FIELDS);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(socket), service));
    let served = tokio::select! {
        served = connection.as_mut() => Some(served),
        () = stop => None,
        () = sleep(limits::PAGE_LIFETIME) => None,
    };
    let served = match served {
        Some(served) => served,
        None => {
            connection.as_mut().graceful_shutdown();
            match timeout(limits::ANSWER_TIMEOUT, connection.as_mut()).await {
                Ok(served) => served,
                Err(_) => return refusals.refuse(Reason::Timeout, peer, "the answer was not read"),
            }
        }
    };
    if let Err(error) = served
        && let Some(reason) = fault(&error, has_asked.load(Relaxed))
    {
        refusals.refuse(reason, peer, error);
    }
}

/// What the client did wrong; nothing, if it only went away or kept an old connection open for nothing.
fn fault(error: &hyper::Error, has_asked: bool) -> Option<Reason> {
    if error.is_timeout() {
        return Some(Reason::Timeout).filter(|_| !has_asked);
    }
    if error.is_parse() {
        return Some(Reason::Head);
    }
    error.is_incomplete_message().then_some(Reason::Truncated)
}

/// Notes that a request has come.
struct Asked<'a, S> {
    service: S,
    has_asked: &'a AtomicBool,
}

impl<S: Service<hyper::Request<Incoming>>> Service<hyper::Request<Incoming>> for Asked<'_, S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: hyper::Request<Incoming>) -> Self::Future {
        self.has_asked.store(true, Relaxed);
        self.service.call(request)
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        task::JoinHandle,
        time::{Duration, Instant},
    };

    use super::*;

    const PAGE: usize = 1 << 20;

    /// A connection that has asked for a page which does not fit between the two, and its server.
    async fn asks(refusals: &Arc<Refusals>) -> (DuplexStream, JoinHandle<()>) {
        let (mut client, server) = duplex(16 << 10);
        let router = Router::new().route("/", get(async || vec![b'x'; PAGE]));
        let place = Gate::new(limits::PAGES).enter(None).expect("a place");
        let refusals = refusals.clone();
        let served = tokio::spawn(async move {
            let peer = ([127, 0, 0, 1], 1).into();
            converse(server, peer, router, &refusals, place, std::future::pending()).await;
        });
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it listens");
        (client, served)
    }

    fn timeouts(refusals: &Refusals) -> u64 {
        refusals.counts().filter(|(reason, _)| *reason == Reason::Timeout).map(|(_, count)| count).sum()
    }

    /// The clock stands still while anything can go on, and is put to the next deadline when nothing can.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_read_is_given_up_after_two_minutes_and_counted() {
        let refusals = Arc::new(Refusals::of("15020"));
        let begun = Instant::now();
        let (mut client, served) = asks(&refusals).await;
        served.await.expect("it ends by itself");
        assert_eq!(begun.elapsed().as_secs(), (limits::PAGE_LIFETIME + limits::ANSWER_TIMEOUT).as_secs());
        assert_eq!(timeouts(&refusals), 1);
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.expect("what was under way, and an end");
        assert!(heard.len() < PAGE, "{} bytes", heard.len());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_read_slowly_within_that_time_arrives_whole() {
        let refusals = Arc::new(Refusals::of("15020"));
        let (mut client, served) = asks(&refusals).await;
        let (mut part, mut heard) = (vec![0; 16 << 10], 0);
        while heard < PAGE {
            sleep(Duration::from_secs(1)).await;
            heard += client.read(&mut part).await.expect("it is being given");
        }
        drop(client);
        served.await.expect("it ends");
        assert_eq!(timeouts(&refusals), 0);
    }
}
