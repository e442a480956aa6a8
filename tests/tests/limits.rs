//! Much of everything: the figures of `limits`, with bounds that leave room for a busy machine and none for a change for the
//! worse. The figures themselves are in docs/faults.md.

use std::{
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use mesh_tests::limits::{Load, many_pods};

/// Who measures has the processors to itself.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn fifty_readers_that_stall_leave_the_other_streams_of_their_tunnel_their_speed() {
    let load = Load::start();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let report = load.with_slow_readers(50, 2);
    // Where one stream stops the others, nothing is left; how much there is otherwise a busy machine cannot say.
    assert!(best(&report.with) > 0.1 * best(&report.without), "{report:?}");
}

fn best(rates: &[f64]) -> f64 {
    rates.iter().copied().fold(0.0, f64::max)
}

#[test]
#[ignore = "measures speed, with nothing beside it: `cargo xtask test --long`"]
fn readers_that_stall_leave_the_other_streams_of_their_tunnel_nine_tenths_of_their_speed() {
    let load = Load::start();
    for slow in [1, 10, 50] {
        let report = load.with_slow_readers(slow, 8);
        assert!(best(&report.with) >= 0.9 * best(&report.without), "{slow}: {report:?}");
    }
}

#[test]
fn ten_thousand_idle_connections_cost_an_agent_at_most_twelve_kilobytes_each() {
    let load = Load::start();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let memory = load.memory_per_idle_connection(10_000);
    eprintln!("one costs {memory:?} bytes of the agents");
    assert!(memory.iter().all(|bytes| *bytes <= 12 << 10), "{memory:?} bytes for each");
}

#[test]
fn a_crowd_before_a_dead_endpoint_is_told_and_costs_nobody_else_anything() {
    let load = Load::start();
    let other = load.mesh.app("other").on("node-b").echoing_on(80);
    let near = load.mesh.app("near").on("node-a").echoing_on(80);
    let near_two = load.mesh.app("near-two").on("node-a");
    other.dial(&near).is_answered();
    near_two.dial(&near).is_answered();
    // Of its node nobody answers any more, not even with a refusal.
    load.mesh.link().silences(&["node-b"]);

    let report = thread::scope(|scope| {
        let crowd = scope.spawn(|| load.crowd(5_000));
        while !crowd.is_finished() {
            near_two.dial(&near).is_answered();
            thread::sleep(Duration::from_millis(50));
        }
        crowd.join().expect("it came")
    });

    eprintln!("{report:?}");
    assert_eq!((report.answered, report.refused, report.hung), (0, 5_000, 0), "{report:?}");
    assert!(report.slowest_ms < 30_000, "{report:?}");
    let reason = [("reporter", "source"), ("response_flags", "CONNECT")];
    load.mesh.node("node-a").counted("istio_tcp_connections_failed_total", 5_000, &reason);
    load.mesh.link().silences(&[]);
    near.reaches(other.at(80));
}

#[test]
fn an_agent_with_fifty_pods_is_ready_within_a_second_of_its_restart_and_nothing_fails_from_then_on() {
    let figures = many_pods(50);
    eprintln!("{figures:?}");
    assert!(figures.ready - figures.disturbed < Duration::from_secs(1), "{figures:?}");
}

#[test]
#[ignore = "measures speed, with nothing beside it: `cargo xtask test --long`"]
fn an_agent_with_two_hundred_pods_is_ready_within_two_seconds_of_its_restart_and_nothing_fails_from_then_on() {
    let figures = many_pods(200);
    eprintln!("{figures:?}");
    assert!(figures.ready < Duration::from_secs(2), "{figures:?}");
}
