//! One object of an API server to what is kept of it.

use std::sync::Arc;

use kube::api::DynamicObject;
use serde_json::{Map, Value};

use super::{
    kinds::Served,
    store::{Handle, Seen},
};
use crate::{
    objects::{self, Object},
    source::{json, refused},
};

/// What kubectl keeps of its own; as large as the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Reads an object.
pub fn object(served: &Served, mut object: DynamicObject) -> Seen {
    object.metadata.managed_fields = None;
    if let Some(annotations) = &mut object.metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    let handle = handle(served, &object);
    let tree = json::tree(whole(served, object));
    let is_policy = objects::POLICIES.contains(&served.resource.kind.as_str());
    match objects::parse_served(&tree) {
        Ok((object, unknown)) => {
            // Only policies carry a word of ours while they are good.
            Seen { handle: is_policy.then_some(handle), object: Some(object), problems: Vec::new(), unknown }
        }
        Err(problems) => {
            let object = refused::of_document(&tree).map(|refused| Object::Refused(Arc::new(refused)));
            Seen { object, problems, unknown: Vec::new(), handle: Some(handle) }
        }
    }
}

/// The object with its kind: items of a list come without.
fn whole(served: &Served, object: DynamicObject) -> Value {
    let mut whole = match object.data {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    whole.insert("apiVersion".to_owned(), served.resource.api_version.clone().into());
    whole.insert("kind".to_owned(), served.resource.kind.clone().into());
    // ObjectMeta has no map with keys that are not text, so it always can be written.
    whole.insert("metadata".to_owned(), serde_json::to_value(object.metadata).unwrap_or_default());
    Value::Object(whole)
}

fn handle(served: &Served, object: &DynamicObject) -> Box<Handle> {
    let metadata = &object.metadata;
    Box::new(Handle {
        api_version: served.resource.api_version.clone(),
        uid: metadata.uid.clone().unwrap_or_default(),
        resource_version: metadata.resource_version.clone().unwrap_or_default(),
        generation: metadata.generation.unwrap_or_default(),
        conditions: object.data["status"]["conditions"].as_array().cloned().unwrap_or_default(),
        has_shared_conditions: served.has_shared_conditions,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kubernetes::kinds::{KINDS, Kind};

    fn kind(name: &str) -> &'static Kind {
        KINDS.iter().find(|kind| kind.name == name).expect("a kind that is watched")
    }

    fn seen(name: &str, body: Value) -> Seen {
        let api_version = [kind(name).group, kind(name).versions[0]].join("/");
        let resource = kube::api::ApiResource {
            group: kind(name).group.into(),
            version: kind(name).versions[0].into(),
            api_version: api_version.trim_start_matches('/').into(),
            kind: name.into(),
            plural: kind(name).plural.into(),
        };
        object(&Served { resource, has_shared_conditions: false }, serde_json::from_value(body).expect("an object"))
    }

    #[test]
    fn a_field_of_a_newer_kubernetes_is_told_and_takes_no_pod_out_of_the_mesh() {
        let pod = seen(
            "Pod",
            json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": {"fromTheFuture": 1, "nodeName": "n1"}}),
        );
        assert!(matches!(&pod.object, Some(Object::Pod(pod)) if pod.node == "n1"), "{pod:?}");
        assert_eq!((pod.problems.len(), pod.unknown[0].field.as_str()), (0, "spec.fromTheFuture"));
        assert!(pod.handle.is_none(), "nobody writes to a pod");
    }

    #[test]
    fn what_is_wrong_with_a_known_field_refuses_the_object_all_the_same() {
        let service = seen(
            "Service",
            json!({"metadata": {"name": "a", "namespace": "shop", "uid": "u"}, "spec": {"type": "ExternalName", "externalName": "b.example"}}),
        );
        assert!(service.object.is_none());
        assert!(service.problems[0].to_string().starts_with("spec.type: ExternalName needs DNS"), "{service:?}");
        assert_eq!(service.handle.expect("its author is told").uid, "u");
    }

    #[test]
    fn an_unknown_field_of_a_policy_refuses_it_and_what_it_selects_is_denied() {
        let policy = seen(
            "AuthorizationPolicy",
            json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": {"selector": {"matchLabels": {"app": "web"}}, "rule": []}}),
        );
        let Some(Object::Refused(refused)) = &policy.object else { panic!("{policy:?}") };
        assert_eq!(refused.selector["app"], "web");
        assert_eq!(policy.problems[0].to_string(), "spec.rule: unknown field");
    }
}
