//! From one agent to the next, also when the next lays its maps out otherwise: who is in charge of the hooks, and what is
//! left of who is not.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::super::link::Hook;
use super::super::*;
use super::cell::{Cell, run};
use super::pod::*;

fn versions(cell: &Cell) -> Vec<PathBuf> {
    let found = std::fs::read_dir(cell.bpffs()).expect("the mount point").flatten();
    let mut names: Vec<_> = found.map(|entry| PathBuf::from(entry.file_name())).collect();
    names.retain(|name| name.to_string_lossy().starts_with('v'));
    names.sort();
    names
}

fn programs(cell: &Cell) -> [Vec<u32>; 7] {
    let root = std::fs::File::open(cell.cgroup()).expect("the cgroup");
    Hook::CGROUP.map(|hook| link::programs_on(root.as_fd(), hook).expect("a query"))
}

/// An agent whose maps are others, and which knows these pods.
fn of_another_layout(cell: &Cell, pods: [&Enrolled; 2]) -> Kernel {
    let settings = KernelSettings { maps_version: "v2", ..cell.settings() };
    let kernel = Kernel::prepare(&settings).expect("the programs load");
    assert!(kernel.is_new());
    assert_eq!(kernel.pods().expect("the maps"), []);
    for pod in pods {
        take_up(&kernel, pod);
    }
    beat(&kernel);
    kernel
}

/// Connections of every way: what a client dialled is what its socket says, and what the agent finds.
fn works(kernel: &Kernel, one: &Enrolled, two: &Enrolled) {
    let server = server(&two.place, SocketAddr::new(two.place.v4(), 8080));
    let client = visit(&one.place, "10.201.2.2:8080");
    serve(&server);
    assert!(client.end().contains("welcome"));
    let client = visit(&one.place, "192.0.2.7:443");
    let accepted = one.accept(Listener::Outbound);
    let origin = kernel.origin(&accepted).expect("a socket").expect("it was redirected");
    assert_eq!(origin.destination.to_string(), "192.0.2.7:443");
    drop((accepted, client));
}

#[test]
fn an_agent_of_another_layout_takes_the_hooks_and_gives_them_back() {
    run(|cell| {
        let kernel = start(cell);
        let (one, two) = (enrol(&kernel, cell, 1), enrol(&kernel, cell, 2));
        allow(&kernel, &[(10, 20, 0, PolicyValue::Direct)]);
        let before = programs(cell);

        let successor = of_another_layout(cell, [&one, &two]);
        allow(&successor, &[(10, 20, 0, PolicyValue::Direct)]);
        assert_eq!(programs(cell), before, "nothing is attached yet");
        works(&kernel, &one, &two);

        // It fails: all is as before.
        let attached = successor.attach().expect("the programs go on the hooks");
        assert_ne!(programs(cell), before);
        works(&successor, &one, &two);
        drop(attached);
        assert_eq!(programs(cell), before);
        works(&kernel, &one, &two);

        // It dies: the agent before takes back what it left, and its maps go.
        std::mem::forget(successor.attach().expect("the programs go on the hooks"));
        kernel.reclaim().expect("the hooks are taken back");
        assert_eq!(programs(cell), before);
        assert_eq!(versions(cell), [PathBuf::from("v1")]);
        works(&kernel, &one, &two);

        // It takes over: what was on its way under the first one's programs is found by the second.
        let successor = of_another_layout(cell, [&one, &two]);
        allow(&successor, &[(10, 20, 0, PolicyValue::Direct)]);
        let waiting = visit(&one.place, "192.0.2.9:443");
        successor.attach().expect("the programs go on the hooks").keep();
        assert_eq!(versions(cell), [PathBuf::from("v2")]);
        let accepted = one.accept(Listener::Outbound);
        let origin = successor.origin(&accepted).expect("a socket").expect("it was redirected");
        assert_eq!(origin.destination.to_string(), "192.0.2.9:443");
        drop((accepted, waiting));
        works(&successor, &one, &two);
        assert_eq!(successor.links_fact().result, FactResult::Ok);
    });
}

#[test]
fn what_a_successor_left_that_died_is_not_taken_for_the_truth() {
    run(|cell| {
        let kernel = start(cell);
        let (one, two) = (enrol(&kernel, cell, 1), enrol(&kernel, cell, 2));
        drop(of_another_layout(cell, [&one, &two]));
        assert_eq!(versions(cell), ["v1", "v2"].map(PathBuf::from));
        let next = Kernel::prepare(&KernelSettings { maps_version: "v2", ..cell.settings() }).expect("it loads");
        assert!(next.is_new());
        assert_eq!(next.pods().expect("the maps"), []);
        next.abandon();
        assert_eq!(versions(cell), [PathBuf::from("v1")]);
        let again = Kernel::prepare(&cell.settings()).expect("it loads");
        assert!(!again.is_new());
        assert_eq!(again.pods().expect("the maps").len(), 2);
    });
}

#[test]
fn who_is_not_in_charge_beats_for_nobody() {
    run(|cell| {
        let _kernel = start(cell);
        let next = Kernel::prepare(&cell.settings()).expect("it loads");
        let before = next.heartbeat_ages().expect("the map");
        next.heartbeat(0).expect("a worker");
        let beats: Vec<_> = next.heartbeat_ages().expect("the map");
        assert_eq!(beats.len(), before.len());
        // The beats of `start` are an hour ahead: their age is nothing.
        assert!(beats.iter().all(|age| *age == Some(std::time::Duration::ZERO)), "{beats:?}");
    });
}
