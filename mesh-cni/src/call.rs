//! What the runtime says in the environment.

use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// A pod's network is being set up.
    Add,
    /// It is taken down; may be asked again and again.
    Delete,
    /// Is all as it was made?
    Check,
    /// Which versions are known?
    Version,
    /// Can pods be set up?
    Status,
    /// Forget all pods but these.
    CollectGarbage,
}

impl Verb {
    const ALL: [Self; 6] = [Self::Add, Self::Delete, Self::Check, Self::Version, Self::Status, Self::CollectGarbage];

    /// As the specification spells it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Delete => "DEL",
            Self::Check => "CHECK",
            Self::Version => "VERSION",
            Self::Status => "STATUS",
            Self::CollectGarbage => "GC",
        }
    }
}

/// A pod, from CNI_ARGS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; empty from a runtime that does not say it.
    pub uid: String,
}

/// The environment of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What is asked.
    pub verb: Verb,
    /// The sandbox; empty where the verb is about none.
    pub container_id: String,
    /// File of the pod's network namespace; none once it is gone.
    pub network_namespace: Option<PathBuf>,
    /// Whose sandbox it is; none where the verb is about none, or the runtime does not say so.
    pub pod: Option<PodName>,
}

impl Call {
    /// Reads the variables through `get`.
    ///
    /// # Errors
    /// One that the verb needs is missing or malformed.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let verb = read_verb(get("CNI_COMMAND").as_deref().unwrap_or_default())?;
        let is_of_a_pod = matches!(verb, Verb::Add | Verb::Delete | Verb::Check);
        let needs_namespace = matches!(verb, Verb::Add | Verb::Check);
        let given = |name: &'static str| get(name).filter(|value| !value.is_empty());
        let needed = |name: &'static str, is_needed: bool| match given(name) {
            None if is_needed => Err(Failure::Environment { name, reason: "is not set".into() }),
            value => Ok(value.unwrap_or_default()),
        };
        let container_id = needed("CNI_CONTAINERID", is_of_a_pod)?;
        needed("CNI_IFNAME", is_of_a_pod)?;
        let network_namespace = needed("CNI_NETNS", needs_namespace)?;
        let pod = if is_of_a_pod { read_pod(&given("CNI_ARGS").unwrap_or_default()) } else { None };
        if needs_namespace && pod.is_none() {
            let reason = "has no K8S_POD_NAMESPACE and K8S_POD_NAME: the plug-in is for Kubernetes".into();
            return Err(Failure::Environment { name: "CNI_ARGS", reason });
        }
        let network_namespace = Some(network_namespace).filter(|path| !path.is_empty()).map(PathBuf::from);
        Ok(Self { verb, container_id, network_namespace, pod })
    }

    /// The path of the namespace as every mount of the node has it, `/var/run` being a link on most; none once it is gone.
    pub fn plain_network_namespace(&self) -> Option<PathBuf> {
        let path = self.network_namespace.as_deref()?;
        // Not the file itself: below /proc it is a link that leads to no path.
        let directory = path.parent().and_then(|parent| parent.canonicalize().ok())?;
        let plain = directory.join(path.file_name()?);
        exists(&plain).then_some(plain)
    }
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn read_verb(text: &str) -> Result<Verb, Failure> {
    Verb::ALL.into_iter().find(|verb| verb.text() == text).ok_or_else(|| {
        let all = Verb::ALL.map(Verb::text).join(", ");
        Failure::Environment { name: "CNI_COMMAND", reason: format!("{text:?} is none of {all}") }
    })
}

