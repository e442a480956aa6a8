//! What is said before the answer.

use std::{cell::Cell, rc::Rc};

use h2::Reason;
use http::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use super::{Act, Early, Ground, OpenError, locally};
use crate::proving::address;

/// Both ends of a connection: the application's and the agent's.
pub(super) async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((address(), 0)).await.unwrap();
    let application = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (application, listener.accept().await.unwrap().0)
}

fn after(bytes: usize, then: Act) -> Act {
    Act::After(bytes, Box::new(then))
}

#[tokio::test]
async fn what_is_said_early_arrives_before_the_answer() {
    locally(async {
        let held = Cell::default();
        // The peer answers only when it has heard all.
        let ground = Ground::new(|_| after(5, Act::Accept)).await;
        let (mut application, mut socket) = connection().await;
        application.write_all(b"hello").await.unwrap();
        let mut early = Early::of(&mut socket, &held);
        ground.open_with(&mut early).await.unwrap();
        let begun = early.begun();
        assert_eq!((begun.sent, begun.pending.len(), begun.is_ended), (5, 0, false));
        assert_eq!(held.get(), 10, "kept, and maybe not yet sealed");
        // And what is said while the answer is waited for, after the request.
        let (mut application, mut socket) = connection().await;
        let mut early = Early::of(&mut socket, &held);
        let (opened, written) = tokio::join!(ground.open_with(&mut early), application.write_all(b"world"));
        assert!(opened.is_ok() && written.is_ok());
        assert_eq!(*ground.peer.heard.borrow(), [b"hello", b"world"]);
    })
    .await;
}

#[tokio::test]
async fn a_refused_stream_goes_elsewhere_with_every_byte_once() {
    locally(async {
        let held = Cell::default();
        let refused = |request| after(5, if request < 2 { Act::Reset(Reason::REFUSED_STREAM) } else { Act::Accept });
        let ground = Ground::new(refused).await;
        let (mut application, mut socket) = connection().await;
        application.write_all(b"hello").await.unwrap();
        let mut early = Early::of(&mut socket, &held);
        ground.open_with(&mut early).await.unwrap();
        assert_eq!(early.begun().sent, 5);
        assert_eq!(*ground.peer.heard.borrow(), [b"hello"; 3]);

        let full = Ground::new(|_| after(5, Act::Answer(StatusCode::SERVICE_UNAVAILABLE))).await;
        let other = Ground::new(|_| after(10, Act::Accept)).await;
        let (mut application, mut socket) = connection().await;
        application.write_all(b"hello").await.unwrap();
        let mut early = Early::of(&mut socket, &held);
        let refused = full.open_with(&mut early).await;
        assert!(matches!(refused, Err(OpenError::Status(StatusCode::SERVICE_UNAVAILABLE))));
        application.write_all(b"world").await.unwrap();
        other.open_with(&mut early).await.unwrap();
        assert_eq!(early.begun().sent, 10);
        assert_eq!(*other.peer.heard.borrow(), [b"helloworld"]);
    })
    .await;
}

#[tokio::test]
async fn more_than_64_kib_wait_for_the_answer() {
    const KEPT: usize = 64 << 10;
    locally(async {
        let held = Cell::default();
        let ground = Ground::new(|_| after(KEPT, Act::Accept)).await;
        let (mut application, mut socket) = connection().await;
        let said: Vec<u8> = (0..3 * KEPT).map(|number| (number % 251) as u8).collect();
        let rest = said[KEPT..].to_vec();
        let all = said.clone();
        tokio::task::spawn_local(async move { application.write_all(&all).await });
        let mut early = Early::of(&mut socket, &held);
        ground.open_with(&mut early).await.unwrap();
        let begun = early.begun();
        assert_eq!((begun.sent, begun.pending.len()), (KEPT, 0));
        assert!(*ground.peer.heard.borrow() == [&said[..KEPT]]);
        let mut left = vec![0; rest.len()];
        socket.read_exact(&mut left).await.unwrap();
        assert!(left == rest);
    })
    .await;
}

#[tokio::test]
async fn what_the_peers_window_does_not_take_follows_the_answer() {
    locally(async {
        let held = Cell::default();
        let ground = Ground::new(|request| if request == 0 { Act::Accept } else { after(10, Act::Accept) }).await;
        ground.peer.window.set(10);
        let (mut application, mut socket) = connection().await;
        application.write_all(b"0123456789abcdef").await.unwrap();
        let mut early = Early::of(&mut socket, &held);
        // Its window is known once its SETTINGS are here.
        let _first = ground.open().await.unwrap();
        ground.open_with(&mut early).await.unwrap();
        let begun = early.begun();
        assert_eq!((begun.sent, &*begun.pending), (10, &b"abcdef"[..]));
    })
    .await;
}

#[tokio::test]
async fn an_end_before_the_answer_is_an_end_and_a_reset_opens_nothing() {
    locally(async {
        let held = Cell::default();
        let answer = Rc::new(Notify::new());
        let awaited = answer.clone();
        let ground = Ground::new(move |_| Act::Hold(awaited.clone())).await;
        let (mut application, mut socket) = connection().await;
        application.write_all(b"hello").await.unwrap();
        application.shutdown().await.unwrap();
        let mut early = Early::of(&mut socket, &held);
        let open = ground.open_with(&mut early);
        let much_later = async {
            while ground.peer.held.get() == 0 {
                tokio::task::yield_now().await;
            }
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            answer.notify_one();
        };
        tokio::join!(open, much_later).0.unwrap();
        let begun = early.begun();
        assert_eq!((begun.sent, begun.is_ended), (5, true));

        let (application, mut socket) = connection().await;
        let mut early = Early::of(&mut socket, &held);
        let reset = async {
            while ground.peer.held.get() == 1 {
                tokio::task::yield_now().await;
            }
            application.set_zero_linger().unwrap();
            drop(application);
        };
        let (opened, ()) = tokio::join!(ground.open_with(&mut early), reset);
        assert!(matches!(opened, Err(OpenError::Source(_))));
    })
    .await;
}

#[tokio::test]
async fn bytes_that_may_have_been_delivered_are_not_sent_again() {
    locally(async {
        let held = Cell::default();
        let ground = Ground::new(|_| after(5, Act::Vanish)).await;
        let (mut application, mut socket) = connection().await;
        application.write_all(b"hello").await.unwrap();
        let lost = ground.open_with(&mut Early::of(&mut socket, &held)).await;
        assert!(matches!(lost, Err(OpenError::MayBeDelivered(_))), "{lost:?}");
        for reason in [Reason::CANCEL, Reason::CONNECT_ERROR, Reason::INTERNAL_ERROR] {
            let ground = Ground::new(move |_| after(5, Act::Reset(reason))).await;
            let (mut application, mut socket) = connection().await;
            application.write_all(b"hello").await.unwrap();
            let lost = ground.open_with(&mut Early::of(&mut socket, &held)).await;
            assert!(matches!(lost, Err(OpenError::MayBeDelivered(_))), "{lost:?}");
            assert_eq!(*ground.peer.heard.borrow(), [b"hello"]);
        }
    })
    .await;
}
