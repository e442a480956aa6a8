//! What a runtime says of a pod, and the file that remembers it.

use std::path::Path;

use mesh_api::{Identity, proto::admin::EnrolRequest};
use prost::Message;

use crate::enrol::{Claim, Record};

/// An encoded `EnrolRequest`. Good when nothing is wrong with it but perhaps its cgroup, which is a matter of the machine.
pub fn enrol_request(bytes: &[u8]) -> bool {
    let Ok(request) = EnrolRequest::decode(bytes) else { return false };
    let refused = Claim::read(&request, Path::new("/sys/fs/cgroup")).err();
    let is_good = refused.as_ref().is_none_or(|refused| refused.field == "cgroup_path");
    if is_good {
        let identity = Identity::new("cluster.local", &request.namespace, &request.service_account);
        assert!(identity.is_ok(), "{request:?} was taken and has no identity");
        assert!(request.probe_ports.iter().all(|port| (1..=65535).contains(port)), "{request:?}");
        assert!((1..=2).contains(&request.addresses.len()), "{request:?}");
    }
    is_good
}

/// The text of `pods.json`.
pub fn pods_file(text: &[u8]) -> bool {
    let Ok(record) = serde_json::from_slice::<Record>(text) else { return false };
    let written = serde_json::to_vec_pretty(&record).expect("a record can be written");
    let read: Record = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(read, record);
    true
}
