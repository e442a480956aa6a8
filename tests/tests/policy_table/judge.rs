//! The judge itself: the agent's pure function, asked about the View that the running control daemon compiles from the
//! same manifests. It hears them over the wire as an agent does, and touches no connection.

use std::{net::IpAddr, thread::JoinHandle};

use mesh_agent::{
    control::{Client, ControlAddress, Published},
    path::{Decision, Source, judge},
    view::{Demand, SharedView},
};
use mesh_api::Identity;
use mesh_tests::{App, Mesh};
use tokio::sync::{oneshot, watch};

pub struct Judge {
    view: SharedView,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Judge {
    /// Begins to listen to control, beside the agent of `node`.
    pub fn of(mesh: &Mesh, node: &str) -> Self {
        let view = SharedView::default();
        let address = ControlAddress {
            uri: format!("https://{}", mesh.control().address()),
            name: "mesh-control".to_owned(),
            root: mesh.control().root(),
            token: mesh.control().token(node),
        };
        let published = Published { view: view.clone(), changes: watch::channel(0).0 };
        let client = Client::new(address, node, published, Demand::channel(1).1, watch::channel(None).0);
        let namespace = mesh.control().place().namespace.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let listen = async {
            tokio::select! {
                () = client.run() => (),
                _ = stopped => (),
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let thread = std::thread::spawn(move || namespace.inside(|| runtime.block_on(listen)));
        Self { view, stop: Some(stop), thread: Some(thread) }
    }

    /// Whether its View has this policy over this workload.
    pub fn knows(&self, app: &App, policy: &str) -> bool {
        let view = self.view.load_full();
        let workload = view.as_ref().and_then(|view| view.workload_at(app.v4().into()));
        workload.is_some_and(|workload| workload.policies.iter().any(|name| name.to_string() == policy))
    }

    /// What the function says of a connection from `address`, of a caller with this identity or none.
    pub fn judges(&self, identity: Option<&str>, address: IpAddr, to: &App, at: (IpAddr, u16)) -> Decision {
        let view = self.view.load_full().expect("control has told it");
        let destination = view.workload_at(to.v4().into()).expect("a workload of the mesh");
        let identity = identity.map(|uri| Identity::parse(uri).expect("a SPIFFE name"));
        judge(&view, &Source { identity, address }, destination, at.0, at.1)
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the judge's ear failed");
    }
}
