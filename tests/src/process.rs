//! Processes of a mesh: started inside a namespace and a cgroup from their first instruction, logged to a file, killed
//! when dropped.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use crate::{
    cgroup::Cgroup,
    eventually::{LIMIT, eventually},
    namespace::Namespace,
};

/// Where a process runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its network.
    pub namespace: Namespace,
    /// Its cgroup.
    pub cgroup: Cgroup,
}

impl Place {
    /// A command that will run here.
    ///
    /// # Panics
    /// When the cgroup has gone.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        // Ctrl-C at a terminal is for us, who then end our processes in order.
        command.process_group(0);
        let namespace: OwnedFd = self.namespace.file().try_clone().expect("a descriptor").into();
        let path = self.cgroup.processes();
        let cgroup = OpenOptions::new().write(true).open(&path);
        let cgroup = cgroup.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let enter = move || {
            // SAFETY: both calls only read the byte and the descriptors, which this closure owns.
            unsafe {
                if libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
                    return Err(io::Error::last_os_error());
                }
                if libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: between fork and exec `enter` makes two system calls and neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a program to its end and returns what it printed.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run<S: AsRef<OsStr>>(&self, words: &[S]) -> Output {
        let mut command = self.command(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}; run `cargo xtask setup`"))
    }

    /// Starts a program whose output goes to `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start<S: AsRef<OsStr>>(&self, words: &[S], log: &Path) -> Process {
        let mut command = self.command(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        Process::start(command, log)
    }
}

/// What a program printed that ended well.
///
/// # Panics
/// When it did not.
#[track_caller]
pub fn printed(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}: {}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with standard error, and standard output unless already set by the caller, going to `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let file = || append(log);
        command.stdout(file()).stderr(file());
        Self::spawn(command, log)
    }

    pub(crate) fn spawn(mut command: Command, log: &Path) -> Self {
        let begun = Instant::now();
        // A program that was just written: what another thread starts in that moment holds its file open until it is another.
        let child = loop {
            match command.spawn() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && begun.elapsed() < LIMIT => {
                    thread::sleep(Duration::from_millis(10));
                }
                child => break child,
            }
        };
        let child = child.unwrap_or_else(|error| {
            panic!("cannot start {:?}: {error}; run `cargo xtask setup` and `cargo xtask build`", command.get_program())
        });
        Self { child, log: log.to_owned() }
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal; a process that has ended is left alone.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.id().cast_signed()).expect("a child has a number");
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Panics
    /// When it has not ended within ten seconds.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let mut status = ExitStatus::from_raw(0);
        eventually("the process ends after SIGTERM", Duration::from_secs(10), || {
            self.ended().map(|ended| status = ended).ok_or_else(|| "it still runs".to_owned())
        });
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A log that survives restarts of what writes it.
pub(crate) fn append(log: &Path) -> File {
    let file = OpenOptions::new().create(true).append(true).open(log);
    file.unwrap_or_else(|error| panic!("{}: {error}", log.display()))
}

/// A program of the product or of this package: beside this program when it is one of them (the benchmark's optimised
/// build), else from the release profile, built by `cargo xtask build`.
pub(crate) fn binary(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("this program has a path");
    let beside = this.with_file_name(name);
    if beside.is_file() {
        return beside;
    }
    let profiles = this.ancestors().find(|path| path.join("release").is_dir());
    let path = profiles.map(|target| target.join("release").join(name)).unwrap_or_default();
    assert!(path.is_file(), "{} is missing: run `cargo xtask build`", path.display());
    path
}
