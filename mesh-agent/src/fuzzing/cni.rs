//! The configurations of a node's network, which others write.

use serde_json::json;

use crate::cni::List;

/// The text of a file in the directory of CNI configurations. Good when the plug-in can go into it.
pub fn cni_list(text: &[u8]) -> bool {
    let Some(list) = std::str::from_utf8(text).ok().and_then(|text| List::read(text).ok()) else { return false };
    let entry = json!({"type": "mesh-cni", "socket": "/run/mesh/admin.sock", "excludeNamespaces": []});
    let with = list.with(&entry);
    assert!(with.holds(&entry), "{with:?}");
    let read = List::read(&with.text()).expect("what was written can be read");
    assert_eq!(read, with);
    assert_eq!(with.without(), list.without());
    assert!(!list.without().holds_any());
    true
}
