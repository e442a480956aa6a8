//! A daemon of the product as a mesh runs it: started, asked whether it is ready, killed, started again; its log goes on.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitStatus,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::process::Signal;

use crate::{
    eventually::{LIMIT, eventually},
    namespace::Namespace,
    process::{Place, Process},
    web,
};

/// Of Debian's package libfaketime.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// A daemon, running or not.
pub(crate) struct Daemon {
    name: String,
    log: PathBuf,
    clock: PathBuf,
    process: Mutex<Option<Process>>,
    /// Those that another has taken over from.
    former: Mutex<Vec<Process>>,
}

impl Daemon {
    pub(crate) fn new(name: impl Into<String>, log: PathBuf) -> Self {
        let clock = log.with_extension("clock");
        Self { name: name.into(), log, clock, process: Mutex::default(), former: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, ask: impl FnOnce(&mut Process) -> T) -> T {
        ask(self.lock().as_mut().unwrap_or_else(|| panic!("{} was not started", self.name)))
    }

    /// Starts it without waiting for anything.
    pub(crate) fn start(&self, place: &Place, words: &[String]) {
        *self.lock() = Some(place.start(&self.clocked(words), &self.log));
    }

    /// The line that starts it, under the clock that it was given.
    fn clocked(&self, words: &[String]) -> Vec<String> {
        // The wall clock alone is another's: a machine that is put right does not live through its hours again either.
        let mut line: Vec<String> = match self.clock.exists() {
            false => Vec::new(),
            true => [
                "env".to_owned(),
                format!("LD_PRELOAD={FAKETIME}"),
                format!("FAKETIME_TIMESTAMP_FILE={}", self.clock.display()),
                "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
                "FAKETIME_NO_CACHE=1".to_owned(),
            ]
            .into(),
        };
        line.extend_from_slice(words);
        line
    }

    /// Starts another beside the one that runs; that one is now one of the former, if the new one says `marker` in the log.
    ///
    /// # Errors
    /// It ended before: how, and what it said.
    pub(crate) fn is_followed(&self, place: &Place, words: &[String], marker: &str) -> Result<(), String> {
        let before = self.log();
        let count = before.matches(marker).count();
        let mut next = place.start(&self.clocked(words), &self.log);
        let has_ended = eventually(&format!("{} is followed", self.name), LIMIT, || {
            let ended = next.ended();
            match self.log().matches(marker).count() > count {
                true => Ok(None),
                false => ended.map(Some).ok_or_else(|| "neither in charge nor ended".to_owned()),
            }
        });
        if let Some(status) = has_ended {
            return Err(format!("{status}: {}", self.log().split_off(before.len())));
        }
        let before = self.lock().replace(next);
        self.former.lock().unwrap_or_else(PoisonError::into_inner).extend(before);
        Ok(())
    }

    /// How many of the former still run; the others have ended in order.
    pub(crate) fn former(&self) -> usize {
        let mut former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        former.retain_mut(|process| match process.ended() {
            None => true,
            Some(status) => {
                assert!(status.success(), "{}, followed by another, ended with {status}", self.name);
                false
            }
        });
        former.len()
    }

    /// Asks all of the former to end.
    pub(crate) fn end_former(&self) {
        let former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        former.iter().for_each(|process| process.signal(Signal::TERM));
    }

    /// Waits until its readiness page says so.
    pub(crate) fn is_ready(&self, namespace: &Namespace, address: SocketAddr) {
        eventually(&format!("{} is ready", self.name), LIMIT, || {
            if let Some(status) = self.with(Process::ended) {
                panic!("{} ended, {status}:\n{}", self.name, self.log());
            }
            match web::ask(namespace, address, "/healthz/ready")? {
                answer if answer.status == 200 => Ok(()),
                answer => Err(format!("{} {}", answer.status, answer.body)),
            }
        });
    }

    /// Puts its clock off by as much as libfaketime is told, like `+2h`; from its next start on, and at once if it was started
    /// so before.
    pub(crate) fn set_clock(&self, offset: &str) {
        let fresh = self.clock.with_extension("fresh");
        std::fs::write(&fresh, offset).and_then(|()| std::fs::rename(&fresh, &self.clock)).expect("the slot has room");
    }

    /// From its next start on its clock is the machine's again.
    pub(crate) fn forget_clock(&self) {
        std::fs::remove_file(&self.clock).expect("it had a clock of its own");
    }

    pub(crate) fn kill(&self) {
        self.with(Process::kill);
    }

    pub(crate) fn stop(&self) -> ExitStatus {
        self.with(Process::stop)
    }

    /// Ends it as a bug in it would.
    pub(crate) fn aborts(&self) -> ExitStatus {
        self.signal(Signal::ABORT);
        self.ends()
    }

    /// Waits for its end.
    pub(crate) fn ends(&self) -> ExitStatus {
        let ended = || self.with(Process::ended).ok_or_else(|| "it still runs".to_owned());
        eventually(&format!("{} has ended", self.name), LIMIT, ended)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.with(Process::ended).is_some()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.with(|process| process.signal(signal));
    }

    pub(crate) fn id(&self) -> u32 {
        self.with(|process| process.id())
    }

    /// All that it has logged, over restarts.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}
