//! What one change costs where there are 2,000 services and 20,000 pods. No API server: the store is filled as watches
//! would. Figures are printed; `cargo test --release -p mesh-control --lib scale -- --ignored --nocapture`.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    compile::{Foundation, compile},
    kubernetes::{
        kinds::{KINDS, Kind, Served},
        read,
        store::{Seen, Store},
    },
    objects::metadata::Name,
    publish::Publisher,
};

const SERVICES: usize = 2_000;
const PODS_EACH: usize = 10;
const NODES: usize = 100;

fn kind(name: &str) -> &'static Kind {
    KINDS.iter().find(|kind| kind.name == name).expect("a kind that is watched")
}

fn seen(kind: &Kind, object: Value) -> Seen {
    let api_version = [kind.group, kind.versions[0]].join("/").trim_start_matches('/').to_owned();
    let resource = kube::api::ApiResource {
        group: kind.group.into(),
        version: kind.versions[0].into(),
        api_version,
        kind: kind.name.into(),
        plural: kind.plural.into(),
    };
    let served = Served { resource, has_shared_conditions: false };
    read::object(&served, serde_json::from_value(object).expect("an object"))
}

fn address(number: usize) -> String {
    format!("10.{}.{}.{}", 128 + number / 65_536, number / 256 % 256, number % 256)
}

fn pod(number: usize, is_ready: bool) -> Value {
    let (service, ip) = (number / PODS_EACH, address(number));
    json!({
        "metadata": {"namespace": "shop", "name": format!("pod-{number}"), "labels": {"app": format!("app-{service}")}},
        "spec": {"nodeName": format!("node-{}", number % NODES), "containers": [{"name": "a", "image": "a"}]},
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": if is_ready { "True" } else { "False" }}],
        },
    })
}

fn service(number: usize) -> Value {
    let cluster = format!("10.96.{}.{}", number / 256, number % 256);
    json!({
        "metadata": {"namespace": "shop", "name": format!("app-{number}")},
        "spec": {
            "selector": {"app": format!("app-{number}")},
            "clusterIP": cluster,
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        },
    })
}

fn slice(number: usize) -> Value {
    let pods = number * PODS_EACH..(number + 1) * PODS_EACH;
    let endpoint =
        |pod| json!({"addresses": [address(pod)], "targetRef": {"kind": "Pod", "name": format!("pod-{pod}")}});
    json!({
        "metadata": {
            "namespace": "shop",
            "name": format!("app-{number}-x"),
            "labels": {"kubernetes.io/service-name": format!("app-{number}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": pods.map(endpoint).collect::<Vec<_>>(),
    })
}

fn fill(store: &Store, name: &str, count: usize, object: impl Fn(usize) -> Value) {
    let kind = kind(name);
    let named = |number| {
        let object = object(number);
        (Name::new("shop", object["metadata"]["name"].as_str().expect("a name")), seen(kind, object))
    };
    store.replace(kind, (0..count).map(named).collect::<BTreeMap<_, _>>());
}

#[test]
#[ignore = "a measurement, of a release build"]
fn one_change_among_2000_services_and_20000_pods() {
    let begun = Instant::now();
    let store = Arc::new(Store::default());
    fill(&store, "Service", SERVICES, service);
    fill(&store, "EndpointSlice", SERVICES, slice);
    fill(&store, "Pod", SERVICES * PODS_EACH, |number| pod(number, true));
    println!("read all: {:?}", begun.elapsed());
    let foundation = Foundation { trust_domain: "cluster.local".into(), trust_bundle: Vec::new() };
    let publisher = Publisher::new();
    let (mut desired, mut compiled, mut published) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    const ROUNDS: u32 = 10;
    for round in 0..=ROUNDS {
        let number = usize::try_from(round).expect("small");
        store.put(kind("Pod"), Name::new("shop", format!("pod-{number}")), seen(kind("Pod"), pod(number, false)));
        let start = Instant::now();
        let state = store.desired();
        let then = Instant::now();
        let resources = compile(&state.objects, &foundation);
        let last = Instant::now();
        let generation = publisher.publish(&resources);
        assert_eq!(generation, u64::from(round) + 1, "one change is one state");
        if round > 0 {
            desired += then - start;
            compiled += last - then;
            published += last.elapsed();
        }
    }
    println!("collect {:?}, compile {:?}, publish {:?}", desired / ROUNDS, compiled / ROUNDS, published / ROUNDS);
    let memory = std::fs::read_to_string("/proc/self/status").expect("proc");
    println!("{}", memory.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default());
}
