//! From start to detach: take-over, enrolment and withdrawal.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::link::{Change, Hook, LinkInfo};
use super::super::*;
use super::cell::{Place, eventually, run};
use super::pod::*;

#[test]
fn starting_attaches_and_detaching_leaves_nothing() {
    run(|cell| {
        let kernel = Kernel::start(&cell.settings()).expect("the programs load");
        let root = std::fs::File::open(cell.cgroup()).expect("the cgroup");
        for hook in Hook::CGROUP {
            assert_eq!(link::programs_on(root.as_fd(), hook).expect("a query").len(), 1, "{hook:?}");
        }
        drop(kernel);
        for hook in Hook::CGROUP {
            assert_eq!(link::programs_on(root.as_fd(), hook).expect("a query").len(), 1, "{hook:?} outlives the agent");
        }
        Kernel::detach(&cell.bpffs()).expect("it can be detached");
        for hook in Hook::CGROUP {
            assert_eq!(link::programs_on(root.as_fd(), hook).expect("a query").len(), 0, "{hook:?}");
        }
        let left = std::fs::read_dir(cell.bpffs()).expect("the mount point").count();
        assert_eq!(left, 0);
        Kernel::detach(&cell.bpffs()).expect("detaching twice is no error");
    });
}

#[test]
fn a_second_agent_takes_over_without_a_gap() {
    run(|cell| {
        let kernel = start(cell);
        let (one, two) = (enrol(&kernel, cell, 1), enrol(&kernel, cell, 2));
        allow(&kernel, &[(10, 20, 0, PolicyValue::Direct)]);
        let root = std::fs::File::open(cell.cgroup()).expect("the cgroup");
        let programs = |hook| link::programs_on(root.as_fd(), hook).expect("a query");
        let before = Hook::CGROUP.map(programs);
        let server = server(&two.place, SocketAddr::new(two.place.v4(), 8080));
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Connections go on all the while, direct and through the agent.
            let visits = scope.spawn(|| {
                let mut count = 0;
                while count < 20 || !is_over.load(Ordering::Relaxed) {
                    let client = visit(&one.place, "10.201.2.2:8080");
                    serve(&server);
                    assert!(client.end().contains("welcome"));
                    let client = visit(&one.place, "192.0.2.7:443");
                    let accepted = one.accept(Listener::Outbound);
                    let origin = kernel.origin(&accepted).expect("a socket").expect("it was redirected");
                    assert_eq!(origin.destination.to_string(), "192.0.2.7:443");
                    drop((accepted, client));
                    count += 1;
                }
            });
            for _ in 0..5 {
                let successor = Kernel::start(&cell.settings()).expect("it takes over");
                assert_eq!(successor.pods().expect("the maps").len(), 2, "it finds the pods");
                beat(&successor);
            }
            is_over.store(true, Ordering::Relaxed);
            visits.join().expect("every connection got where it should");
        });
        for (hook, before) in Hook::CGROUP.into_iter().zip(before) {
            let after = programs(hook);
            assert_eq!(after.len(), 1, "{hook:?}");
            assert_ne!(after, before, "{hook:?} has the new program");
        }
        assert_eq!(
            kernel.links_fact().result,
            FactResult::Failed,
            "the first agent's programs are not on the hooks any more"
        );
    });
}

#[test]
fn a_change_that_fails_is_taken_back() {
    run(|cell| {
        let kernel = start(cell);
        let root = std::fs::File::open(cell.cgroup()).expect("the cgroup");
        let programs = |hook| link::programs_on(root.as_fd(), hook).expect("a query");
        let before = [programs(Hook::Name4), programs(Hook::Peer4)];
        let (other, _) = load::load(&kernel.pins, &cell.settings()).expect("the programs load again");
        {
            let mut change = Change::default();
            let always = |_: &LinkInfo| true;
            let put = |change: &mut Change, hook, program: BorrowedFd<'_>, pin: &Path| {
                change.put(hook, program, root.as_fd(), pin, always)
            };
            put(&mut change, Hook::Name4, other.of(Hook::Name4).expect("loaded"), &kernel.pins.link(Hook::Name4))
                .expect("updated");
            let new_pin = kernel.pins.link(Hook::Name4).with_file_name("new");
            put(&mut change, Hook::Peer4, other.of(Hook::Peer4).expect("loaded"), &new_pin).expect("attached");
            assert_ne!(programs(Hook::Name4), before[0]);
            assert_eq!(programs(Hook::Peer4).len(), 2);
            // A program of another type does not go onto this link.
            let wrong = other.of(Hook::SockOps).expect("loaded");
            put(&mut change, Hook::Name6, wrong, &kernel.pins.link(Hook::Name6)).expect_err("refused by the kernel");
        }
        eventually("it is as before", || [programs(Hook::Name4), programs(Hook::Peer4)] == before);
    });
}

