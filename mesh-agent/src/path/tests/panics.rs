//! A bug in the path of one connection costs that connection, and nothing else.

use std::{sync::atomic::AtomicUsize, time::Duration};

use tokio::time::timeout;

use super::node::{is_refused, passes, view};
use crate::{
    certificates::Wallet,
    drain,
    kernel::{self, Listener},
    path::{Flag, Steering},
    proving::{Node, address, app, dial, pod},
};

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_panic_in_one_connection_takes_neither_the_worker_nor_its_other_connections() {
    let (web, db) = (pod(1, "web", address()), pod(2, "db", address()));
    let (application, destination) = app(db.addresses[0]).await;
    let pods = [web.clone(), db.clone()];
    let steering = Steering::Broken(kernel::Origin { destination, endpoint: None }, AtomicUsize::new(0));
    let node = Node::steered(steering, Some(view(&pods, vec![])), &pods, Wallet::default());
    let outbound = node.listen(&web, Listener::Outbound).await;
    let before = drain::panics();
    let mut early = dial(web.addresses[0], outbound).await.unwrap();
    let (mut early_server, _) = timeout(SOON, application.accept()).await.unwrap().unwrap();
    passes(&mut early, &mut early_server).await;

    is_refused(dial(web.addresses[0], outbound).await).await;

    passes(&mut early, &mut early_server).await;
    let mut late = dial(web.addresses[0], outbound).await.unwrap();
    let (mut late_server, _) = timeout(SOON, application.accept()).await.unwrap().unwrap();
    passes(&mut late, &mut late_server).await;
    assert!(drain::panics() > before);
    assert_eq!(node.worker.connections().await.unwrap().len(), 2, "the one that panicked is not listed for ever");
    let refused = node.worker.refused().await.unwrap();
    assert_eq!(refused.iter().map(|record| record.flag).collect::<Vec<_>>(), [Flag::Panic]);
    let closed = |line: &&str| line.starts_with("istio_tcp_connections_failed_total") && line.contains("\"PANIC\"");
    let page = node.metrics();
    assert!(page.lines().find(closed).is_some_and(|line| line.ends_with(" 1")), "{page}");
}
