//! What is made from the Helm chart: deploy/manifests, for those without Helm, and what each set of values changes in them, as
//! a test keeps it. Needs helm, which `cargo xtask cluster up` builds.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{cluster, shell, workspace};

const CHART: &str = "deploy/helm";
/// Nothing depends on it; helm has an old one in mind when it has no cluster.
const KUBERNETES: &str = "--kube-version=1.34.0";
/// All but the definitions.
const MANIFESTS: &str = "deploy/manifests/mesh.yaml";
/// The definitions: file, and the setting that asks for it.
const DEFINITIONS: [(&str, &str); 2] =
    [("deploy/manifests/crds/mesh.yaml", "crds.mesh"), ("deploy/manifests/crds/istio.yaml", "crds.istio")];
const HEAD: &str = "# Written by `cargo xtask render` from deploy/helm.\n";
/// Neither kind of definition.
const WITHOUT_DEFINITIONS: &str = "crds.mesh=false,crds.istio=false";

/// Sets of values, each with the name of the file that says what it changes.
pub const VALUE_SETS: [(&str, &[&str]); 12] = [
    ("image", &["--set=image.repository=registry.example/mesh,image.tag=1.2.3,image.pullSecrets[0].name=registry"]),
    (
        "digest",
        &[concat!(
            "--set=image.pullPolicy=Always,image.digest=sha256:",
            "0123456789abcdef0123456789abcdef",
            "0123456789abcdef0123456789abcdef"
        )],
    ),
    ("namespace", &["--namespace=mesh-prod"]),
    ("ipv6", &["--set=listenAddress=::"]),
    (
        "logs",
        &[
            "--set=logFormat=json,agent.accessLog=off,control.log=debug",
            "--set-string=agent.log=info\\,mesh_agent::path=debug",
        ],
    ),
    ("plugged-ca", &["--set=control.caSecret=my-ca,trustDomain=example.org,control.certificateLifetime=1h"]),
    (
        "k3s",
        &[
            "--set=cni.confDir=/var/lib/rancher/k3s/agent/etc/cni/net.d,cni.binDir=/var/lib/rancher/k3s/data/cni,cni.excludeNamespaces={kube-system,metallb-system}",
        ],
    ),
    ("without-cni", &["--set=cni.enabled=false"]),
    (
        "hardened",
        &[
            "--set=agent.seccompProfile.type=Localhost,agent.seccompProfile.localhostProfile=mesh-agent.json,agent.seLinuxOptions.type=spc_t",
        ],
    ),
    (
        "small",
        &[
            "--set=control.replicas=1,agent.workers=1,agent.drainSeconds=5,agent.directMaxAge=0s,agent.extraArgs={--max-pods=50}",
            "--set=agent.resources.limits.memory=512Mi",
        ],
    ),
    (
        "monitored",
        &[
            "--set=serviceMonitor.enabled=true,serviceMonitor.labels.release=prometheus,serviceMonitor.interval=10s",
            "--set=control.podAnnotations.example=yes,agent.podAnnotations.example=yes",
        ],
    ),
    (
        "guarded",
        &[
            "--set=networkPolicy.enabled=true,networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring",
        ],
    ),
];

/// Files with their texts, as they should be.
///
/// # Errors
/// There is no helm, or it refuses the chart.
pub fn files() -> Result<Vec<(String, String)>> {
    let manifests = template(&[&format!("--set={WITHOUT_DEFINITIONS}")])?;
    let mut files = vec![(MANIFESTS.to_owned(), HEAD.to_owned() + &with_rights_of_agents_last(&manifests))];
    for (file, setting) in DEFINITIONS {
        let only = format!("--set={WITHOUT_DEFINITIONS},{setting}=true");
        files.push((file.to_owned(), HEAD.to_owned() + &template(&[&only, "--show-only=templates/crds.yaml"])?));
    }
    for (name, arguments) in VALUE_SETS {
        let mut all = vec!["--set", WITHOUT_DEFINITIONS];
        all.extend(arguments);
        let text = format!("# helm template {}\n{}", arguments.join(" "), difference(&manifests, &template(&all)?)?);
        files.push((format!("tests/chart/{name}.diff"), text));
    }
    Ok(files)
}

/// kubectl deletes in the order of the file: an agent that is told to leave can still ask whether it is for good.
fn with_rights_of_agents_last(manifests: &str) -> String {
    let (rights, others): (Vec<&str>, Vec<&str>) = objects(manifests).partition(|object| is_right_of_agents(object));
    others.into_iter().chain(rights).map(|object| format!("---\n{object}")).collect()
}

/// Texts of all objects of a file.
fn objects(manifests: &str) -> impl Iterator<Item = &str> {
    manifests.split("---\n").skip(1)
}

