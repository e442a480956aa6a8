//! From the command line to checked settings. All mistakes are reported together; nothing else reads arguments or the
//! environment, and every setting is used.

mod arguments;
mod cgroup;
mod kubernetes;

pub use arguments::{
    AfterTakeOver, CheckArguments, CommandLine, DetachArguments, KubernetesArguments, LogFormat, MapArguments,
    RunArguments, Verb,
};
pub use kubernetes::{CniSettings, KubernetesSettings, PLUGIN};

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use mesh_common::MAX_WORKERS;

use crate::{
    control::ControlAddress,
    kernel::{KernelSettings, MAPS_VERSION, MapSizes},
    telemetry::AccessFormat,
};

/// Threads beyond this add listeners and memory, and no throughput on the nodes that were measured.
const DEFAULT_WORKERS: u32 = 4;
/// The network namespace of the node's first process.
const OF_NODE: &str = "/proc/1/ns/net";

/// Checked settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of this node.
    pub node: String,
    /// Directory of the admin socket and of what outlives a restart.
    pub run_dir: PathBuf,
    /// Directory of the cached View.
    pub state_dir: PathBuf,
    /// What the kernel side is started with; its cgroup root has all links resolved.
    pub kernel: KernelSettings,
    /// Where control is.
    pub control: ControlAddress,
    /// Where people and machines look.
    pub addresses: Addresses,
    /// One line per connection.
    pub access_log: AccessFormat,
    /// How long connections may go on after SIGTERM, or after another agent has taken over.
    pub drain_time: Duration,
    /// After that, when another agent has taken over.
    pub after_take_over: AfterTakeOver,
    /// Enrolment by what an API server says; none: by requests only.
    pub kubernetes: Option<KubernetesSettings>,
}

/// Addresses of the agent's own listeners on the node.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// /metrics
    pub metrics: SocketAddr,
    /// /healthz/ready
    pub ready: SocketAddr,
    /// Operators, on this machine only.
    pub admin: SocketAddr,
}

/// Everything that is wrong with the arguments.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("wrong arguments:\n  {}", .0.join("\n  "))]
pub struct Mistakes(pub Vec<String>);

impl Config {
    /// Checks the arguments of `run`.
    ///
    /// # Errors
    /// Every mistake, in the order of the arguments.
    pub fn check(arguments: &RunArguments) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let mut note = |name: &str, reason: String| mistakes.push(format!("--{name}: {reason}"));
        if !is_subdomain(&arguments.node) {
            note("node", format!("{:?} is not a DNS subdomain", arguments.node));
        }
        let cgroup_root = take(check_cgroup(arguments), "cgroup-root", &mut note);
        let paths = [("bpffs", &arguments.bpffs), ("run-dir", &arguments.run_dir), ("state-dir", &arguments.state_dir)];
        for (name, path) in paths {
            if !path.is_absolute() {
                note(name, format!("{} is not an absolute path", path.display()));
            }
        }
        take(check_control(&arguments.control), "control", &mut note);
        let metrics = take(check_address(&arguments.metrics_address), "metrics-address", &mut note);
        let ready = take(check_address(&arguments.ready_address), "ready-address", &mut note);
        let admin = take(check_loopback(&arguments.admin_address), "admin-address", &mut note);
        let workers = take(check_workers(arguments.workers), "workers", &mut note);
        let direct_max_age = take(read_duration(&arguments.direct_max_age), "direct-max-age", &mut note);
        let drain_time = take(read_duration(&arguments.drain_time), "drain-time", &mut note);
        let kubernetes = kubernetes::check(&arguments.kubernetes, &mut note);
        let map_sizes = check_maps(&arguments.maps, &mut note);
        let all = (cgroup_root, metrics, ready, admin, workers, direct_max_age, drain_time);
        let (Some(cgroup_root), Some(metrics), Some(ready), Some(admin), Some(workers), Some(direct), Some(drain)) =
            all
        else {
            return Err(Mistakes(mistakes));
        };
        if !mistakes.is_empty() {
            return Err(Mistakes(mistakes));
        }
        Ok(Self {
            node: arguments.node.clone(),
            run_dir: arguments.run_dir.clone(),
            state_dir: arguments.state_dir.clone(),
            kernel: KernelSettings {
                cgroup_root,
                bpffs: arguments.bpffs.clone(),
                maps_version: MAPS_VERSION,
                node_namespace: node_namespace(arguments),
                workers,
                direct_max_age: direct,
                map_sizes,
            },
            control: ControlAddress {
                uri: arguments.control.clone(),
                name: arguments.control_name.clone(),
                root: arguments.control_root.clone(),
                token: arguments.node_token.clone(),
            },
            addresses: Addresses { metrics, ready, admin },
            access_log: arguments.access_log,
            drain_time: drain,
            after_take_over: arguments.after_take_over,
            kubernetes,
        })
    }

    /// Where the last View is kept. The node is in its name: agents of several nodes share nothing but the directory.
    pub fn cached_view(&self) -> PathBuf {
        self.state_dir.join(format!("{}.view", self.node))
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir.join("admin.sock")
    }
}

fn take<T>(checked: Result<T, String>, name: &str, note: &mut impl FnMut(&str, String)) -> Option<T> {
    checked.map_err(|reason| note(name, reason)).ok()
}

