//! A real cluster for stories: the one that KUBECONFIG names, which is somebody's and of which only namespaces of the story's own
//! are touched, or one on this machine, started by the scripts of tests/cluster. Everything is done as users do it: with
//! kubectl and helm.

mod audit;
// The very one of the other stories, without all that they are built from.
#[path = "../../src/eventually.rs"]
mod eventually;
mod harm;
mod traces;

use std::{
    env,
    ffi::OsString,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use serde_json::Value;

pub use audit::{Grant, Request};
pub use eventually::{LIMIT, eventually};

/// Where the mesh's own objects are in stories.
pub const MESH: &str = "mesh-system";
/// The image of the mesh, as the chart names it.
pub const IMAGE: &str = concat!("mesh.dev/mesh:", env!("CARGO_PKG_VERSION"));
/// The same, as if it were the next version.
pub const NEXT: &str = "next";
/// A pod, a Deployment, a deletion: on a machine that does other things as well.
pub const SLOW: Duration = Duration::from_secs(120);

/// One story at a time: there is one mesh in a cluster.
static ONE: Mutex<()> = Mutex::new(());

/// A cluster that runs, with the image of the mesh on its nodes.
pub struct Cluster {
    kubeconfig: PathBuf,
    is_ours: bool,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Waits for its turn. Starts the cluster of this machine where it does not run.
    ///
    /// # Panics
    /// When there is none, or it does not start.
    pub fn reach() -> Self {
        // A story that failed has left things behind, which the next one clears.
        let turn = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(kubeconfig) = env::var_os("KUBECONFIG") {
            return Self { kubeconfig: kubeconfig.into(), is_ours: false, _turn: turn };
        }
        said(script("up").output(), "tests/cluster/up");
        let cluster = Self { kubeconfig: state().join("pki/admin.kubeconfig"), is_ours: true, _turn: turn };
        cluster.load_image();
        cluster
    }

    /// A mesh that is somebody's is not touched.
    ///
    /// # Panics
    /// When there is one in a cluster that is not this machine's.
    #[track_caller]
    pub fn must_be_free(&self) {
        let found = self.kubectl(&["get", "namespace", MESH, "--ignore-not-found", "-o", "name"]);
        assert!(
            self.is_ours || found.is_empty(),
            "this cluster has a {found}: stories install a mesh of their own; remove it first"
        );
    }

    /// Takes the image that `cargo xtask dist --profile release` made to all nodes, under two names.
    fn load_image(&self) {
        let directory = target().join("image");
        let version = env!("CARGO_PKG_VERSION");
        let architecture = match env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let archive = directory.join(format!("mesh-{version}-{architecture}.tar"));
        assert!(archive.is_file(), "{} is missing: cargo xtask dist --profile release", archive.display());
        for name in [IMAGE, &IMAGE.replace(version, NEXT)] {
            // Whoever puts another image under a name may meet containerd clearing the one before away.
            let load = || outcome(script("image").arg(name).arg(&archive).output());
            eventually("the nodes have the image", SLOW, load);
        }
    }

    /// What kubectl prints.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|error| panic!("kubectl {}: {error}", arguments.join(" ")))
    }

    /// What kubectl prints, or says when it fails.
    ///
    /// # Errors
    /// kubectl's own.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        outcome(self.command("kubectl").args(arguments).output())
    }

    /// What kubectl answers with `-o json`.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.kubectl(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&text).expect("kubectl prints JSON")
    }

    /// What helm prints; in the root of the sources.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn helm(&self, arguments: &[&str]) -> String {
        let output = self.command("helm").args(arguments).output();
        outcome(output).unwrap_or_else(|error| panic!("helm {}: {error}", arguments.join(" ")))
    }

    /// Puts objects as they are written.
    ///
    /// # Panics
    /// When one is refused.
    #[track_caller]
    pub fn apply(&self, objects: &str) {
        let mut command = self.command("kubectl");
        command.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl starts");
        child.stdin.take().expect("a pipe").write_all(objects.as_bytes()).expect("kubectl reads");
        outcome(child.wait_with_output()).unwrap_or_else(|error| panic!("kubectl apply: {error}\n{objects}"));
    }

    /// Waits until something is so.
    ///
    /// # Panics
    /// When it never is.
    #[track_caller]
    pub fn wait(&self, condition: &str, what: &str, namespace: &str) {
        self.kubectl(&["-n", namespace, "wait", &format!("--for={condition}"), what, "--timeout=120s"]);
    }

    /// A command in a pod, until it succeeds.
    ///
    /// # Panics
    /// When it never does.
    #[track_caller]
    pub fn exec_until(&self, claim: &str, namespace: &str, pod: &str, command: &[&str]) -> String {
        eventually(claim, SLOW, || self.exec(namespace, pod, command))
    }

    /// A command in a pod.
    ///
    /// # Errors
    /// It fails; what it said.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String, String> {
        self.try_kubectl(&[&["-n", namespace, "exec", pod, "--"], command].concat())
    }

    /// A namespace of the story's own, without what a story before left in it; gone when the story ends.
    pub fn namespace(&self, name: &str) -> Namespace<'_> {
        self.kubectl(&["delete", "namespace", name, "--ignore-not-found", "--wait"]);
        self.kubectl(&["create", "namespace", name]);
        Namespace { cluster: self, name: name.to_owned() }
    }

    /// Names of the nodes.
    pub fn nodes(&self) -> Vec<String> {
        let text = self.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"]);
        text.split(' ').map(str::to_owned).collect()
    }

    /// The agent's pod of a node.
    pub fn agent_of(&self, node: &str) -> String {
        let field = format!("--field-selector=spec.nodeName={node},status.phase=Running");
        let label = "-l=app.kubernetes.io/name=mesh-agent";
        let names =
            self.kubectl(&["-n", MESH, "get", "pods", label, &field, "-o", "jsonpath={.items[*].metadata.name}"]);
        names.split(' ').next().unwrap_or_default().to_owned()
    }

    /// The image of that pod.
    pub fn agent_image(&self, node: &str) -> String {
        self.kubectl(&["-n", MESH, "get", "pod", &self.agent_of(node), "-o", "jsonpath={.spec.containers[0].image}"])
    }

    /// What meshctl answers on a node, as JSON.
    ///
    /// # Errors
    /// It fails; what it said.
    pub fn meshctl(&self, node: &str, arguments: &[&str]) -> Result<Value, String> {
        let text = self.exec(MESH, &self.agent_of(node), &[&["meshctl", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    /// What a shell prints on a node; none where the nodes are somebody's.
    pub fn on_node(&self, node: &str, line: &str) -> Option<String> {
        let output = self.is_ours.then(|| script("node").args([node, "sh", "-c", line]).output())?;
        Some(outcome(output).unwrap_or_else(|error| panic!("{line} on {node}: {error}")))
    }

    /// Everything that passes between the nodes from now on; none where the link is somebody's.
    pub fn capture(&self) -> Option<Wire> {
        self.is_ours.then(Wire::tap)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("KUBECONFIG", &self.kubeconfig).env("PATH", path()).current_dir(root());
        command
    }
}

/// A namespace that ends with the story.
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    /// Its name.
    pub name: String,
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // Left for whoever wants to know why the story failed; the next run clears it.
        if !std::thread::panicking() {
            self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait"]);
        }
    }
}

/// A capture on the bridge between the nodes.
pub struct Wire {
    tcpdump: std::process::Child,
    file: PathBuf,
}

impl Wire {
    fn tap() -> Self {
        let file = env::temp_dir().join(format!("mesh-wire-{}.pcap", std::process::id()));
        let bridge = format!("{}-br", env::var("CLUSTER_NAME").unwrap_or_else(|_| "kube".to_owned()));
        let mut command = Command::new("tcpdump");
        command.args(["-i", &bridge, "-s", "0", "-U", "-Z", "root", "-w"]).arg(&file).arg("tcp");
        let log = File::create(file.with_extension("log")).expect("a file");
        let tcpdump = command.stdout(Stdio::null()).stderr(log).spawn().expect("tcpdump starts");
        let wire = Self { tcpdump, file };
        // The head of the file is written once it listens.
        eventually("tcpdump listens", SLOW, || match wire.content().len() {
            0..24 => Err("not yet".to_owned()),
            _ => Ok(()),
        });
        wire
    }

    /// Whether bytes have passed in the clear. They are on the wire before this is asked, in one packet.
    pub fn has_seen(&self, bytes: &str) -> bool {
        memchr::memmem::find(&self.content(), bytes.as_bytes()).is_some()
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(&self.file).unwrap_or_default()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("a directory of the workspace")
}

/// Cargo's target directory, which cargo marks.
fn target() -> PathBuf {
    let this = env::current_exe().expect("this program has a path");
    let marked = this.ancestors().find(|path| path.join("CACHEDIR.TAG").exists());
    marked.expect("tests are built below cargo's target directory").to_owned()
}

fn script(name: &str) -> Command {
    Command::new(root().join("tests/cluster").join(name))
}

/// As tests/cluster/lib.sh has it.
fn state() -> PathBuf {
    env::var_os("CLUSTER_STATE").map_or_else(|| "/tmp/mesh-cluster".into(), PathBuf::from)
}

/// With the cluster's programs before all others.
fn path() -> OsString {
    let home = || env::home_dir().unwrap_or_default().join(".cache");
    let cache = || env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("mesh-cluster");
    let programs = env::var_os("CLUSTER_CACHE").map_or_else(cache, PathBuf::from).join("bin");
    let mut path = programs.into_os_string();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    path
}

fn outcome(output: std::io::Result<Output>) -> Result<String, String> {
    let output = output.map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{}: {} {}", output.status, text(&output.stdout), text(&output.stderr)))
}

#[track_caller]
fn said(output: std::io::Result<Output>, what: &str) -> String {
    outcome(output).unwrap_or_else(|error| panic!("{what}: {error}"))
}
