//! The fixed answers. In no order, so that meshctl's own order shows.

use mesh_api::proto::admin::{
    CertificateRow, CheckRow, ExplainResponse, ExplainStep, Pod, PolicyRow, ResourceTypeStatus, ServiceRow, SocketRow,
    StatusResponse, WorkloadRow,
};
use tonic::Status;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";
const CRON: &str = "spiffe://cluster.local/ns/jobs/sa/cron";
const CIPHER: &str = "TLS13_AES_128_GCM_SHA256";

fn texts(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

pub fn pods() -> Vec<Pod> {
    let web = Pod {
        uid: "3f1c".into(),
        namespace: "shop".into(),
        name: "web-0".into(),
        service_account: "web".into(),
        addresses: texts(&["10.1.0.2", "fd00:1::2"]),
        network_namespace: "/run/netns/web-0".into(),
        network_namespace_cookie: 4711,
        cgroup_path: "/sys/fs/cgroup/kubepods/pod3f1c".into(),
        probe_ports: vec![8080],
        state: "ready".into(),
        fail_open: false,
    };
    let cron = Pod {
        uid: "77aa".into(),
        namespace: "jobs".into(),
        name: "cron-0".into(),
        service_account: "cron".into(),
        addresses: texts(&["10.1.0.3"]),
        network_namespace: "/run/netns/cron-0".into(),
        network_namespace_cookie: 4712,
        cgroup_path: "/sys/fs/cgroup/kubepods/pod77aa".into(),
        probe_ports: vec![],
        state: "pending".into(),
        fail_open: false,
    };
    vec![web, cron]
}

pub fn workloads() -> Vec<WorkloadRow> {
    let row = |namespace: &str, name: &str, address: &str, node: &str, state: &str| WorkloadRow {
        uid: format!("cluster//Pod/{namespace}/{name}"),
        namespace: namespace.into(),
        name: name.into(),
        addresses: texts(&[address]),
        node: node.into(),
        identity: format!("spiffe://cluster.local/ns/{namespace}/sa/{}", name.trim_end_matches("-0")),
        protocol: "HBONE".into(),
        state: state.into(),
        healthy: true,
        services: vec![],
        policies: vec![],
    };
    vec![
        WorkloadRow {
            services: texts(&["shop/db.shop.svc.cluster.local"]),
            policies: texts(&["shop/only-web"]),
            ..row("shop", "db-0", "10.2.0.2", "node-b", "remote")
        },
        row("shop", "web-0", "10.1.0.2", "node-a", "enrolled"),
        WorkloadRow {
            protocol: "TCP".into(),
            identity: String::new(),
            healthy: false,
            ..row("legacy", "ftp", "192.0.2.7", "", "not enrolled")
        },
    ]
}

pub fn services() -> Vec<ServiceRow> {
    vec![
        ServiceRow {
            namespace: "shop".into(),
            hostname: "db.shop.svc.cluster.local".into(),
            addresses: texts(&["10.96.0.20"]),
            ports: texts(&["5432->5432"]),
            endpoints: texts(&["10.2.0.2", "10.1.0.9"]),
        },
        ServiceRow {
            namespace: "jobs".into(),
            hostname: "queue.jobs.svc.cluster.local".into(),
            addresses: vec![],
            ports: texts(&["6379->6379"]),
            endpoints: vec![],
        },
    ]
}

pub fn policies() -> Vec<PolicyRow> {
    vec![
        PolicyRow {
            namespace: "shop".into(),
            name: "only-web".into(),
            scope: "workload selector".into(),
            action: "ALLOW".into(),
            dry_run: false,
            rules: 1,
            workloads: texts(&["shop/db-0"]),
        },
        PolicyRow {
            namespace: "istio-system".into(),
            name: "no-legacy".into(),
            scope: "mesh".into(),
            action: "DENY".into(),
            dry_run: true,
            rules: 2,
            workloads: texts(&["shop/web-0", "jobs/cron-0"]),
        },
    ]
}

pub fn sockets() -> Vec<SocketRow> {
    let web = SocketRow {
        pod: "shop/web-0".into(),
        process: "nginx[812]".into(),
        direction: "outbound".into(),
        source: "10.1.0.2:41000".into(),
        source_identity: WEB.into(),
        connection_security_policy: "none".into(),
        rtt_us: 180,
        age_ms: 65_000,
        ..SocketRow::default()
    };
    let encrypted = SocketRow {
        cookie: 1001,
        path: "hbone".into(),
        original_destination: "10.96.0.20:5432".into(),
        service: "shop/db.shop.svc.cluster.local".into(),
        endpoint: "10.2.0.2:5432".into(),
        destination_identity: DB.into(),
        cipher: CIPHER.into(),
        policy: "shop/only-web".into(),
        bytes_sent: 2_048,
        bytes_received: 104_857_600,
        retransmits: 3,
        connection_security_policy: "mutual_tls".into(),
        ..web.clone()
    };
    let passthrough = SocketRow {
        cookie: 1002,
        path: "passthrough".into(),
        original_destination: "198.51.100.9:443".into(),
        endpoint: "198.51.100.9:443".into(),
        reason: "outside the mesh's address ranges".into(),
        bytes_sent: 517,
        bytes_received: 3_100,
        ..web.clone()
    };
    let local = SocketRow {
        cookie: 1003,
        path: "node_local".into(),
        original_destination: "10.1.0.9:5432".into(),
        endpoint: "10.1.0.9:5432".into(),
        destination_identity: DB.into(),
        policy: "shop/only-web".into(),
        bytes_sent: 99,
        connection_security_policy: "node_local".into(),
        ..web.clone()
    };
    let denied = SocketRow {
        cookie: 1004,
        pod: "shop/web-0".into(),
        direction: "inbound".into(),
        path: "denied".into(),
        source: "10.2.0.8:50112".into(),
        original_destination: "10.1.0.2:8080".into(),
        source_identity: CRON.into(),
        destination_identity: WEB.into(),
        cipher: CIPHER.into(),
        policy: "shop/no-jobs".into(),
        reason: "denied by a DENY rule".into(),
        age_ms: 400,
        connection_security_policy: "mutual_tls".into(),
        ..SocketRow::default()
    };
    vec![denied, passthrough, encrypted, local]
}

pub fn certificates() -> Vec<CertificateRow> {
    vec![
        CertificateRow {
            identity: WEB.into(),
            kind: "workload".into(),
            state: "valid".into(),
            serial: "5d03f2".into(),
            not_before: 1_795_445_043,
            not_after: 1_795_531_503,
            error: String::new(),
            renews_at: 1_795_488_300,
        },
        CertificateRow {
            identity: CRON.into(),
            kind: "workload".into(),
            state: "missing".into(),
            error: "control: cron-0 does not run on node-a".into(),
            ..CertificateRow::default()
        },
        CertificateRow {
            identity: "cluster.local".into(),
            kind: "root".into(),
            state: "valid".into(),
            serial: "01".into(),
            not_before: 1_795_000_000,
            not_after: 2_110_360_000,
            error: String::new(),
            renews_at: 0,
        },
    ]
}

pub fn explained(source: &str) -> Result<ExplainResponse, Status> {
    let step = |stage: &str, text: &str| ExplainStep { stage: stage.into(), text: text.into() };
    let denied = match source {
        "shop/web-0" => false,
        "jobs/cron-0" => true,
        unknown => return Err(Status::not_found(format!("source: no workload is known as {unknown}"))),
    };
    Ok(ExplainResponse {
        steps: vec![
            step("origin", &format!("{source} is enrolled on this node")),
            step("resolve", "shop/db.shop.svc.cluster.local port 5432: 10.2.0.2:5432 on node-b, HBONE"),
            step(
                "authorize",
                if denied { "no rule of an ALLOW policy matches" } else { "shop/only-web, rule 1 matches" },
            ),
        ],
        verdict: if denied { "denied" } else { "allowed" }.into(),
        policy: "shop/only-web".into(),
        reason: if denied { "no ALLOW policy admits the caller" } else { "allowed by a rule" }.into(),
        path: if denied { "denied" } else { "hbone" }.into(),
    })
}

pub fn checks() -> Vec<CheckRow> {
    let row = |name: &str, result: &str, text: &str, remedy: &str| CheckRow {
        name: name.into(),
        result: result.into(),
        text: text.into(),
        remedy: remedy.into(),
    };
    vec![
        row("kernel_version", "ok", "6.12", ""),
        row(
            "other_programs",
            "warning",
            "other programs on our hooks: connect4: 1",
            "see that they leave destinations of enrolled pods alone",
        ),
        row("control", "failed", "10.0.0.1:15012 refuses connections", "start mesh-control; its log says why it ended"),
    ]
}

pub fn status() -> StatusResponse {
    let row = |type_url: &str, resources: u32, nack: &str| ResourceTypeStatus {
        type_url: type_url.into(),
        resources,
        nonce: "n7".into(),
        synced: true,
        nack: nack.into(),
        hash: format!("{resources:032x}"),
    };
    StatusResponse {
        node: "node-a".into(),
        version: "0.1.0".into(),
        state: "ready".into(),
        control: "connected".into(),
        control_address: "10.0.0.1:15012".into(),
        last_error: String::new(),
        view_age_ms: 12_000,
        resource_types: vec![
            row("type.googleapis.com/istio.workload.Address", 5, ""),
            row("type.googleapis.com/istio.security.Authorization", 2, "shop/bad: no action"),
        ],
        pods: 2,
        workers: 2,
        trust_bundle_hash: "9f86d081".into(),
        uptime_ms: 93_784_000,
        control_away_since: 0,
        view_cached_at: 0,
        cache_error: String::new(),
        certificates: 2,
        certificates_from_disk: 1,
    }
}
