//! Services as stories write them: dual stack, by selector.

use std::net::SocketAddr;

use crate::{addresses::Pair, mesh::Mesh};

/// A service of a mesh; in namespace `default`.
pub struct Service<'a> {
    mesh: &'a Mesh,
    name: String,
    addresses: Pair,
    ports: Vec<(u16, String)>,
    extra: String,
}

impl<'a> Service<'a> {
    pub(crate) fn new(mesh: &'a Mesh, name: &str, addresses: Pair) -> Self {
        Self { mesh, name: name.to_owned(), addresses, ports: Vec::new(), extra: String::new() }
    }

    /// With a port that leads to a port of the pods, by number or name.
    #[must_use]
    pub fn port(mut self, port: u16, target: impl ToString) -> Self {
        self.ports.push((port, target.to_string()));
        self
    }

    /// With further lines of its spec, indented by two.
    #[must_use]
    pub fn with(mut self, lines: &str) -> Self {
        self.extra += lines;
        self
    }

    /// Applies it, for pods with this label.
    #[must_use]
    pub fn selecting(self, key: &str, value: &str) -> Self {
        let Self { name, addresses: Pair { v4, v6 }, extra, .. } = &self;
        let ports: String = self
            .ports
            .iter()
            .map(|(port, target)| format!("    - {{name: port-{port}, port: {port}, targetPort: {target}}}\n"))
            .collect();
        let manifest = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: default\n  name: {name}\nspec:\n  \
             clusterIP: \"{v4}\"\n  clusterIPs: [\"{v4}\", \"{v6}\"]\n  ipFamilies: [IPv4, IPv6]\n  \
             ipFamilyPolicy: RequireDualStack\n  selector: {{{key}: \"{value}\"}}\n  ports:\n{ports}{extra}"
        );
        self.mesh.apply(&format!("service-{name}.yaml"), &manifest);
        self.mesh.expect_service(format!("{name}.default.svc.cluster.local"));
        self
    }

    /// A port at its IPv4 address.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.addresses.v4, port).into()
    }

    /// A port at its IPv6 address.
    pub fn at_v6(&self, port: u16) -> SocketAddr {
        (self.addresses.v6, port).into()
    }
}
