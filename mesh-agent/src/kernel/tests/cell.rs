//! Where these tests run: a node of its own per test, made of network namespaces and cgroups, with the test's body as the
//! agent's process inside the node's cgroup. Needs root, and fails without.

use std::fs;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::super::*;

const INSIDE: &str = "MESH_KERNEL_TEST_CELL";

/// Runs a test's body in a process of its own, in the agent's cgroup of a fresh node.
pub fn run<Body: FnOnce(&Cell)>(body: Body) {
    if let Ok(name) = std::env::var(INSIDE) {
        return body(&Cell { name });
    }
    // "mesh_agent::kernel::tests::FILE::TEST::{{closure}}": how the harness names the test, but for the crate.
    let name = std::any::type_name::<Body>().trim_end_matches("::{{closure}}");
    let test = name.split_once("::").expect("the closure is inside the test").1;
    let cell = Cell::make(test);
    let agent = cell.cgroup().join("agent/cgroup.procs");
    let mut command = Command::new(std::env::current_exe().expect("the test's own binary"));
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(INSIDE, &cell.name);
    // SAFETY: between fork and exec only a file is written.
    unsafe { command.pre_exec(move || fs::write(&agent, "0")) };
    let output = command.output().expect("the test's own binary runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "the test did not run:\n{text}");
}

/// A node: a namespace that routes between its pods, and a cgroup.
pub struct Cell {
    name: String,
}

/// A place where processes live.
#[derive(Clone)]
pub struct Place {
    pub namespace: PathBuf,
    pub cgroup: PathBuf,
    pub v4: String,
    pub v6: String,
}

impl Cell {
    fn make(test: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let cell = Self { name: format!("kernel{}x{number}", std::process::id()) };
        eprintln!("{test} runs in {}", cell.name);
        for cgroup in ["agent", "kubepods"] {
            fs::create_dir_all(cell.cgroup().join(cgroup)).expect("cgroups need root and a cgroup v2 hierarchy");
        }
        ip(&["netns", "add", &cell.name]);
        set(&cell.namespace(), &["ipv4/ip_forward", "ipv6/conf/all/forwarding"], "1");
        set(&cell.namespace(), &[NO_WAIT], "0");
        ip(&["-n", &cell.name, "link", "set", "lo", "up"]);
        cell
    }

    pub fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    pub fn cgroup(&self) -> PathBuf {
        cgroup_mount().join(&self.name)
    }

    pub fn bpffs(&self) -> PathBuf {
        std::env::temp_dir().join(format!("{}-bpf", self.name))
    }

    /// The node itself, outside pods.
    pub fn node(&self) -> Place {
        Place { namespace: self.namespace(), cgroup: self.cgroup().join("agent"), v4: String::new(), v6: String::new() }
    }

    /// Makes a pod (or a host beside the node: both are a namespace behind a link) with the addresses 10.201.N.2 and
    /// fd00:201:N::2.
    pub fn pod(&self, number: u32) -> Place {
        let (name, inner) = (format!("{}p{number}", self.name), "eth0");
        let outer = format!("v{number}");
        ip(&["netns", "add", &name]);
        let namespace = Path::new("/run/netns").join(&name);
        set(&namespace, &[NO_WAIT], "0");
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        ip(&["-n", &self.name, "link", "add", &outer, "type", "veth", "peer", "name", inner, "netns", &name]);
        let (v4, v6) = (format!("10.201.{number}.2"), format!("fd00:201:{number}::2"));
        let (gate4, gate6) = (format!("10.201.{number}.1"), format!("fd00:201:{number}::1"));
        for (at, device, v4, v6) in [(&name, inner, &v4, &v6), (&self.name, outer.as_str(), &gate4, &gate6)] {
            ip(&["-n", at, "address", "add", &format!("{v4}/24"), "dev", device]);
            ip(&["-n", at, "address", "add", &format!("{v6}/64"), "dev", device, "nodad"]);
            ip(&["-n", at, "link", "set", device, "up"]);
        }
        ip(&["-n", &name, "route", "add", "default", "via", &gate4]);
        ip(&["-n", &name, "-6", "route", "add", "default", "via", &gate6]);
        let cgroup = self.cgroup().join(format!("kubepods/pod{number}"));
        fs::create_dir_all(&cgroup).expect("a cgroup");
        Place { namespace, cgroup, v4, v6 }
    }

    pub fn settings(&self) -> KernelSettings {
        KernelSettings {
            cgroup_root: self.cgroup(),
            bpffs: self.bpffs(),
            maps_version: MAPS_VERSION,
            node_namespace: Some(self.namespace()),
            workers: 2,
            direct_max_age: Duration::from_secs(60),
            map_sizes: MapSizes { backends: 4096, services: 256, handshakes: 4096, flows: 4096, ..MapSizes::default() },
        }
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if std::env::var(INSIDE).is_ok() {
            return;
        }
        if let Err(error) = Kernel::detach(&self.bpffs()) {
            eprintln!("detaching: {error:?}");
        }
        let _ = fs::remove_dir_all(self.bpffs());
        let _ = fs::write(self.cgroup().join("cgroup.kill"), "1");
        let left = fs::read_dir("/run/netns").expect("namespaces").flatten();
        for namespace in left.filter(|entry| entry.file_name().to_string_lossy().starts_with(&self.name)) {
            ip(&["netns", "delete", &namespace.file_name().to_string_lossy()]);
        }
        eventually("the cgroups are empty", || remove_cgroups(&self.cgroup()).is_ok());
    }
}

fn remove_cgroups(cgroup: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cgroup)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// Where cgroup v2 is mounted.
fn cgroup_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc");
    let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[2] == "cgroup2");
    PathBuf::from(mount.expect("a cgroup v2 hierarchy")[1])
}

