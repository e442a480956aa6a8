//! What an earlier run was told and wrote down, taken up by a new one.

use std::time::{Instant, SystemTime};

use mesh_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_CONFIG_NAME, MESH_CONFIG_TYPE,
    proto::{
        discovery::{DeltaDiscoveryResponse, Resource},
        mesh::MeshConfig,
        security::{Action, Authorization, Scope},
        wellknown::Any,
    },
};
use prost::Message;

use super::exchange::State;
use crate::{
    cache::{CacheError, Contents, Owner},
    view::{PolicyName, fixtures},
};

fn answer(type_url: &str, resources: Vec<(String, Vec<u8>)>) -> DeltaDiscoveryResponse {
    let resource = |(name, value)| {
        let resource = Some(Any { type_url: type_url.into(), value });
        Resource { name, version: "7".into(), resource }
    };
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        resources: resources.into_iter().map(resource).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// One workload, one policy for all namespaces that nobody can read, the mesh's settings.
fn told() -> State {
    let mut state = State::new();
    let (name, web) = fixtures::named_workload(fixtures::pod("web", &["10.0.0.1"]));
    let unreadable = Authorization { scope: Scope::Global as i32, ..fixtures::policy("bad", Action::Deny, Vec::new()) };
    let unreadable = Authorization { action: 99, ..unreadable };
    let (policy, unreadable) = fixtures::named_policy(unreadable);
    let settings = MeshConfig {
        trust_domain: "cluster.local".into(),
        node_port_first: 30000,
        node_port_last: 32767,
        trust_bundle: vec!["a root".into()],
        ..MeshConfig::default()
    };
    let settings = vec![(MESH_CONFIG_NAME.to_owned(), settings.encode_to_vec())];
    assert_eq!(state.receive(answer(MESH_CONFIG_TYPE, settings)).unwrap().error_detail, None);
    let policies = answer(AUTHORIZATION_TYPE, vec![(policy, unreadable.encode_to_vec())]);
    assert!(state.receive(policies).unwrap().error_detail.is_some());
    assert_eq!(state.receive(answer(ADDRESS_TYPE, vec![(name, web.encode_to_vec())])).unwrap().error_detail, None);
    state
}

fn contents(state: &State) -> Contents {
    let owner = Owner { node: "node-a".into(), control: "https://10.0.0.1:15012".into() };
    state.resources().lock().unwrap().contents(&owner, SystemTime::UNIX_EPOCH)
}

#[test]
fn a_new_run_knows_denies_and_asks_for_what_the_old_one_would() {
    let mut old = told();
    let mut new = State::new();
    new.restore(&contents(&old)).unwrap();
    assert_eq!(contents(&new), contents(&old), "and writes the same again");

    let (was, is) = (old.publish().0, new.publish().0);
    assert!(is.workload_at("10.0.0.1".parse().unwrap()).is_some());
    assert_eq!(is.mesh, was.mesh);
    let bad = PolicyName { namespace: "default".into(), name: "bad".into() };
    assert_eq!(is.policy(&bad), was.policy(&bad));
    assert_eq!(is.policies_over("anywhere").count(), 1, "what was refused denies still");
    assert_eq!(*new.trust_bundle(), ["a root"]);

    let versions = |state: &mut State| -> Vec<Vec<(String, String)>> {
        let requests = state.open(Instant::now()).into_iter().map(|request| request.initial_resource_versions);
        requests.map(|versions| versions.into_iter().collect()).collect()
    };
    let mut expected = versions(&mut old);
    // Without a version: control sends it again, or says that it is gone.
    expected[1].push(("default/bad".into(), String::new()));
    assert_eq!(versions(&mut new), expected);
    assert!(new.types().iter().all(|status| status.is_complete));
}

#[test]
fn nothing_counts_of_what_this_version_would_not_take() {
    let mut contents = contents(&told());
    contents.kinds.iter_mut().find(|kind| kind.type_url == ADDRESS_TYPE).unwrap().held[0].value = vec![0xff];
    let mut state = State::new();
    let before = state.resources();
    assert!(matches!(state.restore(&contents), Err(CacheError::Resource { .. })));
    assert_eq!(before.lock().unwrap().changes(), 0);
    assert!(state.trust_bundle().is_empty());
    assert!(state.publish().0.workloads().next().is_none());
    assert!(state.types().iter().all(|status| !status.is_complete && status.resources == 0));
}