#[test]
fn a_withdrawn_pod_has_plain_networking_and_leaves_nothing() {
    run(|cell| {
        let kernel = start(cell);
        let outside = cell.pod(9);
        let fill = |kernel: &Kernel| -> Vec<(&str, u64)> {
            kernel.map_fill().expect("the maps").into_iter().map(|map| (map.name, map.entries)).collect()
        };
        let before = fill(&kernel);
        let pod = enrol(&kernel, cell, 1);
        assert_ne!(fill(&kernel), before);
        kernel.withdraw(pod.id).expect("it is enrolled");
        assert_eq!(fill(&kernel), before);
        assert_eq!(kernel.pods().expect("the maps"), []);
        assert_eq!(kernel.pins.lookups().expect("the pins").len(), 0);
        let to = SocketAddr::new(pod.place.v4(), 8080);
        let application = server(&pod.place, to);
        let client = visit(&outside, to.to_string());
        serve(&application);
        assert!(client.end().contains("welcome"));
        let remote = server(&outside, SocketAddr::new(outside.v4(), 8080));
        let client = visit(&pod.place, format!("{}:8080", outside.v4));
        serve(&remote);
        assert!(client.end().contains("welcome"));
        kernel.withdraw(pod.id).expect("withdrawing twice is no error");
    });
}

fn steering<'a>(place: &Place, namespace: &'a NetworkNamespace, number: u32) -> PodSteering<'a> {
    let IpAddr::V4(v4) = place.v4() else { panic!("an IPv4 address") };
    PodSteering {
        pod: PodId(number),
        namespace: namespace.as_fd(),
        cookie: namespace.cookie(),
        v4: Some(v4),
        v6: None,
        other_addresses: Vec::new(),
        cgroups: vec![PodCgroup::find(&place.cgroup).expect("a cgroup")],
        class: 0,
        probe_ports: Vec::new(),
        fail_open: false,
    }
}

#[test]
fn what_another_pod_holds_is_refused() {
    run(|cell| {
        let kernel = start(cell);
        let one = enrol(&kernel, cell, 1);
        let (place, pods) = (cell.pod(2), kernel.pods().expect("the maps"));
        let (first, second) = (one.place.open(), place.open());
        let mut same_address = steering(&place, &second, 2);
        same_address.other_addresses.push(one.place.v4());
        assert!(matches!(kernel.enrol(&same_address), Err(KernelError::AddressTaken { pod: 1, .. })));
        let same_namespace = PodSteering { pod: PodId(2), ..steering(&place, &first, 2) };
        assert!(matches!(kernel.enrol(&same_namespace), Err(KernelError::NamespaceTaken { pod: 1, .. })));
        for wrong in ["127.0.0.1", "fe80::1", "0.0.0.0", "ff02::1", "169.254.0.9"] {
            let mut pod = steering(&place, &second, 2);
            pod.other_addresses.push(wrong.parse().expect("an address"));
            assert!(matches!(kernel.enrol(&pod), Err(KernelError::Setting { name: "addresses", .. })), "{wrong}");
        }
        assert_eq!(kernel.pods().expect("the maps"), pods);
        assert_eq!(kernel.pins.lookups().expect("the pins").len(), 1);
    });
}

#[test]
fn an_enrolled_pod_can_be_brought_to_another_state() {
    run(|cell| {
        let kernel = start(cell);
        let place = cell.pod(1);
        let namespace = place.open();
        let mut pod = steering(&place, &namespace, 1);
        pod.other_addresses.push("10.201.1.77".parse().expect("an address"));
        pod.probe_ports = vec![1, 2];
        kernel.enrol(&pod).expect("new");
        pod.other_addresses.clear();
        pod.probe_ports = vec![2, 3];
        (pod.class, pod.fail_open) = (7, true);
        kernel.enrol(&pod).expect("changed");
        let expected = AdoptedPod {
            pod: PodId(1),
            cookie: namespace.cookie(),
            addresses: vec![place.v4()],
            class: 7,
            fail_open: true,
        };
        assert_eq!(kernel.pods().expect("the maps"), [expected]);
        let mut probes: Vec<_> =
            kernel.maps.probes.entries().expect("the map").iter().map(|(key, _)| key.port()).collect();
        probes.sort_unstable();
        assert_eq!(probes, [2, 3]);
    });
}

