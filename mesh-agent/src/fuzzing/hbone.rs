//! What another node sends through a tunnel, once its certificate is verified.

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, OnceLock},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use mesh_api::Identity;
use tokio::{
    io::AsyncWriteExt,
    runtime::{Builder, Runtime},
    task::LocalSet,
};

use crate::{
    drain::Drain,
    hbone::{Baggage, Incoming, Peer, Stream, TraceParent, authority, connect_request, forwarded_for, serve_unsealed},
    path::{Failure, Tunnel, request_origin},
    view::{Workload, fixtures},
};

/// What every HTTP/2 client says first. Source: RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes between the two ends.
const PIPE: usize = 64 << 10;
/// How often the server and the echoes are polled before the end.
const TURNS: usize = 8;

fn web() -> Identity {
    Identity::new("cluster.local", "default", "web").expect("a good name")
}

/// A request as text: its authority, then a header per line. Good when it says who asks and for what.
pub fn hbone_request(text: &[u8]) -> bool {
    let mut lines = text.split(|byte| *byte == b'\n');
    let uri = Uri::builder().authority(lines.next().unwrap_or_default()).build();
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..at]), HeaderValue::from_bytes(line[at + 1..].trim_ascii()));
        if let (Ok(name), Ok(value)) = (name, value) {
            // What is too many is left out, as h2 does.
            headers.try_append(name, value).ok();
        }
    }
    let baggage = Baggage::read(&headers);
    let header = baggage_header(&baggage);
    let Ok(mut request) = uri.and_then(|uri| Request::builder().uri(uri).body(())) else { return false };
    assert!(authority(&request).is_err(), "no CONNECT was asked for");
    *request.method_mut() = Method::CONNECT;
    let tunnel = tunnel(text.starts_with(b"["));
    let origin = match request_origin(&tunnel, authority(&request), &headers) {
        Ok(origin) => origin,
        Err(failure) => {
            assert!(matches!(failure, Failure::Request(status) if status.is_client_error()), "{failure:?}");
            return false;
        }
    };
    assert_eq!(origin.source.identity.as_ref(), Some(&tunnel.peer.identity));
    assert_eq!(origin.source_address.ip(), tunnel.remote.ip());
    assert_eq!(origin.destination.ip(), tunnel.local.ip());
    written_is_read(origin.source_address, origin.destination, header);
    true
}

fn tunnel(is_v6: bool) -> Tunnel {
    let address = |last: u8, port| match is_v6 {
        true => SocketAddr::new([0xfd00, 0, 0, 0, 0, 0, 0, last.into()].into(), port),
        false => SocketAddr::new([10, 0, 0, last].into(), port),
    };
    let peer = Rc::new(Peer { identity: web(), cipher: "TLS13_AES_128_GCM_SHA256" });
    Tunnel { local: address(2, 15008), remote: address(1, 40000), peer }
}

/// A workload's baggage with these words, which reads as they are.
fn baggage_header(baggage: &Baggage) -> Option<HeaderValue> {
    static KNOWN: OnceLock<Arc<Workload>> = OnceLock::new();
    let known = KNOWN.get_or_init(|| {
        let view = fixtures::view([fixtures::pod("web", &["10.0.0.1"])], [], []);
        view.workloads().next().expect("it is there").clone()
    });
    let workload = Workload {
        cluster: baggage.cluster.clone(),
        namespace: baggage.namespace.clone(),
        workload_name: baggage.workload.clone(),
        canonical_name: baggage.canonical_name.clone(),
        canonical_revision: baggage.canonical_revision.clone(),
        ..(**known).clone()
    };
    let header = Baggage::header(&workload);
    let headers: HeaderMap = header.iter().map(|header| (HeaderName::from_static("baggage"), header.clone())).collect();
    assert_eq!(Baggage::read(&headers), *baggage);
    header
}

/// The next agent understands what this one would write.
fn written_is_read(source: SocketAddr, destination: SocketAddr, baggage: Option<HeaderValue>) {
    let trace = TraceParent::random(&mut fastrand::Rng::with_seed(1));
    let request = connect_request(destination, source, Some("db.default.svc.cluster.local"), baggage, trace);
    let request = request.expect("two addresses make a request");
    assert_eq!(authority(&request), Ok(destination));
    assert_eq!(forwarded_for(request.headers(), source.ip()), Some(source));
}

/// The bytes of a whole tunnel behind the preface, up to its end. Good when a request was answered with 200 and the tunnel
/// ended in order. It must end: what hangs is a finding.
pub fn hbone_tunnel(bytes: &[u8]) -> bool {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    let tasks = LocalSet::new();
    RUNTIME.with(|runtime| tasks.block_on(runtime, converse(bytes)))
}

async fn converse(bytes: &[u8]) -> bool {
    let (near, far) = tokio::io::duplex(PIPE);
    let (mut answers, mut questions) = tokio::io::split(far);
    let (drain, identity, is_good) = (Drain::default(), web(), Cell::new(false));
    let ask = async {
        // It fails when the server has had enough.
        questions.write_all(PREFACE).await.ok();
        questions.write_all(bytes).await.ok();
        // h2 drops what arrives in one read with the end.
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
        questions.shutdown().await.ok();
    };
    let take = |incoming: Incoming| {
        let echoes = answer(incoming).map(|stream| drain.spawn_local(echo(stream)));
        is_good.set(is_good.get() || echoes.is_some());
    };
    let serve = async { serve_unsealed(near, &identity, &drain, take).await.unwrap_or(false) };
    let mut nowhere = tokio::io::sink();
    let (is_orderly, ..) = tokio::join!(serve, ask, tokio::io::copy(&mut answers, &mut nowhere));
    drain.joined().await;
    is_orderly && is_good.get()
}

/// The stream of a request that the path would look at.
fn answer(mut incoming: Incoming) -> Option<Stream> {
    let tunnel = tunnel(false);
    let (asked, _) = incoming.parts();
    match request_origin(&tunnel, asked.authority(), asked.headers()) {
        Ok(_) => {
            let baggage = Baggage::read(asked.headers());
            incoming.accept(baggage_header(&baggage)).ok()
        }
        Err(Failure::Request(status)) => {
            incoming.refuse(status);
            None
        }
        Err(failure) => panic!("{failure:?} is nothing that a request is refused for"),
    }
}

/// Sends back what comes, until either end has had enough.
async fn echo(mut stream: Stream) {
    // It fails when the peer resets the stream or the tunnel ends.
    echo_until_the_end(&mut stream).await.ok();
}

async fn echo_until_the_end(stream: &mut Stream) -> io::Result<()> {
    while let Some(mut bytes) = poll_fn(|context| stream.poll_read(context)).await? {
        let length = bytes.len();
        while !bytes.is_empty() {
            poll_fn(|context| stream.poll_write(context, &mut bytes)).await?;
        }
        stream.consumed(length);
    }
    stream.finish()
}
