//! The kinds that are watched, and how each is found at an API server: Kubernetes' own are always there, the others come
//! with a CustomResourceDefinition that may be missing, or serve another version than the newest.

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
};
use serde_json::Value;

/// A kind to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// API group, empty for the core.
    pub group: &'static str,
    /// Versions that are read, the best first.
    pub versions: &'static [&'static str],
    /// Kind as it is written.
    pub name: &'static str,
    /// Its name in paths.
    pub plural: &'static str,
    /// Comes with a CustomResourceDefinition.
    pub is_custom: bool,
}

const ISTIO_SECURITY: &[&str] = &["v1", "v1beta1"];
const ISTIO_NETWORKING: &[&str] = &["v1", "v1beta1", "v1alpha3"];

/// All of them.
pub const KINDS: [Kind; 11] = [
    built_in("", "Namespace", "namespaces"),
    built_in("", "Node", "nodes"),
    built_in("", "Pod", "pods"),
    built_in("", "Service", "services"),
    built_in("discovery.k8s.io", "EndpointSlice", "endpointslices"),
    built_in("networking.k8s.io", "ServiceCIDR", "servicecidrs"),
    custom("security.istio.io", ISTIO_SECURITY, "AuthorizationPolicy", "authorizationpolicies"),
    custom("security.istio.io", ISTIO_SECURITY, "PeerAuthentication", "peerauthentications"),
    custom("networking.istio.io", ISTIO_NETWORKING, "WorkloadEntry", "workloadentries"),
    custom("networking.istio.io", ISTIO_NETWORKING, "ServiceEntry", "serviceentries"),
    custom("mesh.dev", &["v1alpha1"], "MeshConfig", "meshconfigs"),
];

const fn built_in(group: &'static str, name: &'static str, plural: &'static str) -> Kind {
    Kind { group, versions: &["v1"], name, plural, is_custom: false }
}

const fn custom(
    group: &'static str,
    versions: &'static [&'static str],
    name: &'static str,
    plural: &'static str,
) -> Kind {
    Kind { group, versions, name, plural, is_custom: true }
}

/// A kind as this API server has it.
#[derive(Clone, Debug)]
pub struct Served {
    /// What to ask for.
    pub resource: ApiResource,
    /// `status.conditions` is a list by type, of which each writer owns its own entries.
    pub has_shared_conditions: bool,
}

impl Kind {
    /// How the API server has it; `None` when it does not.
    ///
    /// # Errors
    /// The API server did not say.
    pub async fn served(&self, client: &Client) -> Result<Option<Served>, kube::Error> {
        if !self.is_custom {
            return Ok(Some(self.in_version(self.versions[0], false)));
        }
        let definitions: Api<DynamicObject> = Api::all_with(client.clone(), &definition());
        let found = definitions.get_opt(&format!("{}.{}", self.plural, self.group)).await?;
        Ok(found.and_then(|found| self.of_definition(&found.data)))
    }

    /// The best version that a definition serves.
    fn of_definition(&self, definition: &Value) -> Option<Served> {
        let versions = definition["spec"]["versions"].as_array()?;
        let served = |name: &&&str| {
            versions.iter().find(|version| version["name"] == **name && version["served"] == Value::Bool(true))
        };
        let name = self.versions.iter().find(|name| served(name).is_some())?;
        let schema = &served(&name)?["schema"]["openAPIV3Schema"];
        let conditions = &schema["properties"]["status"]["properties"]["conditions"];
        Some(self.in_version(name, conditions["x-kubernetes-list-type"] == "map"))
    }

    fn in_version(&self, version: &str, has_shared_conditions: bool) -> Served {
        let api_version = if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) };
        let resource = ApiResource {
            group: self.group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: self.name.to_owned(),
            plural: self.plural.to_owned(),
        };
        Served { resource, has_shared_conditions }
    }
}

fn definition() -> ApiResource {
    ApiResource {
        group: "apiextensions.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "apiextensions.k8s.io/v1".to_owned(),
        kind: "CustomResourceDefinition".to_owned(),
        plural: "customresourcedefinitions".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_best_version_that_is_served_is_asked_for() {
        let entries = KINDS.iter().find(|kind| kind.name == "ServiceEntry").expect("there");
        let version = |name: &str, served: bool| json!({"name": name, "served": served});
        let of = |versions: &[Value]| {
            entries.of_definition(&json!({"spec": {"versions": versions}})).map(|served| served.resource.api_version)
        };
        assert_eq!(of(&[version("v1alpha3", true), version("v1", true)]).as_deref(), Some("networking.istio.io/v1"));
        let old = of(&[version("v1", false), version("v1beta1", true)]);
        assert_eq!(old.as_deref(), Some("networking.istio.io/v1beta1"));
        assert_eq!(of(&[version("v2", true)]), None);
    }
}
