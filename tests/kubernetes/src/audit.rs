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

    /// How much the API server has told of who asked for what; none where its log is somebody's.
    pub fn told(&self) -> Option<usize> {
        self.is_ours.then(|| log().lines().count())
    }

    /// All that an account has asked for after the API server had told so much.
    pub fn requests(&self, account: &str, told: usize) -> Vec<Request> {
        let user = format!("system:serviceaccount:{MESH}:{account}");
        let text = log();
        let events = text.lines().skip(told).filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["user"]["username"] == user.as_str()).flat_map(|event| read(&event)).collect()
    }
}

fn log() -> String {
    fs::read_to_string(state().join("log/audit.log")).expect("an audit log")
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

/// An apply that makes its object uses two rights, of which the log names one.
fn read(event: &Value) -> Vec<Request> {
    let object = &event["objectRef"];
    let part = object["subresource"].as_str().map(|part| format!("/{part}")).unwrap_or_default();
    let (Some(resource), Some(verb)) = (object["resource"].as_str(), event["verb"].as_str()) else { return Vec::new() };
    let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
    let grant = Grant {
        group: object["apiGroup"].as_str().unwrap_or_default().to_owned(),
        resource: resource.to_owned() + &part,
        verb: verb.to_owned(),
    };
    let made = (verb == "patch" && code == 201).then(|| Grant { verb: "create".to_owned(), ..grant.clone() });
    [grant].into_iter().chain(made).map(|grant| Request { grant, code }).collect()
}
