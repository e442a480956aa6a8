//! Settings of enrolment on Kubernetes, checked as a whole: each needs `--kubernetes`, and the plug-in's need both
//! directories of the node.

use std::path::{Path, PathBuf};

use super::{KubernetesArguments, is_label, is_subdomain};

/// Pods of these start while no agent answers, if nothing else is said.
const EXCLUDED: &str = "kube-system";
/// Name of the plug-in's program, in the image and on the node.
pub const PLUGIN: &str = "mesh-cni";

/// How the agent enrols by what an API server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesSettings {
    /// Credentials of an agent that is no pod of the cluster.
    pub kubeconfig: Option<PathBuf>,
    /// Namespace and name of the agent's own DaemonSet.
    pub daemon_set: Option<(String, String)>,
    /// The plug-in on the node; none: pods are enrolled once the API server tells of them.
    pub cni: Option<CniSettings>,
}

/// Where the plug-in is installed, and what it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniSettings {
    /// Whether it is to be there.
    pub is_wanted: bool,
    /// Of the node's CNI configurations.
    pub conf_dir: PathBuf,
    /// Of the node's CNI programs.
    pub bin_dir: PathBuf,
    /// The program to install.
    pub plugin: PathBuf,
    /// Namespaces whose pods start while no agent answers.
    pub excluded: Vec<String>,
}

/// Checks them; none without `--kubernetes`.
pub(super) fn check(given: &KubernetesArguments, note: &mut impl FnMut(&str, String)) -> Option<KubernetesSettings> {
    if !given.kubernetes {
        for (name, _) in given_names(given).iter().filter(|(_, is_given)| *is_given) {
            note(name, "is for --kubernetes".into());
        }
        return None;
    }
    let daemon_set = given.daemon_set.as_deref().and_then(|text| match read_name(text) {
        Some(name) => Some(name),
        None => {
            note("daemon-set", format!("{text:?} is not of the form NAMESPACE/NAME"));
            None
        }
    });
    let cni = check_cni(given, daemon_set.as_ref().map(|(namespace, _)| namespace.as_str()), note);
    Some(KubernetesSettings { kubeconfig: given.kubeconfig.clone(), daemon_set, cni })
}

fn given_names(given: &KubernetesArguments) -> [(&'static str, bool); 7] {
    [
        ("kubeconfig", given.kubeconfig.is_some()),
        ("daemon-set", given.daemon_set.is_some()),
        ("cni-conf-dir", given.cni_conf_dir.is_some()),
        ("cni-bin-dir", given.cni_bin_dir.is_some()),
        ("cni-remove", given.cni_remove),
        ("cni-plugin", given.cni_plugin.is_some()),
        ("cni-exclude-namespaces", !given.cni_exclude_namespaces.is_empty()),
    ]
}

fn read_name(text: &str) -> Option<(String, String)> {
    let (namespace, name) = text.split_once('/')?;
    (is_label(namespace) && is_subdomain(name)).then(|| (namespace.to_owned(), name.to_owned()))
}

fn check_cni(
    given: &KubernetesArguments,
    own_namespace: Option<&str>,
    note: &mut impl FnMut(&str, String),
) -> Option<CniSettings> {
    let (conf_dir, bin_dir) = match (&given.cni_conf_dir, &given.cni_bin_dir) {
        (Some(conf_dir), Some(bin_dir)) => (conf_dir, bin_dir),
        (None, None) => {
            for (name, _) in given_names(given)[4..].iter().filter(|(_, is_given)| *is_given) {
                note(name, "needs --cni-conf-dir and --cni-bin-dir".into());
            }
            return None;
        }
        (Some(_), None) => {
            note("cni-bin-dir", "is needed beside --cni-conf-dir".into());
            return None;
        }
        (None, Some(_)) => {
            note("cni-conf-dir", "is needed beside --cni-bin-dir".into());
            return None;
        }
    };
    for (name, path) in [("cni-conf-dir", conf_dir), ("cni-bin-dir", bin_dir)] {
        if !path.is_absolute() {
            note(name, format!("{} is not an absolute path", path.display()));
        }
    }
    let plugin = given.cni_plugin.clone().or_else(beside_own_program);
    if given.cni_remove {
        for (name, _) in given_names(given)[5..].iter().filter(|(_, is_given)| *is_given) {
            note(name, "means nothing with --cni-remove".into());
        }
    } else if plugin.as_deref().is_none_or(|plugin| !plugin.is_file()) {
        note("cni-plugin", format!("there is no program at {}", shown(plugin.as_deref())));
    }
    for namespace in given.cni_exclude_namespaces.iter().filter(|namespace| !is_label(namespace)) {
        note("cni-exclude-namespaces", format!("{namespace:?} is not the name of a namespace"));
    }
    Some(CniSettings {
        is_wanted: !given.cni_remove,
        conf_dir: conf_dir.clone(),
        bin_dir: bin_dir.clone(),
        plugin: plugin.unwrap_or_default(),
        excluded: excluded(&given.cni_exclude_namespaces, own_namespace),
    })
}

fn shown(plugin: Option<&Path>) -> String {
    plugin.map_or_else(|| PLUGIN.to_owned(), |plugin| plugin.display().to_string())
}

fn beside_own_program() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.join(PLUGIN))
}

