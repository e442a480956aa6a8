//! An agent that lacks what every process needs: memory, descriptors. (A full disk: `without_control`.)

use std::{
    os::unix::process::ExitStatusExt,
    thread,
    time::{Duration, Instant},
};

use mesh_tests::{
    App, LIMIT, Mesh, eventually, plain,
    protocol::{Behaviour, Command, Dial},
};

const ECHO: u16 = 80;
const SOURCE: u16 = 81;
const SILENT: u16 = 82;

fn pods(mesh: &Mesh) -> [App; 3] {
    [("web", "node-a"), ("near", "node-a"), ("far", "node-b")]
        .map(|(name, node)| mesh.app(name).on(node).echoing_on(ECHO))
        .map(|app| app.serving(SOURCE, Behaviour::Source(1 << 30)).serving(SILENT, Behaviour::Hold))
}

#[test]
fn an_agent_that_the_kernel_kills_for_its_memory_costs_what_a_dead_agent_costs() {
    let mesh = Mesh::new();
    let [web, near, far] = pods(&mesh);
    let node = mesh.node("node-a");
    let (direct, carried) = (web.opens(near.at(ECHO)), web.opens(far.at(ECHO)));
    direct.still_works();
    carried.still_works();
    // What an agent knew for less than a second it may not have kept.
    eventually("the View on disk is that of now", LIMIT, || {
        let image = std::fs::read(node.cached_view()).map_err(|error| error.to_string())?;
        let knows = |app: &App| memchr::memmem::find(&image, app.full_name().as_bytes()).is_some();
        if knows(&web) && knows(&near) && knows(&far) { Ok(()) } else { Err("a pod is missing".to_owned()) }
    });
    let limit = mesh.limits_memory_of("node-a", 2 << 20);

    // Nobody reads them: of each the agent holds what the peer may send. The last may come when it has gone.
    for _ in 0..16 {
        let _ = web.client().tries(Command::Open(plain(far.at(SOURCE))));
    }

    let status = node.agent_ends();
    assert!(status.signal() == Some(libc::SIGKILL) && limit.kills() > 0, "{status}, {} kills", limit.kills());
    carried.is_cut_within(Duration::from_secs(5));
    web.dial(&far).is_refused();
    far.dial(&near).is_refused();
    direct.still_works();
    web.dial(&near).is_answered();

    node.start_agent();
    node.is_ready();
    web.reaches(far.at(ECHO));
    far.reaches(near.at(ECHO));
    direct.still_works();
}

/// The agent has its spare descriptor to accept with, and a second for those that it could not look at at once.
#[test]
fn without_a_free_descriptor_every_new_connection_is_reset_within_a_second_and_counted() {
    let mesh = Mesh::new();
    let [web, near, far] = pods(&mesh);
    let node = mesh.node("node-a");
    let (direct, carried) = (web.opens(near.at(ECHO)), web.opens(far.at(ECHO)));
    direct.still_works();
    carried.still_works();

    let none = node.leaves_no_descriptor();
    let in_the_gaps: Vec<_> = (0..none.gaps()).map(|_| web.client().opens(far.at(ECHO))).collect();
    // Nobody answers there: who is carried keeps the descriptor that was free for a moment.
    let dial = || {
        let begun = Instant::now();
        let dial = Dial { send: "ping\n".to_owned(), limit_ms: 3000, ..plain(far.at(SILENT)) };
        web.client().dial(dial).was_refused().then(|| begun.elapsed())
    };
    let refused: Vec<Duration> = thread::scope(|scope| {
        let dials: Vec<_> = (0..40).map(|_| scope.spawn(dial)).collect();
        dials.into_iter().filter_map(|dial| dial.join().expect("it ended")).collect()
    });
    assert!(refused.len() >= 30, "of forty {} were refused", refused.len());
    let slowest = refused.iter().max();
    assert!(slowest < Some(&Duration::from_millis(1500)), "the last was told after {slowest:?}");
    direct.still_works();
    carried.still_works();
    web.dial(&near).is_answered();
    drop((none, in_the_gaps));

    eventually("new ones are carried again", LIMIT, || {
        if web.dial(&far).was_answered() { Ok(()) } else { Err("not yet".to_owned()) }
    });
    let shed = node.metrics().sum("mesh_shed_connections_total", &[]);
    assert!(shed >= refused.len() as f64, "{shed} of {} were counted", refused.len());
}
