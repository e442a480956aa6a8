//! The system calls that the agent may make: deploy/seccomp/mesh-agent.json, in the form that container runtimes read. The
//! agent puts the same list in force for itself, so that it is also tested wherever the agent runs. Everything else fails with
//! EPERM, above all executing a program.

use seccompiler::{BpfProgram, TargetArch};
use serde::Deserialize;

const PROFILE: &str = include_str!("../../../deploy/seccomp/mesh-agent.json");
/// Of the one filter, to seccompiler.
const NAME: &str = "agent";
const ALLOW: &str = "SCMP_ACT_ALLOW";
const REFUSE: &str = "SCMP_ACT_ERRNO";

/// Why the list is not in force.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It is part of the program, so that this is a mistake of ours.
    #[error("the list of system calls is wrong: {0}")]
    List(String),
    /// The kernel has no seccomp filters, or refuses this one.
    #[error("restrict system calls: {0}; the agent needs a kernel with CONFIG_SECCOMP_FILTER")]
    Install(#[source] seccompiler::Error),
}

/// Source: OCI runtime specification, config-linux.md, "Seccomp"; what of it is used here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: u32,
    syscalls: Vec<Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    names: Vec<String>,
    action: String,
}

/// Puts the list in force, for the process and whatever it could start.
///
/// # Errors
/// See [`ProfileError`].
pub(super) fn install() -> Result<(), ProfileError> {
    seccompiler::apply_filter_all_threads(&compile()?).map_err(ProfileError::Install)
}

fn compile() -> Result<BpfProgram, ProfileError> {
    let list = |error: &dyn std::error::Error| ProfileError::List(error.to_string());
    let profile: Profile = serde_json::from_str(PROFILE).map_err(|error| list(&error))?;
    let is_plain = profile.default_action == REFUSE && profile.syscalls.iter().all(|group| group.action == ALLOW);
    if !is_plain {
        return Err(ProfileError::List(format!("it has other actions than {ALLOW}, and {REFUSE} as default")));
    }
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| list(&error))?;
    let names = profile.syscalls.iter().flat_map(|group| &group.names);
    // Older architectures have calls (open, epoll_wait) that newer ones lack.
    let known: Vec<&String> = names.filter(|name| program(&[name], 0, architecture).is_ok()).collect();
    program(&known, profile.default_errno_ret, architecture).map_err(|error| list(&error))
}

/// Allows `names`; everything else fails with `errno`.
fn program(names: &[&String], errno: u32, architecture: TargetArch) -> Result<BpfProgram, seccompiler::Error> {
    let rules: Vec<_> = names.iter().map(|name| serde_json::json!({ "syscall": name })).collect();
    let filter = serde_json::json!({
        NAME: { "mismatch_action": { "errno": errno }, "match_action": "allow", "filter": rules }
    });
    let mut programs = seccompiler::compile_from_json(filter.to_string().as_bytes(), architecture)?;
    Ok(programs.remove(NAME).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn names() -> Vec<String> {
        let profile: Profile = serde_json::from_str(PROFILE).unwrap();
        profile.syscalls.into_iter().flat_map(|group| group.names).collect()
    }

    #[test]
    fn every_name_is_that_of_a_system_call_and_there_once() {
        let unknown: Vec<String> =
            names().into_iter().filter(|name| program(&[name], 1, TargetArch::x86_64).is_err()).collect();
        assert_eq!(unknown, Vec::<String>::new());
        assert_eq!(names().iter().collect::<HashSet<_>>().len(), names().len());
        assert!(program(&[&"opne".to_owned()], 1, TargetArch::x86_64).is_err(), "this test can fail");
    }

    #[test]
    fn what_an_attacker_would_like_is_not_on_the_list() {
        let names: HashSet<String> = names().into_iter().collect();
        for name in ["execve", "execveat", "ptrace", "process_vm_readv", "init_module", "io_uring_setup", "unshare"] {
            assert!(!names.contains(name), "{name}");
        }
    }

    #[test]
    fn what_is_not_on_the_list_fails_and_the_rest_goes_on() {
        let program = compile().unwrap();
        // For this one thread: others run tests that need more.
        let answers = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            seccompiler::apply_filter(&program).unwrap();
            let executed = std::process::Command::new("/bin/true").status().map_err(|error| error.raw_os_error());
            (executed.map(|_| ()), std::fs::read("/proc/self/status").is_ok())
        });
        assert_eq!(answers.join().unwrap(), (Err(Some(libc::EPERM)), true));
    }
}
