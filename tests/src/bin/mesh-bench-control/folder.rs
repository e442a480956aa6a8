//! The manifests: services with ten pods each, all on nodes that only exist as names.

use std::net::Ipv4Addr;

use mesh_tests::control::Control;

/// Pods behind one service.
pub const REPLICAS: usize = 10;

/// Services that share a namespace.
const PER_NAMESPACE: usize = 40;

/// What the folder holds.
#[derive(Debug, Clone, Copy)]
pub struct Folder {
    pub services: usize,
    /// Over whose names the pods are spread.
    pub nodes: usize,
}

impl Folder {
    /// Writes all of it, at revision 0.
    pub fn fill(self, control: &Control) {
        let namespaces: String = (0..self.services.div_ceil(PER_NAMESPACE))
            .map(|number| {
                format!(
                    "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop-{number}\n  labels: \
                     {{istio.io/dataplane-mode: ambient}}\n"
                )
            })
            .collect();
        control.write("namespaces.yaml", &namespaces);
        for service in 0..self.services {
            self.write(control, service, 0);
        }
    }

    /// Writes a service and its pods; the first of these has this revision.
    pub fn write(self, control: &Control, service: usize, revision: usize) {
        let namespace = format!("shop-{}", service / PER_NAMESPACE);
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 100, 0, 1)) + service as u32);
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: app-{service}}}\nspec:\n  \
             clusterIP: {address}\n  selector: {{app: app-{service}}}\n  ports: [{{port: 80, targetPort: 8080}}]\n"
        );
        for replica in 0..REPLICAS {
            let number = service * REPLICAS + replica;
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 1)) + number as u32);
            let revision = if replica == 0 { revision } else { 0 };
            text += &format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata:\n  namespace: {namespace}\n  name: app-{service}-{replica}\n  \
                 uid: \"{number:032x}\"\n  labels: {{app: app-{service}, app.kubernetes.io/version: \"{revision}\"}}\nspec:\n  \
                 nodeName: {}\n  serviceAccountName: app-{service}\n  containers: [{{name: app, image: none}}]\nstatus:\n  \
                 phase: Running\n  podIP: {address}\n  podIPs: [{{ip: {address}}}]\n  conditions: [{{type: Ready, \
                 status: \"True\"}}]\n",
                name(number % self.nodes),
            );
        }
        control.write(&format!("app-{service}.yaml"), &text);
    }

    pub fn pods(self) -> usize {
        self.services * REPLICAS
    }
}

/// Of a simulated node.
pub fn name(number: usize) -> String {
    format!("simulated-{number}")
}
