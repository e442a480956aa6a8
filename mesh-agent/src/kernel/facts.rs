//! What `meshctl check` says about the kernel: version, BTF, cgroup v2, rights, foreign programs on our hooks, our own links.
//! Only looks.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::Kernel;
use super::cgroup::CgroupRoot;
use super::link::{self, Hook};
use super::pins;
use super::sys;
use crate::privileges::KEPT;

/// One line of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Stable name, e.g. `kernel_version`.
    pub name: &'static str,
    /// How it stands.
    pub result: FactResult,
    /// What was found.
    pub text: String,
    /// What to do about it; empty when nothing.
    pub remedy: String,
}

/// How a fact stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FactResult {
    /// As it should be.
    Ok,
    /// Works, with a limit that the text names.
    Warning,
    /// Does not work.
    Failed,
}

impl Fact {
    fn ok(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, result: FactResult::Ok, text: text.into(), remedy: String::new() }
    }

    fn warning(name: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, result: FactResult::Warning, text: text.into(), remedy: remedy.into() }
    }

    fn failed(name: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, result: FactResult::Failed, text: text.into(), remedy: remedy.into() }
    }
}

/// What can be said without loading anything; also when [`Kernel::start`] fails.
pub fn precheck(cgroup_root: &Path, bpffs: &Path) -> Vec<Fact> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let file_systems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    vec![
        kernel_version(parse_release(&release)),
        btf(Path::new("/sys/kernel/btf/vmlinux")),
        cgroup(cgroup_root),
        capabilities(&status),
        pin_directory(bpffs, &file_systems),
    ]
}

/// Major and minor of "6.18.44-fc-v669".
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn kernel_version(version: Option<(u32, u32)>) -> Fact {
    const NAME: &str = "kernel_version";
    match version {
        Some((major, minor)) if (major, minor) >= (5, 18) => Fact::ok(NAME, format!("{major}.{minor}")),
        Some((major, minor)) if (major, minor) >= (5, 15) => Fact::warning(
            NAME,
            format!("{major}.{minor}: refused connections answer EPERM instead of ECONNREFUSED"),
            "use Linux 5.18 or later",
        ),
        Some((major, minor)) => Fact::failed(NAME, format!("{major}.{minor} is too old"), "use Linux 5.15 or later"),
        None => Fact::failed(NAME, "unknown", "use Linux 5.15 or later"),
    }
}

fn btf(path: &Path) -> Fact {
    if path.exists() {
        return Fact::ok("btf", "the kernel describes its types");
    }
    Fact::failed("btf", format!("{} is not there", path.display()), "use a kernel with CONFIG_DEBUG_INFO_BTF")
}

fn cgroup(root: &Path) -> Fact {
    match CgroupRoot::open(root) {
        Ok(_) => Fact::ok("cgroup_v2", format!("{} is a cgroup v2", root.display())),
        Err(error) => Fact::failed(
            "cgroup_v2",
            with_cause(&error),
            "mount the host's cgroup v2 hierarchy and give its root or a node's cgroup as --cgroup-root",
        ),
    }
}

fn capabilities(status: &str) -> Fact {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let missing: Vec<_> =
        KEPT.iter().filter(|kept| effective & kept.capability.bits() == 0).map(|kept| kept.name).collect();
    if missing.is_empty() {
        return Fact::ok("capabilities", "all that are needed");
    }
    Fact::failed("capabilities", format!("missing: {}", missing.join(", ")), "run the agent as root, or give it these")
}

/// Whether the agent can pin there: a bpffs, or a directory (made when it is not there) that it can mount one on.
fn pin_directory(path: &Path, file_systems: &str) -> Fact {
    const NAME: &str = "bpffs";
    const REMEDY: &str = "give as --bpffs a directory of the agent's own, e.g. /run/mesh/bpf";
    let is_known = file_systems.lines().any(|line| line.split_whitespace().next_back() == Some("bpf"));
    match pins::is_bpffs(path) {
        Ok(true) => Fact::ok(NAME, format!("{} is a bpffs", path.display())),
        _ if !is_known => Fact::failed(NAME, "the kernel has no bpffs", "use a kernel with CONFIG_BPF_SYSCALL"),
        Ok(false) if !path.is_dir() => Fact::failed(NAME, format!("{} is no directory", path.display()), REMEDY),
        Ok(false) => Fact::ok(NAME, format!("{} is mounted when the agent starts", path.display())),
        Err(error) => match ancestor(path) {
            Some(above) if above.is_dir() => {
                Fact::ok(NAME, format!("{} is made when the agent starts", path.display()))
            }
            _ => Fact::failed(NAME, format!("{}: {error}", path.display()), REMEDY),
        },
    }
}

