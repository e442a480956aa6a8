//! Who is there while agents follow each other, and the load that must not notice.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use mesh_tests::{
    App, Mesh, Setup,
    conversation::Conversation,
    node::Node,
    process::printed,
    protocol::{Behaviour, Storm, StormReport},
};

pub const ECHO: u16 = 80;
const NAME: u16 = 81;
const SERVICE: u16 = 8000;

/// Two nodes; what is upgraded is node-a's agent.
pub struct Stage {
    pub web: App,
    pub near: App,
    pub far: App,
    /// Of the service in front of `near`.
    service: SocketAddr,
    pub mesh: Mesh,
}

impl Stage {
    /// `web` and `near` beside each other, `far` across the link; STRICT.
    pub fn set(drain_time: &str) -> Self {
        let agent_arguments = ["--drain-time", drain_time].map(str::to_owned).into();
        let mesh = Mesh::with(Setup { agent_arguments, ..Setup::default() });
        mesh.apply(
            "strict.yaml",
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  namespace: default\n  \
             name: strict\nspec:\n  mtls: {mode: STRICT}\n",
        );
        let server = |name: &str, node: &str| {
            let app = mesh.app(name).labelled("app", name).on(node);
            app.echoing_on(ECHO).serving(NAME, Behaviour::Name)
        };
        let stage = Self {
            web: mesh.app("web").on("node-a"),
            near: server("near", "node-a"),
            far: server("far", "node-b"),
            service: mesh.service("near").port(SERVICE, ECHO).selecting("app", "near").at(SERVICE),
            mesh,
        };
        stage.web.reaches(stage.near.at(ECHO));
        stage.web.reaches(stage.far.at(ECHO));
        stage.far.reaches(stage.near.at(ECHO));
        stage
    }

    pub fn node(&self) -> &Node {
        self.mesh.node("node-a")
    }

    /// Direct by address, direct by service, through the agent out, through the agent in: each with what its client dialled.
    pub fn conversations(&self) -> [(Conversation, SocketAddr); 4] {
        let open = |from: &App, to| (from.opens(to), to);
        [
            open(&self.web, self.near.at(ECHO)),
            open(&self.web, self.service),
            open(&self.web, self.far.at(ECHO)),
            open(&self.far, self.near.at(ECHO)),
        ]
    }

    /// New connections of every way, at an even rate, until `is_over`; what came of them, and how many there were in a second.
    fn calls_until(&self, is_over: &AtomicBool) -> (Vec<StormReport>, f64) {
        let begun = Instant::now();
        let ways = [
            (&self.web, vec![self.near.at(NAME), self.far.at(NAME), self.far.at_v6(NAME)], 300),
            (&self.far, vec![self.near.at(NAME), self.near.at_v6(NAME)], 200),
        ];
        let reports: Vec<StormReport> = std::thread::scope(|scope| {
            let callers = ways.map(|(from, to, per_second)| {
                scope.spawn(move || {
                    let storm = Storm { to, connections: per_second / 2, threads: 32, per_second, same_address: true };
                    let mut reports = Vec::new();
                    while !is_over.load(Ordering::Relaxed) {
                        reports.push(from.makes(storm.clone()));
                    }
                    reports
                })
            });
            callers.into_iter().flat_map(|caller| caller.join().expect("callers go on")).collect()
        });
        let made: u32 = reports.iter().map(|report| report.answered + report.failed).sum();
        (reports, f64::from(made) / begun.elapsed().as_secs_f64())
    }

    /// Does something while new connections of every way are made: every one is answered, and no byte is in the clear. How many
    /// there were in a second.
    #[track_caller]
    pub fn unnoticed(&self, deed: impl FnOnce() + Send) -> f64 {
        let clear = self.mesh.link().passed().clear_bytes;
        let is_over = AtomicBool::new(false);
        let (reports, rate) = std::thread::scope(|scope| {
            let calls = scope.spawn(|| self.calls_until(&is_over));
            let done = scope.spawn(deed).join();
            is_over.store(true, Ordering::Relaxed);
            let calls = calls.join().expect("callers go on");
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            calls
        });
        for report in reports {
            let wrong = report.failed + report.wrong_destination + report.wrong_source;
            assert_eq!(wrong, 0, "{report:?}");
        }
        assert_eq!(self.mesh.link().passed().clear_bytes, clear, "bytes in the clear");
        eprintln!("{rate:.0} new connections in a second");
        rate
    }

    /// All of these live, and say of themselves what they always did.
    #[track_caller]
    pub fn still_work(conversations: &[(Conversation, SocketAddr)]) {
        for (conversation, dialled) in conversations {
            assert_eq!(conversation.peer_now(), *dialled);
            conversation.still_works();
        }
    }

    /// The agent that runs is in charge and well: its programs on the hooks, pods come and go, connections of every way.
    #[track_caller]
    pub fn is_well(&self) {
        let node = self.node();
        let check = node.meshctl(&["check"]);
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        let late = self.mesh.app(&format!("late-{:08x}", fastrand::u32(..))).on("node-a").echoing_on(ECHO);
        self.far.reaches(late.at(ECHO));
        self.web.dial(&late).is_answered();
        self.web.dial(&self.far).is_answered();
        node.admin().withdraw(late.uid()).expect("it is withdrawn");
    }

    /// The listening sockets in the pods of node-a, by the kernel's own numbers for them.
    pub fn listening(&self) -> BTreeSet<String> {
        let tables = [&self.web, &self.near]
            .map(|app| printed(&app.run(&["ss", "--tcp", "--listening", "--numeric", "--extended"])));
        let numbers = tables.iter().flat_map(|table| table.split_whitespace().filter(|word| word.starts_with("ino:")));
        numbers.map(str::to_owned).collect()
    }
}
