//! The pods that are there while things break: who calls, who answers, and who must never be reached.

use std::net::SocketAddr;

use crate::{App, Mesh, Setup, identity, new_app::NewApp, protocol::Behaviour};

/// What a download carries.
pub const DOWNLOAD: u64 = 4_000_000;
/// What an upload carries.
pub const UPLOAD: u64 = 1_000_000;
/// Ports of the shop: echo, download, upload, servers that name themselves; and the service's.
pub const ECHO: u16 = 80;
pub const SOURCE: u16 = 81;
pub const SINK: u16 = 82;
pub const NAME: u16 = 83;
const SERVICE: u16 = 8000;
/// Pods and ends of connections that an agent's maps have room for.
pub const PODS: u16 = 8;
pub const FLOWS: usize = 512;

/// A mesh of two nodes under STRICT, with the pods that the load needs.
pub struct Stage {
    /// Calls everybody; node-a.
    pub web: App,
    /// Beside web; node-a.
    pub near: App,
    /// Across the link; node-b.
    pub far: App,
    /// Lets in nobody of these; beside web, and across the link.
    pub closed: [App; 2],
    /// Where policies come and go; beside web, and across the link.
    pub moody: [App; 2],
    /// Not in the mesh; on node-a, and on node-b.
    pub plain: [App; 2],
    /// IPv4 address of the service over near and far.
    pub service: SocketAddr,
    /// Dropped last.
    pub mesh: Mesh,
}

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  namespace: default\n  \
                      name: strict\nspec:\n  mtls: {mode: STRICT}\n";

impl Stage {
    /// Makes all of it and waits until it works.
    pub fn set() -> Self {
        // What an agent carries that another has taken over from may go on for as long as it is used.
        let mut agent_arguments = ["--drain-time", "1h"].map(str::to_owned).to_vec();
        agent_arguments.extend([format!("--max-pods={PODS}"), format!("--max-flows={FLOWS}")]);
        let mesh = Mesh::with(Setup { agent_arguments, ..Setup::default() });
        mesh.apply("strict.yaml", STRICT);
        let shop = |name: &str, node: &str| {
            let app = mesh.app(name).labelled("part-of", "shop").on(node);
            let app = app.echoing_on(ECHO).serving(SOURCE, Behaviour::Source(DOWNLOAD));
            app.serving(SINK, Behaviour::Sink).serving(NAME, Behaviour::Name)
        };
        let pair = |name: &str| ["a", "b"].map(|end| mesh.app(&format!("{name}-{end}")));
        let [closed, moody, plain] = [pair("closed"), pair("moody"), pair("plain")];
        let on_both = |[a, b]: [NewApp<'_>; 2]| [a.on("node-a"), b.on("node-b")].map(|app| app.echoing_on(ECHO));
        let stage = Self {
            web: mesh.app("web").on("node-a"),
            near: shop("near", "node-a"),
            far: shop("far", "node-b"),
            closed: on_both(closed.map(|app| app.labelled("door", "closed"))),
            moody: on_both(moody),
            plain: on_both(plain.map(NewApp::not_enrolled)),
            service: mesh.service("shop").port(SERVICE, ECHO).selecting("part-of", "shop").at(SERVICE),
            mesh,
        };
        for closed in &stage.closed {
            stage.mesh.policy(closed.name()).on(closed).allow(identity("ns/default/sa/nobody"));
        }
        stage.mesh.settle();
        stage
    }
}
