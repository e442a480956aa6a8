//! What a mesh could leave behind, as text that two moments are compared by.

use super::Cluster;

/// On a node: pins, programs on cgroups and on pods' network namespaces, CNI, tables of nftables. The mesh's programs are
/// not asked for by their names: whatever is there that was not there is left behind.
const OF_NODE: &str = r#"
echo "pins:"; find /sys/fs/bpf -mindepth 1 | sort
echo "cgroups:"; for root in $(awk '$3 == "cgroup2" { print $2 }' /proc/mounts | sort -u); do bpftool cgroup show "$root"; done
echo "namespaces:"; for file in /run/netns/*; do
  [ -e "$file" ] || continue
  bpftool link show | grep -c "netns_ino $(stat -Lc %i "$file") " | grep -vx 0 | sed "s|^|$file |"
done
echo "cni:"; ls /etc/cni/net.d /opt/cni/bin; cat /etc/cni/net.d/*
echo "tables:"; nft list tables | sort
echo "keys:"; find /run/mesh/keys -type f 2>/dev/null
true
"#;

impl Cluster {
    /// All of it, of the cluster and of every node.
    pub fn traces(&self) -> String {
        let list = |kind: &str, fields: &str| self.kubectl(&["get", kind, "-o", &format!("jsonpath={fields}")]);
        let names = "{range .items[*]}{.metadata.name}{\"\\n\"}{end}";
        let marks = "{range .items[*]}{.metadata.name} {.metadata.annotations} {.metadata.labels}{\"\\n\"}{end}";
        let mut text = String::new();
        let kinds = ["crds", "clusterroles", "clusterrolebindings", "priorityclasses"];
        let lists = kinds.map(|kind| (kind, names)).into_iter().chain([("namespaces", marks), ("nodes", marks)]);
        for (kind, fields) in lists {
            text += &format!("{kind}:\n{}\n", list(kind, fields));
        }
        for node in self.nodes() {
            text += &format!("node {node}:\n{}\n", self.on_node(&node, OF_NODE).unwrap_or_default());
        }
        text
    }
}