/// Arguments are `NAME=VALUE`, with semicolons between them.
fn read_pod(arguments: &str) -> Option<PodName> {
    let value = |wanted: &str| {
        let pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned()).next_back().unwrap_or_default()
    };
    let pod = PodName { namespace: value("K8S_POD_NAMESPACE"), name: value("K8S_POD_NAME"), uid: value("K8S_POD_UID") };
    (!pod.namespace.is_empty() && !pod.name.is_empty()).then_some(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARGUMENTS: &str =
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1";

    fn read(variables: &[(&str, &str)]) -> Result<Call, String> {
        let get =
            |name: &str| variables.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Call::read(get).map_err(|failure| format!("{} {failure}", failure.code()))
    }

    fn full(command: &str) -> Vec<(&str, &str)> {
        vec![
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/var/run/netns/cni-1"),
            ("CNI_ARGS", ARGUMENTS),
        ]
    }

    #[test]
    fn a_call_about_a_pod_names_it() {
        let pod = PodName { namespace: "shop".into(), name: "web-1".into(), uid: "u1".into() };
        for (command, verb) in [("ADD", Verb::Add), ("CHECK", Verb::Check), ("DEL", Verb::Delete)] {
            let expected = Call {
                verb,
                container_id: "c1".into(),
                network_namespace: Some("/var/run/netns/cni-1".into()),
                pod: Some(pod.clone()),
            };
            assert_eq!(read(&full(command)), Ok(expected), "{command}");
        }
    }

    #[test]
    fn what_a_verb_needs_must_be_there() {
        let without = |command: &str, name: &str| {
            let variables: Vec<_> = full(command).into_iter().filter(|(known, _)| *known != name).collect();
            read(&variables).map(|call| call.network_namespace.is_some())
        };
        let cases = [
            ("ADD", "CNI_CONTAINERID", Some("4 CNI_CONTAINERID: is not set")),
            ("ADD", "CNI_IFNAME", Some("4 CNI_IFNAME: is not set")),
            ("ADD", "CNI_NETNS", Some("4 CNI_NETNS: is not set")),
            (
                "ADD",
                "CNI_ARGS",
                Some("4 CNI_ARGS: has no K8S_POD_NAMESPACE and K8S_POD_NAME: the plug-in is for Kubernetes"),
            ),
            ("CHECK", "CNI_NETNS", Some("4 CNI_NETNS: is not set")),
            ("DEL", "CNI_CONTAINERID", Some("4 CNI_CONTAINERID: is not set")),
            ("DEL", "CNI_NETNS", None),
            ("DEL", "CNI_ARGS", None),
        ];
        for (command, name, expected) in cases {
            assert_eq!(without(command, name).err().as_deref(), expected, "{command} without {name}");
        }
        for command in ["VERSION", "STATUS", "GC"] {
            assert!(read(&[("CNI_COMMAND", command)]).is_ok(), "{command}");
        }
    }

    #[test]
    fn a_verb_that_is_none_is_named() {
        for command in ["", "add", "UPDATE"] {
            let error = read(&[("CNI_COMMAND", command)]).unwrap_err();
            assert!(
                error.starts_with(&format!(
                    "4 CNI_COMMAND: {command:?} is none of ADD, DEL, CHECK, VERSION, STATUS, GC"
                )),
                "{error}"
            );
        }
        assert!(read(&[]).is_err());
    }

    #[test]
    fn arguments_may_be_odd() {
        let cases = [
            ("", None),
            ("K8S_POD_NAMESPACE=a", None),
            ("K8S_POD_NAMESPACE=;K8S_POD_NAME=b", None),
            ("K8S_POD_NAME=b;K8S_POD_NAMESPACE=a", Some(("a", "b", ""))),
            (";;x;K8S_POD_NAME=b=c;K8S_POD_NAMESPACE=a;", Some(("a", "b=c", ""))),
            ("K8S_POD_NAME=b;K8S_POD_NAMESPACE=a;K8S_POD_NAME=c", Some(("a", "c", ""))),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(namespace, name, uid): (&str, &str, &str)| PodName {
                namespace: namespace.into(),
                name: name.into(),
                uid: uid.into(),
            });
            assert_eq!(read_pod(text), expected, "{text}");
        }
    }

    #[test]
    fn a_namespace_is_named_without_links() {
        let call = |path: &str| Call {
            verb: Verb::Add,
            container_id: String::new(),
            network_namespace: Some(path.into()),
            pod: None,
        };
        let own = format!("/proc/{}/ns/net", std::process::id());
        assert_eq!(call(&own).plain_network_namespace(), Some(own.clone().into()));
        assert_eq!(call("/proc/self/ns/net").plain_network_namespace(), Some(own.into()));
        assert_eq!(call("/var/run/netns/of-nobody").plain_network_namespace(), None);
        assert_eq!(call("/").plain_network_namespace(), None);
    }
}
