//! A pod that is about to be: its name, account and labels before it is put on a node.

use std::sync::Arc;

use crate::{addresses::Pair, app::App, world::World};

/// A pod that is about to be.
pub struct NewApp<'a> {
    pub(crate) world: &'a Arc<World>,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) ports: Vec<(String, u16)>,
    pub(crate) probe_ports: Vec<u16>,
    pub(crate) is_enrolled: bool,
    pub(crate) is_late: bool,
    pub(crate) is_published: bool,
    pub(crate) addresses: Option<Pair>,
}

impl NewApp<'_> {
    /// In this Kubernetes namespace; `default` otherwise.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// With this ServiceAccount; the pod's own name otherwise.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    /// With this label; replaces one of the same key.
    #[must_use]
    pub fn labelled(mut self, key: &str, value: &str) -> Self {
        self.labels.retain(|(other, _)| other != key);
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// With a named container port, for services that name their target.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16) -> Self {
        self.ports.push((name.to_owned(), port));
        self
    }

    /// With a port that a kubelet probes.
    #[must_use]
    pub fn probed_on(mut self, port: u16) -> Self {
        self.probe_ports.push(port);
        self
    }

    /// Outside the mesh, on a node of it.
    #[must_use]
    pub fn not_enrolled(mut self) -> Self {
        self.is_enrolled = false;
        self
    }

    /// In the mesh as far as control knows, but not yet enrolled at its agent: the story does that.
    #[must_use]
    pub fn late(mut self) -> Self {
        self.is_late = true;
        self
    }

    /// Enrolled, but control does not know it until [`App::published`].
    #[must_use]
    pub fn unpublished(mut self) -> Self {
        self.is_published = false;
        self
    }

    /// With the addresses of a pod that has gone.
    #[must_use]
    pub fn at_address_of(mut self, gone: &App) -> Self {
        self.addresses = Some(gone.pod.addresses);
        self
    }

    /// Makes the pod on a node and, unless told otherwise, enrols it.
    ///
    /// # Panics
    /// When there is no such node, or its agent refuses.
    pub fn on(self, node: &str) -> App {
        let world = Arc::clone(self.world);
        world.add(self, node)
    }
}
