//! What happens to agents and nodes of a real cluster that nobody asked for: kills, and a reboot. Only on nodes of this machine;
//! elsewhere agents' pods are deleted without notice, and no node is touched.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use super::{Cluster, MESH, said, script, state};

/// Where no agent shall be.
const NOWHERE: &str = r#"{"spec":{"template":{"spec":{"nodeSelector":{"mesh.dev/nowhere":"true"}}}}}"#;
/// And back again.
const EVERYWHERE: &str = r#"{"spec":{"template":{"spec":{"nodeSelector":{"mesh.dev/nowhere":null}}}}}"#;

impl Cluster {
    /// Ends the agents of a node at once; the kubelet starts them again.
    pub fn kill_agent(&self, node: &str) {
        let line = "for process in /proc/[0-9]*; do \
                    if [ \"$(cat $process/comm 2>/dev/null)\" = mesh-agent ]; then kill -9 ${process#/proc/}; fi; done";
        if self.on_node(node, line).is_none() {
            let agent = self.agent_of(node);
            self.kubectl(&["-n", MESH, "delete", "pod", &agent, "--grace-period=0", "--force"]);
        }
    }

    /// Every agent of the cluster goes, as by a change of the DaemonSet: what they have put in force stays.
    pub fn send_agents_away(&self) {
        self.kubectl(&["-n", MESH, "patch", "daemonset", "mesh-agent", "--type=merge", "-p", NOWHERE]);
        let label = "-l=app.kubernetes.io/name=mesh-agent";
        self.kubectl(&["-n", MESH, "wait", "--for=delete", "pod", label, "--timeout=180s"]);
    }

    /// They come back.
    pub fn let_agents_back(&self) {
        self.kubectl(&["-n", MESH, "patch", "daemonset", "mesh-agent", "--type=merge", "-p", EVERYWHERE]);
    }

    /// Ends everything on a node at once and starts it again: every process, pin, mount, and what was below /run is gone, files
    /// on disks are there. Nothing where the nodes are somebody's.
    pub fn reboot(&self, node: &str) -> Option<()> {
        if !self.is_ours {
            return None;
        }
        let text = fs::read_to_string(state().join(format!("run/{node}.pid"))).expect("a node of this machine");
        let first = text.split(' ').next().and_then(|word| word.parse().ok()).and_then(Pid::from_raw);
        kill_process(first.expect("a process number"), Signal::KILL).expect("it runs");
        said(script("up").output(), "tests/cluster/up");
        Some(())
    }
}
