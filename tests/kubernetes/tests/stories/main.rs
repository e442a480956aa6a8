//! Stories of a real cluster: install, use, upgrade and removal as users do them. `cargo xtask test --cluster` runs them; without
//! Kubernetes they are left alone.

mod enrolment;
mod install;
mod outages;
mod rights;
mod shop;
mod strict;
mod upgrade;

use std::time::{Duration, Instant};

use mesh_kubernetes_tests::{Cluster, MESH};

/// From the install to ready and meshed.
const READY: Duration = Duration::from_secs(120);

/// How the mesh is put into the cluster, and taken out of it.
#[derive(Clone, Copy)]
enum Way {
    Helm,
    Manifests,
}

impl Way {
    fn install(self, cluster: &Cluster) {
        match self {
            Self::Helm => drop(cluster.helm(&["install", "mesh", "deploy/helm", "--wait", "--timeout=120s"])),
            Self::Manifests => {
                cluster.kubectl(&["apply", "-k", "deploy/manifests"]);
                for what in ["deployment/mesh-control", "daemonset/mesh-agent"] {
                    cluster.kubectl(&["-n", MESH, "rollout", "status", what, "--timeout=120s"]);
                }
            }
        }
    }

    fn remove(self, cluster: &Cluster) {
        match self {
            Self::Helm => drop(cluster.helm(&["uninstall", "mesh", "--wait", "--ignore-not-found"])),
            Self::Manifests => {
                // As deploy/docs/install.md has it: in a namespace that ends, pods may go before their DaemonSet.
                let agents =
                    ["-n", MESH, "delete", "daemonset", "mesh-agent", "--cascade=foreground", "--ignore-not-found"];
                cluster.kubectl(&agents);
                cluster.kubectl(&["delete", "-k", "deploy/manifests", "--ignore-not-found", "--wait"]);
            }
        }
        // The namespace is gone when its pods are.
        cluster.kubectl(&["wait", "--for=delete", &format!("namespace/{MESH}"), "--timeout=120s"]);
    }

    /// A cluster without a mesh, whatever a story before has left.
    fn clear(cluster: &Cluster) {
        cluster.must_be_free();
        Self::Helm.remove(cluster);
        Self::Manifests.remove(cluster);
    }
}

/// A mesh that is there while it lives. One of a story that failed stays, to be looked at; the next story clears it.
struct Installed<'a> {
    cluster: &'a Cluster,
    way: Way,
    began: Instant,
}

impl<'a> Installed<'a> {
    fn by(way: Way, cluster: &'a Cluster) -> Self {
        Way::clear(cluster);
        let began = Instant::now();
        way.install(cluster);
        Self { cluster, way, began }
    }
}

impl Drop for Installed<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.way.remove(self.cluster);
        }
    }
}