/// The agent's own pods must never wait for an agent.
fn excluded(given: &[String], own_namespace: Option<&str>) -> Vec<String> {
    let mut all: Vec<String> = match given {
        [] => vec![EXCLUDED.to_owned()],
        given => given.to_vec(),
    };
    all.extend(own_namespace.map(str::to_owned));
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// The arguments by themselves.
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        kubernetes: KubernetesArguments,
    }

    fn checked(line: &[&str]) -> (Option<KubernetesSettings>, Vec<String>) {
        let line = ["mesh-agent"].iter().chain(line);
        let mut mistakes = Vec::new();
        let given = Line::try_parse_from(line).unwrap().kubernetes;
        let settings = check(&given, &mut |name, reason| mistakes.push(format!("--{name}: {reason}")));
        (settings, mistakes)
    }

    #[test]
    fn without_kubernetes_none_of_them_means_anything() {
        assert_eq!(checked(&[]), (None, Vec::new()));
        let all = ["--kubeconfig=/k", "--daemon-set=a/b", "--cni-conf-dir=/c", "--cni-bin-dir=/b", "--cni-plugin=/p"];
        let (settings, mistakes) = checked(&all);
        assert_eq!((settings, mistakes.len()), (None, all.len()));
    }

    #[test]
    fn the_plug_in_has_defaults() {
        let program = std::env::current_exe().unwrap();
        let plugin = format!("--cni-plugin={}", program.display());
        let line = ["--kubernetes", "--daemon-set=mesh-system/mesh-agent", "--cni-conf-dir=/c", "--cni-bin-dir=/b"];
        let (settings, mistakes) = checked(&[&line[..], &[plugin.as_str()]].concat());
        assert_eq!(mistakes, Vec::<String>::new());
        let settings = settings.unwrap();
        assert_eq!(settings.daemon_set, Some(("mesh-system".to_owned(), "mesh-agent".to_owned())));
        assert_eq!(settings.cni.unwrap().excluded, ["kube-system", "mesh-system"]);
        let (settings, _) =
            checked(&[&line[..], &[plugin.as_str(), "--cni-exclude-namespaces=b,a,mesh-system"]].concat());
        assert_eq!(settings.unwrap().cni.unwrap().excluded, ["a", "b", "mesh-system"]);
    }

    #[test]
    fn what_is_missing_or_malformed_is_named() {
        let cases: [(&[&str], &str); 9] = [
            (&["--daemon-set=mesh-agent"], "--daemon-set: \"mesh-agent\" is not of the form NAMESPACE/NAME"),
            (&["--daemon-set=Mesh/agent"], "--daemon-set: \"Mesh/agent\" is not of the form NAMESPACE/NAME"),
            (&["--cni-conf-dir=/c"], "--cni-bin-dir: is needed beside --cni-conf-dir"),
            (&["--cni-bin-dir=/b"], "--cni-conf-dir: is needed beside --cni-bin-dir"),
            (&["--cni-exclude-namespaces=a"], "--cni-exclude-namespaces: needs --cni-conf-dir and --cni-bin-dir"),
            (&["--cni-remove"], "--cni-remove: needs --cni-conf-dir and --cni-bin-dir"),
            (
                &["--cni-conf-dir=/c", "--cni-bin-dir=/b", "--cni-remove", "--cni-exclude-namespaces=a"],
                "--cni-exclude-namespaces: means nothing with --cni-remove",
            ),
            (&["--cni-plugin=/p"], "--cni-plugin: needs --cni-conf-dir and --cni-bin-dir"),
            (&["--cni-conf-dir=/c", "--cni-bin-dir=/b", "--cni-plugin=/p"], "--cni-plugin: there is no program at /p"),
        ];
        for (line, expected) in cases {
            let (_, mistakes) = checked(&[&["--kubernetes"], line].concat());
            assert_eq!(mistakes, [expected], "{line:?}");
        }
    }
}
