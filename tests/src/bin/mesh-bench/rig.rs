//! What is measured on: pods of the mesh, pods outside it, and pods with an Envoy each, on the same two nodes.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use mesh_tests::{App, LIMIT, Mesh, cost::Processes, eventually, process::Process};

use crate::{envoy::Credentials, measure::Variant};

const PORT: u16 = 7000;
const ENVOY_NEAR: u16 = 7101;
const ENVOY_FAR: u16 = 7102;

/// Without a change for so long, a proxy is idle.
const REST: Duration = Duration::from_secs(3);

/// The pods and what runs in them, all for the whole of the benchmark.
pub struct Rig {
    load: String,
    meshed: Pods,
    plain: Pods,
    enveloped: Pods,
    agents: Processes,
    envoys: Processes,
    none: Processes,
    _running: Vec<Process>,
    // Last, so that everything in it has ended when it goes.
    _mesh: Mesh,
}

/// A client on one node, and a server on each.
struct Pods {
    client: App,
    near: App,
    far: App,
}

/// Resident memory in MiB by variant: of the proxy beside the client and the one beside the server.
pub type Memory = Vec<(&'static str, Vec<f64>)>;

impl Rig {
    /// Starts everything and waits until every variant answers.
    pub fn build(envoy: &Path) -> Result<Self> {
        let load = beside_this_program("mesh-load")?;
        let mesh = Mesh::new();
        let pods = |name: &str, enrolled: bool| {
            let pod = |role: &str, node: &str| {
                let app = mesh.app(&format!("{name}-{role}"));
                let app = if enrolled { app.on(node) } else { app.not_enrolled().on(node) };
                // Else ports run out and only that is measured. The first is as the agent sets it where it enrols; the others
                // are for machines that dial more than 14,000 times in the second after which a port is taken again.
                app.place().namespace.set("ipv4/tcp_tw_reuse", "1");
                if Path::new("/proc/sys/net/ipv4/tcp_tw_reuse_delay").exists() {
                    app.place().namespace.set("ipv4/tcp_tw_reuse_delay", "100");
                }
                app.place().namespace.set("ipv4/ip_local_port_range", "16384 65535");
                app
            };
            Pods { client: pod("client", "node-a"), near: pod("near", "node-a"), far: pod("far", "node-b") }
        };
        let (meshed, plain, enveloped) = (pods("meshed", true), pods("plain", false), pods("envoy", false));

        let mut running = Vec::new();
        for server in [&meshed.near, &meshed.far, &plain.near, &plain.far, &enveloped.far] {
            let listen = format!("0.0.0.0:{PORT}");
            running.push(server.start(&[&load, "serve", "--listen", &listen], &format!("{}.log", server.name())));
        }
        let credentials = Credentials::issue(&mesh.directory().join("envoy"))?;
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let far = credentials.far(enveloped.far.at(ENVOY_FAR), local(PORT))?;
        let near = credentials.near(local(ENVOY_NEAR), enveloped.far.at(ENVOY_FAR))?;
        let envoys = [(&enveloped.client, near), (&enveloped.far, far)].map(|(pod, configuration)| {
            let words = [
                &*envoy.to_string_lossy(),
                "--config-path",
                &*configuration.to_string_lossy(),
                "--concurrency",
                "2",
                "--log-level",
                "error",
                "--disable-hot-restart",
            ];
            pod.start(&words, &format!("envoy-{}.log", pod.name()))
        });
        let rig = Self {
            load,
            agents: Processes(mesh.nodes().iter().map(|node| node.agent_id()).collect()),
            envoys: Processes(envoys.iter().map(Process::id).collect()),
            none: Processes::default(),
            meshed,
            plain,
            enveloped,
            _running: running.into_iter().chain(envoys).collect(),
            _mesh: mesh,
        };
        for variant in rig.between_nodes(0).into_iter().chain(rig.same_node(0)) {
            eventually(&format!("{} answers", variant.name), LIMIT, || {
                variant.load("request", 1, Duration::from_millis(50)).map(drop).map_err(|error| format!("{error:#}"))
            });
        }
        Ok(rig)
    }

    /// The variants between nodes; every round begins with another one.
    pub fn between_nodes(&self, round: usize) -> Vec<Variant<'_>> {
        let mut variants = vec![
            self.variant("direct", &self.plain.client, self.plain.far.at(PORT), &self.none),
            self.variant("mesh", &self.meshed.client, self.meshed.far.at(PORT), &self.agents),
            self.variant("envoy", &self.enveloped.client, (Ipv4Addr::LOCALHOST, ENVOY_NEAR).into(), &self.envoys),
        ];
        let first = round % variants.len();
        variants.rotate_left(first);
        variants
    }

    /// The variants on one node; every pair begins with another one.
    pub fn same_node(&self, pair: usize) -> Vec<Variant<'_>> {
        let mut variants = vec![
            self.variant("direct", &self.plain.client, self.plain.near.at(PORT), &self.none),
            self.variant("mesh", &self.meshed.client, self.meshed.near.at(PORT), &self.agents),
        ];
        let first = pair % variants.len();
        variants.rotate_left(first);
        variants
    }

    /// Memory of the proxies once they have come to rest: for three seconds no reading differs by more than 0.1 MiB.
    pub fn memory_at_rest(&self) -> Memory {
        let (mut since, mut rest) = (Instant::now(), self.memory());
        eventually("the proxies' memory stays as it is", LIMIT, || {
            let now = self.memory();
            let readings = now.iter().zip(&rest).flat_map(|((_, now), (_, rest))| now.iter().zip(rest));
            if readings.into_iter().any(|(now, rest)| (now - rest).abs() > 0.1) {
                (since, rest) = (Instant::now(), now);
            }
            if since.elapsed() >= REST { Ok(rest.clone()) } else { Err(format!("{rest:?}")) }
        })
    }

    /// Memory of the proxies now.
    pub fn memory(&self) -> Memory {
        vec![("mesh", self.agents.memory_mib()), ("envoy", self.envoys.memory_mib())]
    }

    /// Memory of the proxies while each carries `connections` open connections between nodes.
    pub fn memory_with_connections(&self, connections: usize) -> Memory {
        let servers = [&self.plain.far, &self.meshed.far, &self.enveloped.far];
        let variants = self.between_nodes(0).into_iter().zip(servers);
        let proxied = variants.filter(|(variant, _)| !variant.proxies.is_empty());
        proxied
            .map(|(variant, server)| {
                let _holding = variant.hold(connections);
                eventually(&format!("{connections} connections through {} are open", variant.name), LIMIT, || {
                    let open = established(server);
                    if open >= connections { Ok(()) } else { Err(format!("{open} are")) }
                });
                (variant.name, variant.proxies.memory_mib())
            })
            .collect()
    }

    fn variant<'a>(
        &'a self,
        name: &'static str,
        client: &'a App,
        target: SocketAddr,
        proxies: &'a Processes,
    ) -> Variant<'a> {
        Variant { name, client, target, proxies, load: &self.load }
    }
}

/// Connections that the server in this pod has now, by the kernel's list.
fn established(server: &App) -> usize {
    let list = server.run(&["cat", "/proc/net/tcp"]).stdout;
    let local = format!(":{PORT:04X}");
    // Number, local end, remote end, state: 01 is ESTABLISHED.
    let is_one = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.get(1).is_some_and(|end| end.ends_with(&local)) && fields.get(3) == Some(&"01")
    };
    String::from_utf8_lossy(&list).lines().filter(is_one).count()
}

fn beside_this_program(name: &str) -> Result<String> {
    let path: PathBuf = std::env::current_exe().context("this program's path")?.with_file_name(name);
    path.to_str().map(str::to_owned).context("a path in UTF-8")
}
