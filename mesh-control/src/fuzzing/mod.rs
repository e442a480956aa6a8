//! What the fuzz targets of `fuzz/` call: each parser of the control daemon that meets bytes from outside, given any bytes.
//! Each asserts what has to hold whatever the bytes are, and answers whether they were good to the end. Only calls; in no release.

use std::sync::OnceLock;

use mesh_api::proto::discovery::DeltaDiscoveryRequest;
use prost::Message;

use crate::{
    ca::{
        identity::Identity,
        request::{RequestError, public_key, public_key_of_der},
    },
    compile::{Foundation, Resources, compile},
    objects::Objects,
    publish::{
        Snapshot,
        session::Session,
        snapshot::{Kind, Version},
    },
    source::folder,
    xds::named_node,
};

#[cfg(test)]
mod seeds;
#[cfg(test)]
mod tests;

/// A target: whether the bytes were good to the end.
pub type Target = fn(&[u8]) -> bool;

/// All targets, by the name that `cargo xtask fuzz` knows.
pub const TARGETS: [(&str, Target); 4] = [
    ("certificate_request", certificate_request),
    ("discovery_requests", discovery_requests),
    ("identity", identity),
    ("manifest", manifest),
];

const WEB: &str = "spiffe://cluster.local/ns/default/sa/web";
/// Line breaks as YAML has them.
const BREAKS: [char; 5] = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'];

/// A SPIFFE name, read by this daemon and by the agents. Good when both take it.
pub fn identity(text: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(text) else { return false };
    let (ours, theirs) = (Identity::parse(text), mesh_api::Identity::parse(text));
    if let Ok(theirs) = &theirs {
        assert_eq!(theirs.to_string(), text);
        let parts = (theirs.trust_domain(), theirs.namespace(), theirs.service_account());
        assert_eq!(mesh_api::Identity::new(parts.0, parts.1, parts.2).as_ref(), Ok(theirs));
    }
    if let Some(ours) = &ours {
        assert_eq!(ours.to_string(), text);
        let theirs = theirs.as_ref().expect("what is signed here can be read by an agent");
        assert_eq!((theirs.namespace(), theirs.service_account()), (&*ours.account.namespace, &*ours.account.name));
    }
    ours.is_some()
}

/// A certificate request for `default/web`, PEM or the DER inside. Good when it would be signed.
pub fn certificate_request(bytes: &[u8]) -> bool {
    let key_for = |identity: &Identity| match str::from_utf8(bytes) {
        Ok(text) if text.contains("-----BEGIN") => public_key(text, identity),
        _ => public_key_of_der(bytes, identity),
    };
    let (web, db) = (Identity::parse(WEB), Identity::parse("spiffe://cluster.local/ns/default/sa/db"));
    let (web, db) = (web.expect("a good name"), db.expect("a good name"));
    let for_web = key_for(&web);
    if for_web.is_ok() {
        assert_eq!(key_for(&db).err(), Some(RequestError::Name), "one request for two identities");
    }
    for_web.is_ok()
}

/// Requests of an agent, each behind its length, while the state changes under it. Good when all could be read and none
/// ended the stream.
pub fn discovery_requests(mut bytes: &[u8]) -> bool {
    static STATES: OnceLock<[Snapshot; 2]> = OnceLock::new();
    let states = STATES.get_or_init(states);
    let mut session = Session::new("node-a");
    let mut is_good = !bytes.is_empty();
    let mut last_nonce = 0_u64;
    for state in states.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let Ok(request) = DeltaDiscoveryRequest::decode_length_delimited(&mut bytes) else { return false };
        is_good &= request.node.as_ref().and_then(named_node).is_none_or(|node| node == "node-a");
        for version in request.initial_resource_versions.values().filter_map(|text| Version::parse(text)) {
            assert_eq!(Version::parse(&version.to_string()), Some(version));
        }
        let Ok((mut responses, _)) = session.request(request, state) else { return false };
        responses.extend(session.advance(state));
        for response in responses {
            let nonce = response.nonce.parse().expect("nonces are numbers");
            assert!(nonce > last_nonce, "a nonce is used twice");
            last_nonce = nonce;
            let kind = Kind::of_url(&response.type_url);
            assert!(kind.is_some() || response.resources.is_empty(), "resources of a type that is not known");
            let is_told = |name: &String| response.resources.iter().any(|resource| resource.name == *name);
            assert!(!response.removed_resources.iter().any(is_told), "told and withdrawn at once");
        }
        assert!(session.told() <= state.generation.max(2));
    }
    is_good
}

/// A state with an object of every kind, and the one before it without any.
fn states() -> [Snapshot; 2] {
    let empty = Snapshot::default().next(&Resources::default()).expect("the first state");
    let (objects, problems) = folder::read(include_str!("../source/tests/everything.yaml"));
    assert_eq!(problems, []);
    let full = empty.next(&compiled(objects)).expect("another state");
    [empty, full]
}

/// A file of manifests. Good when nothing is wrong with it.
pub fn manifest(text: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(text) else { return false };
    let (objects, problems) = folder::read(text);
    let lines = text.matches(BREAKS).count() + 1;
    for problem in &problems {
        // At the end of the text a parser stands in the line behind the last one.
        assert!((1..=lines + 1).contains(&(problem.at.line as usize)), "{problem} is not in {lines} lines");
        assert!(!problem.reason.is_empty() && !problem.reason.contains('\n'), "{problem:?}");
    }
    let is_good = problems.is_empty();
    let resources = compiled(objects);
    Snapshot::default().next(&resources).expect("the first state");
    is_good
}

/// What an agent of `node-a` is told of a file, as `mesh_agent::fuzzing::resources` reads it; nothing if it is no text.
pub fn answers(text: &[u8]) -> Vec<u8> {
    let Ok(text) = str::from_utf8(text) else { return Vec::new() };
    let (objects, _) = folder::read(text);
    let state = Snapshot::default().next(&compiled(objects)).expect("the first state");
    let mut session = Session::new("node-a");
    let ask = |kind: Kind| {
        let request = DeltaDiscoveryRequest { type_url: kind.url().to_owned(), ..DeltaDiscoveryRequest::default() };
        session.request(request, &state).expect("few are asked for").0
    };
    Kind::ALL.into_iter().flat_map(ask).flat_map(|answer| answer.encode_length_delimited_to_vec()).collect()
}

fn compiled(all: Vec<crate::objects::Object>) -> Resources {
    let mut objects = Objects::default();
    all.into_iter().for_each(|object| objects.insert(object));
    compile(&objects, &Foundation { trust_domain: "cluster.local".to_owned(), trust_bundle: Vec::new() })
}
