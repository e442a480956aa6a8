//! Watching an agent's pods, as a runtime does.

use mesh_api::proto::admin::pod_event::Kind;
use mesh_tests::{App, Mesh};

#[test]
fn a_watcher_sees_pods_come_change_and_go_in_order() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    mesh.settle();
    let admin = mesh.node("node-a").admin();
    let mut watch = admin.watch().expect("the agent can be watched");
    let mut sees = |kind: Kind, pod: &App, state: &str| {
        assert_eq!(watch.event(), (kind, pod.name().to_owned(), state.to_owned()));
    };
    sees(Kind::Enrolled, &web, "ready");

    let early = mesh.app("early").unpublished().on("node-a");
    sees(Kind::Enrolled, &early, "pending");
    early.published();
    sees(Kind::Changed, &early, "ready");
    admin.withdraw(early.uid()).expect("it is enrolled");
    sees(Kind::Changed, &early, "closing");
    sees(Kind::Withdrawn, &early, "closing");
    web.dies();
    sees(Kind::Changed, &web, "closing");
    sees(Kind::Withdrawn, &web, "closing");

    let late = mesh.app("late").unpublished().on("node-a");
    let mut second = admin.watch().expect("the agent can be watched");
    assert_eq!(second.event().1, late.name(), "one that comes later hears only of what is there");
    sees(Kind::Enrolled, &late, "pending");
}
