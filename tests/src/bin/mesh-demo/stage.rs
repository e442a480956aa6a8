//! The stage: which pods there are and where.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use mesh_tests::{App, Mesh, cgroup::Cgroup, protocol::Behaviour, service::Service};

/// A shop on two nodes.
pub struct Stage {
    /// Calls everybody; node-a.
    pub web: App,
    /// Beside web; node-a.
    pub cart: App,
    /// Across the link; node-b.
    pub db: App,
    /// The two endpoints of the service.
    pub catalog: [App; 2],
    /// Has never heard of a mesh; node-b.
    pub legacy: App,
    /// Dropped last.
    pub mesh: Mesh,
}

impl Stage {
    /// Makes the pods.
    pub fn set(mesh: Mesh) -> Self {
        mesh.lets_some_pass_in_the_clear();
        let endpoint = |name: &str, node: &str| {
            mesh.app(name).account("catalog").labelled("app", "catalog").on(node).serving(8080, Behaviour::Name)
        };
        Self {
            web: mesh.app("web").on("node-a"),
            cart: mesh.app("cart").on("node-a").echoing_on(8080),
            db: mesh.app("db").on("node-b").echoing_on(5432),
            catalog: [endpoint("catalog-1", "node-a"), endpoint("catalog-2", "node-b")],
            legacy: mesh.app("legacy").not_enrolled().on("node-b"),
            mesh,
        }
    }

    /// The catalog's service.
    pub fn service(&self) -> Service<'_> {
        self.mesh.service("catalog").port(80, 8080).selecting("app", "catalog")
    }

    /// The pods that are in the mesh.
    pub fn members(&self) -> [&App; 5] {
        [&self.web, &self.cart, &self.db, &self.catalog[0], &self.catalog[1]]
    }

    /// What the names of the demo's network namespaces begin with.
    pub fn prefix(&self) -> String {
        let name = self.mesh.link().place().namespace.name().to_owned();
        name.trim_end_matches("link").to_owned()
    }

    /// The cgroup above everything of the demo.
    pub fn cgroup(&self) -> PathBuf {
        let node: &Cgroup = self.mesh.nodes()[0].cgroup();
        node.path().parent().expect("below the mesh's cgroup").to_owned()
    }

    /// Numbers of the programs that are attached to the nodes' cgroups.
    pub fn programs(&self) -> Vec<u64> {
        let nodes = self.mesh.nodes().iter();
        nodes.flat_map(|node| attached(node.cgroup().path())).collect()
    }

    /// Prints what a visitor can do now.
    pub fn invite(&self) {
        let [a, b] =
            [&self.mesh.nodes()[0], &self.mesh.nodes()[1]].map(|node| node.admin().socket().display().to_string());
        let meshctl = std::env::current_exe().expect("this program has a path").with_file_name("meshctl");
        let meshctl = meshctl.display();
        let (prefix, db) = (self.prefix(), self.db.v4());
        println!("\nThe mesh stays up until Ctrl-C. To try, from another terminal:");
        for line in [
            format!("{meshctl} --socket {a} workloads"),
            format!("{meshctl} --socket {a} sockets            # -o json, -w, --why-plaintext, --why-denied"),
            format!("{meshctl} --socket {a} explain default/cart default/db:5432"),
            format!("{meshctl} --socket {b} certificates"),
            format!("{meshctl} --socket {b} check"),
            format!("ip netns exec {prefix}node-a curl -s http://127.0.0.1:15020/metrics"),
            format!("ip netns exec {prefix}link tcpdump -ni any -Q in tcp    # what passes between the nodes"),
            format!(
                "ls {}                      # manifests: edit one and see",
                self.mesh.control().manifests().display()
            ),
            format!(
                "tail -f {}                # what the control daemon says of them",
                self.mesh.control().manifests().with_file_name("control.log").display()
            ),
        ] {
            println!("  {line}");
        }
        println!("A call from the pod web (its processes run in its cgroup and its network namespace):");
        println!(
            "  sh -c 'echo $$ > {}/cgroup.procs; exec ip netns exec {} \\\n    \
             bash -c \"exec 3<>/dev/tcp/{db}/5432; echo hello >&3; head -n1 <&3\"'",
            self.web.place().cgroup.path().display(),
            self.web.place().namespace.name(),
        );
    }
}

fn attached(cgroup: &Path) -> Vec<u64> {
    let output = Command::new("bpftool").args(["-j", "cgroup", "show"]).arg(cgroup).output();
    let listed: serde_json::Value =
        output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok()).unwrap_or_default();
    listed.as_array().into_iter().flatten().filter_map(|program| program["id"].as_u64()).collect()
}
