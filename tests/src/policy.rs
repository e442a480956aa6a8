//! AuthorizationPolicies as stories write them. What this cannot say is said in YAML with [`Mesh::apply`].

use crate::{app::App, mesh::Mesh};

/// A policy that is about to be applied; in namespace `default`.
#[must_use]
pub struct Policy<'a> {
    mesh: &'a Mesh,
    name: String,
    labels: Vec<(String, String)>,
}

/// The identity of one ServiceAccount, as policies write it: `cluster.local/ns/NAMESPACE/sa/ACCOUNT`.
pub fn identity(path: &str) -> String {
    format!("source: {{principals: [\"cluster.local/{path}\"]}}")
}

impl<'a> Policy<'a> {
    pub(crate) fn new(mesh: &'a Mesh, name: &str) -> Self {
        Self { mesh, name: name.to_owned(), labels: Vec::new() }
    }

    /// For this app's labels; for the whole namespace otherwise.
    pub fn on(mut self, app: &App) -> Self {
        self.labels = app.labels().to_vec();
        self
    }

    /// Allows what comes from `source`: see [`identity`].
    pub fn allow(self, source: String) {
        self.apply("ALLOW", &format!("  rules:\n    - from:\n        - {source}\n"));
    }

    /// Denies what comes from `source`.
    pub fn deny(self, source: String) {
        self.apply("DENY", &format!("  rules:\n    - from:\n        - {source}\n"));
    }

    /// Allows nothing: an ALLOW policy without rules.
    pub fn allow_nothing(self) {
        self.apply("ALLOW", "");
    }

    /// A policy with these rules, indented by two.
    pub fn apply(self, action: &str, rules: &str) {
        let mut selector = String::new();
        if !self.labels.is_empty() {
            let labels: Vec<_> = self.labels.iter().map(|(key, value)| format!("{key}: \"{value}\"")).collect();
            selector = format!("  selector:\n    matchLabels: {{{}}}\n", labels.join(", "));
        }
        let manifest = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  namespace: default\n  \
             name: {}\nspec:\n  action: {action}\n{selector}{rules}",
            self.name
        );
        self.mesh.apply(&format!("policy-{}.yaml", self.name), &manifest);
        self.mesh.expect_policy(&format!("default/{}", self.name));
    }
}