/// The agents' account, a role of it, or the binding of one.
fn is_right_of_agents(object: &str) -> bool {
    let kinds = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
    let has = |wanted: &str| object.lines().any(|line| line == wanted);
    kinds.iter().any(|kind| has(&format!("kind: {kind}"))) && has("  name: mesh-agent")
}

/// What helm makes of the chart, without the names of its files.
///
/// # Errors
/// As [`files`].
pub fn template(arguments: &[&str]) -> Result<String> {
    let text = helm(&[&["template", "mesh", CHART, KUBERNETES], arguments].concat())?;
    Ok(text.lines().filter(|line| !line.starts_with("# Source: ")).map(|line| format!("{line}\n")).collect())
}

/// What helm prints.
///
/// # Errors
/// There is none, or it refuses; the error is its own.
pub fn helm(arguments: &[&str]) -> Result<String> {
    let program = cluster::program("helm")?;
    let output = Command::new(&program).current_dir(workspace::root()).args(arguments).output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "`helm {}`: {said}", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

/// Lines that are not the same, each with the two around it.
fn difference(before: &str, after: &str) -> Result<String> {
    let directory = std::env::temp_dir().join(format!("mesh-chart-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("before"), before)?;
    std::fs::write(directory.join("after"), after)?;
    let mut command = Command::new("diff");
    command.args(["-U2", "--label=default", "--label=these", "before", "after"]).current_dir(&directory);
    let output = command.output().with_context(|| shell::text(&command));
    std::fs::remove_dir_all(&directory)?;
    Ok(String::from_utf8(output?.stdout)?)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use serde_json::Value;

    use super::*;

    fn read(place: &str) -> String {
        fs::read_to_string(workspace::root().join(place)).unwrap()
    }

    #[test]
    #[ignore = "needs Helm: cargo xtask test --cluster"]
    fn manifests_and_what_values_change_in_them_are_as_they_were() {
        let stale: Vec<String> =
            files().unwrap().into_iter().filter(|(place, text)| read(place) != *text).map(|(place, _)| place).collect();
        assert!(stale.is_empty(), "look at what `cargo xtask render` changes in {stale:?}");
    }

    #[test]
    #[ignore = "needs Helm: cargo xtask test --cluster"]
    fn helm_finds_nothing_to_complain_of() {
        for (name, arguments) in VALUE_SETS.iter().chain(&[("default", [].as_slice())]) {
            let said = helm(&[&["lint", "--strict", CHART, KUBERNETES], *arguments].concat()).unwrap();
            assert!(said.contains("0 chart(s) failed"), "{name}: {said}");
        }
    }

    #[test]
    #[ignore = "needs Helm: cargo xtask test --cluster"]
    fn values_that_mean_nothing_are_refused_by_name() {
        let cases = [
            ("agent.drain=5", "drain"),
            ("replicas=3", "replicas"),
            ("control.replicas=0", "replicas"),
            ("control.replicas=two", "replicas"),
            ("agent.accessLog=yes", "accessLog"),
            ("agent.drainSeconds=5s", "drainSeconds"),
            ("agent.directMaxAge=60", "directMaxAge"),
            ("agent.workers=17", "workers"),
            ("agent.extraArgs={max-pods=5}", "extraArgs"),
            ("agent.resources.cpu=1", "cpu"),
            ("agent.seccompProfile.type=Localhost", "localhostProfile"),
            ("agent.seccompProfile.localhostProfile=x", "seccompProfile"),
            ("cni.confDir=etc/cni", "confDir"),
            ("cni.excludeNamespaces={Kube}", "excludeNamespaces"),
            ("control.certificateLifetime=1.5h", "certificateLifetime"),
            ("image.digest=latest", "digest"),
            ("image.pullPolicy=Sometimes", "pullPolicy"),
            ("trustDomain=A", "trustDomain"),
            ("listenAddress=127.0.0.1", "listenAddress"),
            ("crds.gateway=true", "gateway"),
            ("serviceMonitor.interval=often", "interval"),
        ];
        for (setting, name) in cases {
            let refused = template(&["--set", setting]).expect_err(setting).to_string();
            assert!(refused.contains("values don't meet the specifications") && refused.contains(name), "{refused}");
        }
    }

    #[test]
    #[ignore = "needs Helm: cargo xtask test --cluster"]
    fn no_namespace_at_all_is_no_list_of_excluded_ones() {
        let refused = template(&["--set-json", "cni.excludeNamespaces=[]"]).expect_err("an empty list").to_string();
        assert!(
            refused.contains("values don't meet the specifications") && refused.contains("excludeNamespaces"),
            "{refused}"
        );
    }

    #[test]
    fn agents_lose_their_rights_after_they_are_told_to_leave() {
        let text = read(MANIFESTS);
        let all: Vec<&str> = objects(&text).collect();
        let place =
            |is_wanted: &dyn Fn(&str) -> bool| all.iter().position(|object| is_wanted(object)).expect("it is there");
        let of_agents = place(&|object| object.contains("kind: DaemonSet\n"));
        assert!(place(&is_right_of_agents) > of_agents);
        assert_eq!(all.iter().filter(|object| is_right_of_agents(object)).count(), 5);
        // Without this kubectl sorts by kinds, DaemonSets last.
        assert!(read("deploy/manifests/kustomization.yaml").contains("\nsortOptions: {order: fifo}\n"));
    }

    /// Dotted names of all that values.yaml sets to something that is no map of its own.
    fn leaves(values: &str) -> BTreeSet<String> {
        let mut above: Vec<&str> = Vec::new();
        let mut all = BTreeSet::new();
        for line in values.lines().filter(|line| !line.trim_start().starts_with(['#', '-']) && !line.is_empty()) {
            let depth = (line.len() - line.trim_start().len()) / 2;
            let Some((name, _)) = line.trim_start().split_once(':') else { continue };
            above.truncate(depth);
            above.push(name);
            all.insert(above.join("."));
        }
        let parents: Vec<String> =
            all.iter().filter(|name| all.iter().any(|other| other.starts_with(&format!("{name}.")))).cloned().collect();
        all.retain(|name| !parents.contains(name));
        all
    }

    /// The part of the schema that is for one value; the whole for what takes any keys.
    fn is_in_schema(schema: &Value, name: &str) -> bool {
        let mut place = schema;
        for part in name.split('.') {
            if let Some(reference) = place["$ref"].as_str() {
                place = &schema["definitions"][reference.trim_start_matches("#/definitions/")];
            }
            if place["properties"].get(part).is_none() {
                return place["additionalProperties"].is_object();
            }
            place = &place["properties"][part];
        }
        true
    }

    #[test]
    fn every_value_is_in_the_table_and_in_the_schema() {
        let values = leaves(&read("deploy/helm/values.yaml"));
        assert!(values.len() > 40, "{values:?}");
        let schema: Value = serde_json::from_str(&read("deploy/helm/values.schema.json")).unwrap();
        let readme = read("deploy/helm/README.md");
        let listed: BTreeSet<String> =
            readme.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect();
        for name in &values {
            assert!(is_in_schema(&schema, name), "{name} is not in values.schema.json");
            // One row may be of a whole map.
            assert!(
                listed.iter().any(|row| name == row || name.starts_with(&format!("{row}."))),
                "{name} is not in deploy/helm/README.md"
            );
        }
        for row in &listed {
            assert!(values.iter().any(|name| name == row || name.starts_with(&format!("{row}."))), "{row} is no value");
        }
    }

    #[test]
    fn the_chart_grants_control_what_its_tests_run_with() {
        let rules = |text: &str| -> Vec<String> {
            let is_rule = |line: &&str| {
                line.starts_with("- {apiGroups") || line.starts_with("- apiGroups") || line.starts_with("  ")
            };
            let in_rules = text.split("\nrules:").skip(1).flat_map(|part| part.split("\n---").next());
            in_rules.flat_map(str::lines).filter(is_rule).map(str::to_owned).collect()
        };
        let tested = rules(&read("mesh-control/src/kubernetes/roles.yaml"));
        assert!(tested.len() > 15);
        assert_eq!(rules(&read("deploy/helm/templates/control-rbac.yaml")), tested);
    }

    #[test]
    fn the_versions_of_chart_and_programs_are_one() {
        let chart = read("deploy/helm/Chart.yaml");
        for line in [format!("version: {}", crate::dist::VERSION), format!("appVersion: {}", crate::dist::VERSION)] {
            assert!(chart.lines().any(|found| found == line), "{line}");
        }
        assert!(read("deploy/helm/values.yaml").contains(&format!("repository: {}\n", crate::dist::NAME)));
        let image = format!("image: {}:{}\n", crate::dist::NAME, crate::dist::VERSION);
        assert!(read("deploy/docs/detach.yaml").contains(&image), "{image}");
    }

    #[test]
    fn what_takes_the_mesh_off_a_node_finds_it_where_the_chart_puts_it() {
        let (detach, chart) = (read("deploy/docs/detach.yaml"), read(MANIFESTS));
        // The agent's default is the node's hierarchy; here it is only looked at.
        let has_place = |line: &&str| {
            let line = line.trim_start();
            (line.starts_with("- --") && !line.starts_with("- --cgroup-root=")) || line.starts_with("- {name: ")
        };
        let places: Vec<&str> = detach.lines().filter(has_place).map(str::trim).collect();
        assert_eq!(places.len(), 16, "{places:?}");
        for place in places {
            assert!(chart.lines().any(|line| line.trim() == place), "{place} is not in {MANIFESTS}");
        }
    }
}