/// Duplicate address detection: a second in which an IPv6 address cannot be used.
const NO_WAIT: &str = "ipv6/conf/default/accept_dad";

fn set(namespace: &Path, keys: &[&str], value: &str) {
    let namespace = NetworkNamespace::open(namespace).expect("it was just made");
    for key in keys {
        let written = namespace.run(|| fs::write(format!("/proc/sys/net/{key}"), value));
        written.expect("the namespace").expect("a sysctl");
    }
}

pub fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("iproute2");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

impl Place {
    pub fn open(&self) -> NetworkNamespace {
        NetworkNamespace::open(&self.namespace).expect("the namespace is there")
    }

    pub fn v4(&self) -> IpAddr {
        self.v4.parse().expect("an address")
    }

    pub fn v6(&self) -> IpAddr {
        self.v6.parse().expect("an address")
    }

    /// Runs a closure in a process of this place and answers what it answered.
    pub fn run(&self, body: impl FnOnce() -> String) -> String {
        self.start(body).end()
    }

    /// Starts a process of this place.
    pub fn start(&self, body: impl FnOnce() -> String) -> Process {
        let (read, write) = std::io::pipe().expect("a pipe");
        // SAFETY: this process has no other thread that could hold a lock: the test harness waits in its main thread.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            drop(read);
            let answer = catch_unwind(AssertUnwindSafe(|| self.enter_and(body)));
            let _ = (&write).write_all(answer.as_deref().unwrap_or("panicked").as_bytes());
            // SAFETY: ends this process without running what belongs to the parent.
            unsafe { libc::_exit(0) };
        }
        Process { pid, answer: Some(read) }
    }

    fn enter_and(&self, body: impl FnOnce() -> String) -> String {
        fs::write(self.cgroup.join("cgroup.procs"), "0").expect("entering the cgroup");
        self.open().run(body).expect("entering the namespace")
    }
}

/// A process of a place.
pub struct Process {
    pid: i32,
    answer: Option<std::io::PipeReader>,
}

impl Process {
    /// What its body answered.
    pub fn end(mut self) -> String {
        let mut answer = String::new();
        self.answer.take().expect("asked once").read_to_string(&mut answer).expect("a pipe");
        answer
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: the process is a child of ours that nobody else waits for, so the number is still its own.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}