/// Source: RFC 1123, section 2.1, as Kubernetes applies it.
fn is_label(part: &str) -> bool {
    (1..=63).contains(&part.len())
        && !part.starts_with('-')
        && !part.ends_with('-')
        && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

fn check_cgroup(arguments: &RunArguments) -> Result<PathBuf, String> {
    match &arguments.cgroup_root {
        Some(path) => cgroup::check(path),
        None if arguments.kubernetes.kubernetes => cgroup::find(),
        None => Err("is needed without --kubernetes".into()),
    }
}

/// A pod of the agent's own is not the node.
fn node_namespace(arguments: &RunArguments) -> Option<PathBuf> {
    let of_node = || arguments.kubernetes.kubernetes.then(|| OF_NODE.into());
    arguments.node_network_namespace.clone().or_else(of_node)
}

fn check_control(uri: &str) -> Result<(), String> {
    let parsed: http::Uri = uri.parse().map_err(|error| format!("{uri:?}: {error}"))?;
    let is_complete = parsed.scheme_str() == Some("https") && parsed.host().is_some() && parsed.port().is_some();
    if is_complete { Ok(()) } else { Err(format!("{uri:?} is not of the form https://HOST:PORT")) }
}

fn check_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not of the form ADDRESS:PORT"))
}

fn check_loopback(text: &str) -> Result<SocketAddr, String> {
    let address = check_address(text)?;
    if address.ip().is_loopback() { Ok(address) } else { Err(format!("{address} is not a loopback address")) }
}

fn check_workers(asked: Option<u32>) -> Result<u32, String> {
    match asked {
        Some(workers) if (1..=MAX_WORKERS).contains(&workers) => Ok(workers),
        Some(workers) => Err(format!("{workers} is not 1 to {MAX_WORKERS}")),
        // Counts the cgroup's CPU quota.
        None => Ok(std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32).min(DEFAULT_WORKERS)),
    }
}

/// A number with a unit (`ms`, `s`, `m`, `h`), or 0.
fn read_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a number with a unit: ms, s, m or h");
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" if number == 0 => 0,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(wrong)
}

fn check_maps(given: &MapArguments, note: &mut impl FnMut(&str, String)) -> MapSizes {
    let sizes = [
        ("max-pods", given.max_pods),
        ("max-services", given.max_services),
        ("max-service-slots", given.max_service_slots),
        ("max-policy-pairs", given.max_policy_pairs),
        ("max-handshakes", given.max_handshakes),
        ("max-flows", given.max_flows),
    ];
    for (name, _) in sizes.iter().filter(|(_, size)| *size == 0) {
        note(name, "0 leaves no room".into());
    }
    if !given.event_bytes.is_power_of_two() || given.event_bytes < 4096 {
        note("event-bytes", format!("{} is not a power of two of at least 4096", given.event_bytes));
    }
    MapSizes {
        pods: given.max_pods,
        services: given.max_services,
        backends: given.max_service_slots,
        policies: given.max_policy_pairs,
        handshakes: given.max_handshakes,
        flows: given.max_flows,
        event_bytes: given.event_bytes,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;

    fn arguments(extra: &[&str]) -> RunArguments {
        let cgroup = std::fs::read_to_string("/proc/mounts").unwrap();
        let cgroup = cgroup.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("needs cgroup v2");
        let mut line = vec!["mesh-agent", "run", "--node", "node-a", "--bpffs", "/run/b", "--run-dir", "/run/m"];
        line.extend(["--cgroup-root", cgroup.split(' ').nth(1).unwrap(), "--control", "https://10.0.0.1:15012"]);
        line.extend(["--control-root", "/r.pem", "--node-token", "/t"]);
        line.extend(extra);
        match CommandLine::try_parse_from(line).unwrap().verb {
            Verb::Run(arguments) => *arguments,
            Verb::Check(_) | Verb::Detach(_) => unreachable!("the line says run"),
        }
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let config = Config::check(&arguments(&[])).unwrap();
        assert_eq!(config.kernel.direct_max_age, Duration::from_secs(60));
        assert_eq!(config.addresses.metrics, "0.0.0.0:15020".parse().unwrap());
        assert_eq!(config.admin_socket(), Path::new("/run/m/admin.sock"));
        assert_eq!(config.cached_view(), Path::new("/var/lib/mesh-agent/node-a.view"));
        assert!((1..=4).contains(&config.kernel.workers));
        assert_eq!(config.kernel.map_sizes, MapSizes::default());
    }

    #[test]
    fn all_mistakes_are_reported_together() {
        let mut wrong = arguments(&["--workers", "99", "--direct-max-age", "60", "--admin-address", "0.0.0.0:15000"]);
        wrong.node = "Node A".into();
        wrong.cgroup_root = Some("/proc".into());
        wrong.control = "http://10.0.0.1".into();
        wrong.run_dir = "run".into();
        wrong.state_dir = "state".into();
        wrong.maps.max_pods = 0;
        wrong.maps.event_bytes = 5000;
        let Mistakes(mistakes) = Config::check(&wrong).unwrap_err();
        let names: Vec<&str> = mistakes.iter().map(|mistake| mistake.split(':').next().unwrap()).collect();
        let expected = [
            "--node",
            "--cgroup-root",
            "--run-dir",
            "--state-dir",
            "--control",
            "--admin-address",
            "--workers",
            "--direct-max-age",
            "--max-pods",
            "--event-bytes",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn durations_have_units() {
        let read = |text| read_duration(text).ok().map(|duration| duration.as_millis());
        let cases = [
            ("60s", Some(60_000)),
            ("0", Some(0)),
            ("250ms", Some(250)),
            ("2m", Some(120_000)),
            ("1h", Some(3_600_000)),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text), expected, "{text}");
        }
        for text in ["", "60", "s", "-1s", "1.5s", "1 s", "1d", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
