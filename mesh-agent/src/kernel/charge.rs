//! Who is in charge of the hooks: whose programs the links run, whose settings they go by. Goes from one agent to the next
//! without a moment in which nobody's programs run, and back as long as it is not kept.

use std::os::fd::AsFd;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use mesh_common::abi::Settings;

use super::link::{Change, Hook, LinkInfo};
use super::pods::{reading, writing};
use super::{Kernel, KernelError, sys};

/// Our programs are on the hooks; dropped without [`Attached::keep`], those of before are again.
#[derive(Debug)]
#[must_use = "dropped, it takes everything back"]
pub struct Attached<'a> {
    kernel: &'a Kernel,
    change: Option<Change>,
    settings: Option<Settings>,
}

impl Attached<'_> {
    /// Makes it final. Maps of other versions go: only programs that nobody will put back use them.
    pub fn keep(mut self) {
        if let Some(change) = self.change.take() {
            change.keep();
        }
        if let Err(error) = self.kernel.pins.remove_others() {
            tracing::warn!(%error, "maps of another version were not removed");
        }
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        let Some(change) = self.change.take() else { return };
        self.kernel.is_attached.store(false, Ordering::Relaxed);
        drop(change);
        if let Some(settings) = &self.settings
            && let Err(error) = self.kernel.maps.settings.set(&0, settings, sys::ANY)
        {
            tracing::error!(%error, "SETTINGS of the agent before could not be put back");
        }
    }
}

impl Kernel {
    /// Puts the programs on their hooks, readers first, then sk_lookup of the pods, connect hooks last: where a pinned link
    /// exists its program is replaced atomically. The maps must know the pods by then.
    ///
    /// # Errors
    /// A link cannot be made or updated: everything is as before.
    pub fn attach(&self) -> Result<Attached<'_>, KernelError> {
        let before = self.maps.settings.get(&0).map_err(reading("SETTINGS"))?;
        let mut attached = Attached { kernel: self, change: Some(Change::default()), settings: before };
        self.is_attached.store(true, Ordering::Relaxed);
        self.adopt_cgroup_levels()?;
        let Some(change) = &mut attached.change else { return Ok(attached) };
        let (before, after) = Hook::CGROUP.split_at(Hook::BEFORE_LOOKUP);
        for hook in before {
            self.put(change, *hook)?;
        }
        for pin in self.pins.lookups()? {
            change.refresh(&pin, self.programs.of(Hook::Lookup)?)?;
        }
        for hook in after {
            self.put(change, *hook)?;
        }
        Ok(attached)
    }

    /// Says for all workers that they are alive, before the hooks go by our heartbeats: between the last one of the agent
    /// before and the first of our own there is no gap. The workers must live, and hold a View.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn beat_all(&self) -> Result<(), KernelError> {
        (0..self.workers).try_for_each(|worker| self.beat(worker))
    }

    /// Takes the hooks back from a successor that failed, in the reverse order, and removes what it made. The others are taken
    /// back all the same when one cannot be.
    ///
    /// # Errors
    /// The first that could not be.
    pub fn reclaim(&self) -> Result<(), KernelError> {
        let (readers, connects) = Hook::CGROUP.split_at(Hook::BEFORE_LOOKUP);
        let mut first = Ok(());
        let mut note = |result: Result<(), KernelError>| {
            if first.is_ok() {
                first = result;
            }
        };
        for hook in connects.iter().rev() {
            note(self.put_and_keep(*hook));
        }
        note(self.reclaim_lookups());
        for hook in readers.iter().rev() {
            note(self.put_and_keep(*hook));
        }
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        note(self.maps.settings.set(&0, &settings, sys::ANY).map_err(writing("SETTINGS")));
        // It may have written there too: what is in force is read again.
        *self.installed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        note(self.pins.remove_others());
        first
    }

    fn reclaim_lookups(&self) -> Result<(), KernelError> {
        let mut change = Change::default();
        for pin in self.pins.lookups()? {
            change.refresh(&pin, self.programs.of(Hook::Lookup)?)?;
        }
        change.keep();
        Ok(())
    }

    fn put_and_keep(&self, hook: Hook) -> Result<(), KernelError> {
        let mut change = Change::default();
        self.put(&mut change, hook)?;
        change.keep();
        Ok(())
    }

    fn put(&self, change: &mut Change, hook: Hook) -> Result<(), KernelError> {
        let is_attached = |link: &LinkInfo| link.cgroup() == self.root.id();
        change.put(hook, self.programs.of(hook)?, self.root.as_fd(), &self.pins.link(hook), is_attached)
    }

    /// After a start that failed: what it made goes.
    pub fn abandon(&self) {
        if !self.is_attached() {
            self.pins.take_back(self.is_new);
        }
    }

    /// Whether the maps of this version hold nothing that was in force before this start.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Whether our programs are on the hooks.
    pub(super) fn is_attached(&self) -> bool {
        self.is_attached.load(Ordering::Relaxed)
    }

    /// The cgroup that the hooks are on: two agents with different ones cannot follow each other.
    pub fn root_id(&self) -> u64 {
        self.root.id()
    }

    /// Cookies of the namespaces in which sk_lookup steers, whatever the maps of this version know.
    ///
    /// # Errors
    /// The pins could not be read.
    pub fn steered_namespaces(&self) -> Result<Vec<u64>, KernelError> {
        self.pins.looked_up()
    }
}
