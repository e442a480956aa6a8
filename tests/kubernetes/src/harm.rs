//! What happens to agents, nodes and the API server of a real cluster that nobody asked for: kills, and a reboot. Only on this
//! machine; elsewhere agents' pods are deleted without notice, and nothing else is touched.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Cluster, MESH, SLOW, eventually, root, said, script, state};

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

    /// Ends the API server, and starts it again after `length`; the moment from which it answers. None where it is somebody's.
    pub fn without_api_server(&self, length: Duration) -> Option<Instant> {
        if !self.is_ours {
            return None;
        }
        let stop = ". tests/cluster/lib.sh; stop kube-apiserver";
        said(Command::new("bash").args(["-c", stop]).current_dir(root()).output(), stop);
        let away = self.try_kubectl(&["get", "--raw", "/readyz"]);
        assert!(away.is_err(), "the API server answers all the same");
        thread::sleep(length);
        thread::scope(|scope| {
            // It goes on for a while after that.
            let starting = scope.spawn(|| said(script("up").output(), "tests/cluster/up"));
            let answers = || self.try_kubectl(&["get", "--raw", "/readyz"]).map(|_| Instant::now());
            let since = eventually("the API server answers", SLOW, answers);
            starting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Some(since)
        })
    }

    /// A kind of object goes, with all objects of it that anybody has made. None where the cluster is somebody's.
    pub fn without_kind(&self, definition: &str) -> Option<String> {
        self.is_ours.then(|| self.kubectl(&["delete", "crd", definition]))
    }

    /// What a node holds, kind by kind, as one hash each.
    ///
    /// # Errors
    /// Its agent does not answer, or is not in step with control.
    pub fn view(&self, node: &str) -> Result<String, String> {
        let status = self.meshctl(node, &["status"])?;
        let types = status["resource_types"].as_array().cloned().unwrap_or_default();
        if status["control"] != "connected" || types.is_empty() || types.iter().any(|one| one["synced"] != true) {
            return Err(format!("{node}: {status}"));
        }
        Ok(types.iter().map(|one| one["hash"].as_str().unwrap_or_default()).collect::<Vec<_>>().join(" "))
    }

    /// The agent of a node ends, and one starts there that knows nothing of before. Nothing where the nodes are somebody's.
    pub fn start_agent_afresh(&self, node: &str) -> Option<()> {
        self.on_node(node, "rm -rf /var/lib/mesh-agent/*")?;
        self.kill_agent(node);
        Some(())
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
