//! The harness itself, without a mesh: if these fail, no story means anything.

use std::time::Duration;

use mesh_tests::{
    LIMIT, Mesh, Setup, eventually, plain,
    protocol::{Behaviour, Dial, End},
};

/// Nodes, pods and link, and no daemon of the product.
fn plain_networking() -> Mesh {
    Mesh::with(Setup { is_meshed: false, ..Setup::default() })
}

#[test]
fn pods_reach_each_other_over_both_families_with_their_own_addresses() {
    let mesh = plain_networking();
    let web = mesh.app("web").on("node-a");
    let near = mesh.app("near").on("node-a").serving(80, Behaviour::Name);
    let far = mesh.app("far").on("node-b").serving(80, Behaviour::Name);
    let all = [&near, &far].map(|app| [app.at(80), app.at_v6(80), app.at_mapped(80)]).concat();

    let report = web.storms(&all, 600, 4, true);

    assert_eq!((report.answered, report.wrong_source, report.wrong_destination), (600, 0, 0), "{report:?}");
    assert_eq!(far.connections().len(), 300);
    assert!(
        far.connections()
            .iter()
            .all(|connection| [web.v4().into(), web.v6().into()].contains(&connection.peer.ip().to_canonical()))
    );
}

#[test]
fn the_capture_and_the_counters_see_what_passes_between_nodes_and_only_that() {
    let mesh = plain_networking();
    let web = mesh.app("web").on("node-a");
    let near = mesh.app("near").on("node-a").echoing_on(80);
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let capture = mesh.link().capture(&["marker-near", "marker-far"]);

    web.dial_with(Dial { send: "marker-near\n".to_owned(), ..plain(near.at(80)) }).is_answered();
    web.dial_with(Dial { send: "marker-far\n".to_owned(), ..plain(far.at(80)) }).is_answered();
    capture.settle();

    assert_eq!(capture.flows_with("marker-near"), []);
    assert_eq!(capture.flows_with("marker-far").len(), 2);
    let outside = capture.payload_outside(15008, &web.addresses());
    assert_eq!(outside.iter().map(|(_, bytes)| bytes).sum::<u64>(), 2 * "marker-far\n".len() as u64);
    assert_eq!(capture.payload_outside(80, &web.addresses()), []);
}

#[test]
fn the_counters_on_the_link_count_payload_of_pods_they_were_told_of() {
    let mesh = plain_networking();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    web.dial(&far).is_answered();
    assert_eq!(mesh.link().passed().clear, 0);

    mesh.link().count(&far.addresses());
    web.dial(&far).is_answered();
    web.dial_at(far.at_v6(80)).is_answered();

    // One line each way, twice; SYN, FIN and pure acknowledgements do not count.
    assert_eq!((mesh.link().passed().clear, mesh.link().passed().encrypted), (4, 0));
}

#[test]
fn the_counters_on_the_link_count_what_is_lost_on_it() {
    let mesh = plain_networking();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    mesh.link().count(&far.addresses());
    let conversation = web.opens(far.at(80));
    conversation.still_works();
    assert_eq!(mesh.link().passed().clear, 2);

    mesh.link().loses_everything(true);
    conversation.says("lost at first\n");
    eventually("it is counted", LIMIT, || match mesh.link().passed().clear {
        2 => Err("it is not".to_owned()),
        _ => Ok(()),
    });
    mesh.link().loses_everything(false);
    conversation.hears("lost at first\n");
}

#[test]
fn clients_report_refusals_resets_and_half_closes_as_the_kernel_does() {
    let mesh = plain_networking();
    let web = mesh.app("web").on("node-a");
    let far = mesh
        .app("far")
        .on("node-b")
        .echoing_on(80)
        .serving(81, Behaviour::Sink)
        .serving(82, Behaviour::Greet("hi\n".to_owned()));

    web.dial_at(far.at(9)).is_refused();
    web.dial_with(Dial { first_to: Some(far.at(9)), non_blocking: true, send: "x\n".to_owned(), ..plain(far.at(80)) })
        .is_answered();
    let bound =
        web.dial_with(Dial { from: Some(web.at(4444)), send: "x\n".to_owned(), ..plain(far.at(80)) }).is_answered();
    assert_eq!(bound.report().local, Some(web.at(4444)));
    web.sends_intact(far.at(81), 5_000_000);

    let open = web.opens(far.at(82));
    open.hears("hi\n").still_works();
    open.finishes();
    assert_eq!(open.end_within(Duration::from_secs(5)).map(|(end, _)| end), Some(End::Finished));
    let cut = web.opens(far.at(80));
    far.place().cgroup.kill();
    assert!(cut.end_within(Duration::from_secs(5)).is_some());
}

#[test]
fn a_failing_story_leaves_nothing_behind() {
    let names = std::thread::spawn(|| {
        let mesh = plain_networking();
        let web = mesh.app("web").on("node-a").echoing_on(80);
        let names = (web.place().namespace.path(), web.place().cgroup.path().to_owned(), mesh.directory().to_owned());
        assert!(names.0.exists() && names.1.exists() && names.2.exists());
        std::panic::panic_any(names);
    });
    let panic = names.join().expect_err("the story failed");
    let (namespace, cgroup, directory) = *panic
        .downcast::<(std::path::PathBuf, std::path::PathBuf, std::path::PathBuf)>()
        .expect("it failed where it was meant to");

    assert!(!namespace.exists(), "{}", namespace.display());
    assert!(!cgroup.exists(), "{}", cgroup.display());
    // The directory may be another mesh's by now, with another tmpfs; this pod's log is gone in any case.
    assert!(!directory.join("web-app.log").exists());
}