/// The nearest directory or file above that is there.
fn ancestor(path: &Path) -> Option<PathBuf> {
    path.ancestors().skip(1).find(|above| above.symlink_metadata().is_ok()).map(Path::to_owned)
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

impl Kernel {
    /// Whether our links are still attached with our programs.
    pub fn links_fact(&self) -> Fact {
        let broken: Vec<String> = Hook::CGROUP
            .into_iter()
            .filter_map(|hook| Some(format!("{}: {}", hook.pin(), self.broken(hook)?)))
            .collect();
        if broken.is_empty() {
            return Fact::ok("links", format!("{} links attached", Hook::CGROUP.len()));
        }
        Fact::failed("links", broken.join("; "), "restart the agent: it attaches what is missing")
    }

    /// What is wrong with the link of a hook, if anything.
    fn broken(&self, hook: Hook) -> Option<String> {
        let link = match sys::open_pinned(&self.pins.link(hook)) {
            Ok(link) => link,
            Err(error) => return Some(format!("no pin ({error})")),
        };
        let info = match link::info(link.as_fd()) {
            Ok(info) => info,
            Err(error) => return Some(error.to_string()),
        };
        if info.cgroup() != self.root.id() {
            return Some("detached".into());
        }
        let ours = self.programs.of(hook).ok().and_then(|program| sys::program_id(program).ok());
        (ours != Some(info.program)).then(|| "has another program".into())
    }

    /// Who else is on our hooks: on the node's cgroup and above it, and from there to the pods' own
    /// cgroups and their containers'.
    pub fn neighbours_fact<'a>(&self, pods: impl Iterator<Item = &'a Path>) -> Fact {
        const NAME: &str = "other_programs";
        let others = match self.neighbours(pods) {
            Ok(others) => others,
            Err(error) => {
                return Fact::warning(NAME, error.to_string(), "is bpf(BPF_PROG_QUERY) allowed to the agent?");
            }
        };
        if others.is_empty() {
            return Fact::ok(NAME, "nobody else is on our hooks");
        }
        Fact::warning(
            NAME,
            format!("other programs on our hooks: {}", others.join(", ")),
            "see that they leave destinations of enrolled pods alone",
        )
    }

    fn neighbours<'a>(&self, pods: impl Iterator<Item = &'a Path>) -> std::io::Result<Vec<String>> {
        let mut others = Vec::new();
        for hook in Hook::CGROUP {
            let programs = link::programs_on(self.root.as_fd(), hook)?;
            if programs.len() > 1 {
                others.push(format!("{}: {}", hook.pin(), programs.len() - 1));
            }
        }
        for directory in self.root.around(pods) {
            // A cgroup that has gone meanwhile has no programs.
            let Ok(cgroup) = std::fs::File::open(&directory) else { continue };
            for hook in Hook::CGROUP {
                let count = link::programs_of(cgroup.as_fd(), hook).map_or(0, |programs| programs.len());
                if count > 0 {
                    others.push(format!("{}: {count} in {}", hook.pin(), directory.display()));
                }
            }
        }
        Ok(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions() {
        let cases = [((5, 14), FactResult::Failed), ((5, 15), FactResult::Warning), ((5, 18), FactResult::Ok)];
        for (version, expected) in cases {
            assert_eq!(kernel_version(Some(version)).result, expected, "{version:?}");
        }
        assert_eq!(kernel_version(Some((6, 1))).result, FactResult::Ok);
        assert_eq!(parse_release("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(parse_release("5.15-rc1"), Some((5, 15)));
        assert_eq!(parse_release("x"), None);
        assert_eq!(kernel_version(None).result, FactResult::Failed);
    }

    #[test]
    fn missing_capabilities_are_named() {
        let all = capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n");
        assert_eq!(all.result, FactResult::Ok);
        let some = capabilities("CapEff:\t0000000000200000\n");
        assert_eq!(
            (some.result, some.text.as_str()),
            (FactResult::Failed, "missing: CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_BPF")
        );
    }

    #[test]
    fn what_is_missing_has_a_remedy() {
        let below_file = Path::new("/proc/self/status/bpf");
        let foreign = pin_directory(Path::new("/run/mesh-nowhere/bpf"), "nodev\tsysfs\n");
        let places = [pin_directory(below_file, "nodev\tbpf\n"), foreign];
        for fact in places.into_iter().chain([
            btf(Path::new("/nowhere")),
            cgroup(Path::new("/proc")),
            cgroup(Path::new("/nowhere")),
        ]) {
            assert_eq!(fact.result, FactResult::Failed);
            assert!(!fact.remedy.is_empty());
        }
    }

    #[test]
    fn a_place_for_pins_is_one_that_can_be_made() {
        for place in ["/run/mesh-nowhere/below/bpf", "/tmp"] {
            let fact = pin_directory(Path::new(place), "nodev\tsysfs\nnodev\tbpf\n");
            assert_eq!(fact.result, FactResult::Ok, "{fact:?}");
        }
    }
}