#[test]
fn a_namespace_that_went_does_not_stop_the_next_start() {
    run(|cell| {
        let kernel = start(cell);
        for number in [1, 2] {
            let pod = enrol(&kernel, cell, number);
            drop(pod.listeners);
            let name = pod.place.namespace.file_name().expect("a name").to_string_lossy().into_owned();
            super::cell::ip(&["netns", "delete", &name]);
        }
        let is_gone = |pin: &PathBuf| {
            let link = sys::open_pinned(pin).expect("the pin");
            link::info(link.as_fd()).expect("a link").namespace_inode() == 0
        };
        let pins = kernel.pins.lookups().expect("the pins");
        eventually("the namespaces are gone", || pins.iter().all(is_gone));
        kernel.withdraw(PodId(2)).expect("it can be withdrawn all the same");
        assert_eq!(kernel.pins.lookups().expect("the pins").len(), 1);
        let kernel = Kernel::start(&cell.settings()).expect("it starts");
        assert_eq!(kernel.pins.lookups().expect("the pins").len(), 0);
        let left = kernel.pods().expect("the maps");
        assert_eq!(left.len(), 1, "the agent decides what becomes of the pod");
        kernel.withdraw(left[0].pod).expect("it can be withdrawn");
    });
}

#[test]
fn facts_say_what_is_wrong() {
    run(|cell| {
        let settings = cell.settings();
        let facts = precheck(&settings.cgroup_root, &settings.bpffs);
        let all_ok = facts.iter().all(|fact| fact.result == FactResult::Ok);
        assert!(all_ok, "{facts:?}");
        let kernel = start(cell);
        let pod = cell.cgroup().join("kubepods/pod");
        std::fs::create_dir_all(pod.join("container")).expect("a cgroup");
        let neighbours = || kernel.neighbours_fact(std::iter::once(pod.as_path()));
        assert_eq!(kernel.links_fact().result, FactResult::Ok);
        assert_eq!(neighbours().result, FactResult::Ok);
        for below in ["kubepods", "kubepods/pod", "kubepods/pod/container"] {
            let directory = cell.cgroup().join(below);
            let cgroup = std::fs::File::open(&directory).expect("the cgroup");
            let program = kernel.programs.of(Hook::Connect6).expect("loaded");
            let other = link::create(program, cgroup.as_fd(), Hook::Connect6).expect("attached");
            let found = neighbours();
            assert_eq!(found.result, FactResult::Warning, "{below}");
            assert!(found.text.ends_with(&format!(": connect6: 1 in {}", directory.display())), "{}", found.text);
            drop(other);
            assert_eq!(neighbours().result, FactResult::Ok);
        }
        let root = std::fs::File::open(cell.cgroup()).expect("the cgroup");
        let other = link::create(kernel.programs.of(Hook::Peer4).expect("loaded"), root.as_fd(), Hook::Peer4)
            .expect("attached");
        assert_eq!(neighbours().result, FactResult::Warning);
        drop(other);
        pins::detach(&kernel.pins.link(Hook::Connect4)).expect("it is attached");
        let links = kernel.links_fact();
        assert_eq!(links.result, FactResult::Failed);
        assert!(links.text.starts_with("connect4: no pin"), "{}", links.text);
    });
}

#[test]
fn wrong_settings_are_refused_and_leave_nothing() {
    run(|cell| {
        let good = cell.settings();
        let mut wrong = vec![
            KernelSettings { workers: 0, ..good.clone() },
            KernelSettings { workers: MAX_WORKERS + 1, ..good.clone() },
            KernelSettings { cgroup_root: "/proc".into(), ..good.clone() },
        ];
        wrong.push(KernelSettings { map_sizes: MapSizes { event_bytes: 5000, ..good.map_sizes }, ..good.clone() });
        wrong.push(KernelSettings { map_sizes: MapSizes { flows: 0, ..good.map_sizes }, ..good.clone() });
        for settings in wrong {
            Kernel::start(&settings).expect_err("it is refused");
            assert!(!cell.bpffs().exists());
        }
        let no_namespace = KernelSettings { node_namespace: Some("/proc/self/status".into()), ..good };
        Kernel::start(&no_namespace).expect_err("it is refused after loading");
        assert_eq!(std::fs::read_dir(cell.bpffs()).expect("the mount point").count(), 0);
    });
}
