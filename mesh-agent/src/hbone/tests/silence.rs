//! Peers that give no sign of life, or take their time.

use std::cell::Cell;

use tokio::{io::AsyncWriteExt, time::timeout};

use super::{Act, DOUBT, Early, Ground, OpenError, SHORTLY, SILENCE, early::connection, locally};

#[tokio::test]
async fn a_stream_on_a_tunnel_whose_peer_hangs_is_opened_on_a_new_one() {
    locally(async {
        let ground = Ground::new(|request| if request == 1 { Act::Hang } else { Act::Accept }).await;
        let mut old = ground.open().await.unwrap();
        let _new = ground.open().await.unwrap();
        assert_eq!((ground.dials.get(), ground.peer.connections.get()), (2, 2));
        // Its own streams may go on when the peer does.
        let read = timeout(SHORTLY, std::future::poll_fn(|context| old.poll_read(context))).await;
        assert!(read.is_err(), "the old stream ended: {read:?}");
        assert_eq!(ground.pool.tunnels(), 1, "the silent tunnel takes no new stream");
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_is_there_and_takes_its_time_is_waited_for() {
    locally(async {
        let ground = Ground::new(|_| Act::Ponder).await;
        let waited = timeout(SILENCE + DOUBT, ground.open()).await;
        assert!(waited.is_err(), "{waited:?}");
        assert_eq!((ground.dials.get(), ground.peer.pondering.borrow().len()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn bytes_that_went_ahead_to_a_peer_that_hangs_are_not_sent_again() {
    locally(async {
        let held = Cell::default();
        let ground = Ground::new(|request| if request == 1 { Act::Hang } else { Act::Accept }).await;
        let _old = ground.open().await.unwrap();
        let (mut application, mut socket) = connection().await;
        application.write_all(b"hello").await.unwrap();
        let silent = ground.open_with(&mut Early::of(&mut socket, &held)).await;
        let Err(OpenError::MayBeDelivered(error)) = silent else { panic!("{silent:?}") };
        assert!(matches!(*error, OpenError::Silent));
        assert_eq!(ground.dials.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn nothing_goes_ahead_on_a_tunnel_of_which_nothing_was_heard_lately() {
    locally(async {
        let held = Cell::default();
        let ground = Ground::new(|request| if request == 1 { Act::Hang } else { Act::Accept }).await;
        let mut idle = ground.open().await.unwrap();
        let heard = timeout(DOUBT + SHORTLY, std::future::poll_fn(|context| idle.poll_read(context))).await;
        assert!(heard.is_err(), "{heard:?}");
        let (mut application, mut socket) = connection().await;
        application.write_all(b"hello").await.unwrap();
        let mut early = Early::of(&mut socket, &held);
        ground.open_with(&mut early).await.unwrap();
        assert_eq!(ground.dials.get(), 2, "it was opened on another tunnel");
        assert_eq!(early.begun().sent, 5, "which is new");
    })
    .await;
}
