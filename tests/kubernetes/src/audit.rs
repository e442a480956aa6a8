//! What the mesh's ServiceAccounts may do, and what they have done: by the roles, and by the API server's own account of who
//! asked for what.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use super::{Cluster, MESH, state};

/// A right, or the use of one: group, resource with its part, verb.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// API group; empty for the core.
    pub group: String,
    /// Plural, and the part behind a slash.
    pub resource: String,
    /// As RBAC names it.
    pub verb: String,
}

/// One request.
#[derive(Debug)]
pub struct Request {
    /// What it was for.
    pub grant: Grant,
    /// What the API server answered.
    pub code: u64,
}

impl Cluster {
    /// All that an account of the mesh is granted.
    pub fn granted(&self, account: &str) -> BTreeSet<Grant> {
        let roles = [self.json(&["get", "clusterrole", account]), self.json(&["-n", MESH, "get", "role", account])];
        let rules = roles.iter().flat_map(|role| role["rules"].as_array().into_iter().flatten());
        rules.flat_map(expanded).collect()
    }

    /// All that it has asked for since the API server started; none where its log is somebody's.
    pub fn requests(&self, account: &str) -> Option<Vec<Request>> {
        let text = self.is_ours.then(|| fs::read_to_string(state().join("log/audit.log")).expect("an audit log"))?;
        let user = format!("system:serviceaccount:{MESH}:{account}");
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let own = events.filter(|event| event["user"]["username"] == user.as_str());
        Some(own.filter_map(|event| read(&event)).collect())
    }
}

fn expanded(rule: &Value) -> Vec<Grant> {
    let texts = |name: &str| -> Vec<String> {
        rule[name].as_array().into_iter().flatten().filter_map(|text| Some(text.as_str()?.to_owned())).collect()
    };
    let mut all = Vec::new();
    for group in texts("apiGroups") {
        for resource in texts("resources") {
            for verb in texts("verbs") {
                all.push(Grant { group: group.clone(), resource: resource.clone(), verb });
            }
        }
    }
    all
}

fn read(event: &Value) -> Option<Request> {
    let object = &event["objectRef"];
    let part = object["subresource"].as_str().map(|part| format!("/{part}")).unwrap_or_default();
    let grant = Grant {
        group: object["apiGroup"].as_str().unwrap_or_default().to_owned(),
        resource: object["resource"].as_str()?.to_owned() + &part,
        verb: event["verb"].as_str()?.to_owned(),
    };
    Some(Request { grant, code: event["responseStatus"]["code"].as_u64()? })
}
