//! Mistakes in manifests, each with how it is to be reported.

/// What is wrong with one manifest, and how it is to be reported.
pub struct Mistake {
    pub text: &'static str,
    pub line: u32,
    pub field: &'static str,
    pub reason: &'static str,
}

const fn mistake(text: &'static str, line: u32, field: &'static str, reason: &'static str) -> Mistake {
    Mistake { text, line, field, reason }
}

pub const MISTAKES: [Mistake; 34] = [
    mistake("a: [1\nb: 2\n", 2, "", "illegal placement of ':'"),
    mistake("kind: Pod\n\tname: x\n", 1, "", "found a tab"),
    mistake("apiVersion: v1\nkind: Pod\nkind: Node\n", 3, "", "duplicate"),
    mistake("- a\n- b\n", 1, "", "expected a mapping, found a list"),
    mistake("kind: Pod\nmetadata: {name: a}\n", 1, "apiVersion", "is required"),
    mistake(
        "apiVersion: v2\nkind: Pod\nmetadata: {name: a}\n",
        1,
        "apiVersion",
        "version \"v2\" of Pod is not read; write v1",
    ),
    mistake("apiVersion: v1\nkind: Pod\nspec: {}\n", 1, "metadata", "is required"),
    mistake("apiVersion: v1\nkind: Pod\nmetadata: {name: A_b}\n", 3, "metadata.name", "is not a name"),
    mistake(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: a.b}\n",
        3,
        "metadata.namespace",
        "is not a name",
    ),
    mistake(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: {version: 2}\n",
        5,
        "metadata.labels.version",
        "expected text, found a whole number",
    ),
    mistake(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  nodename: n\n",
        5,
        "spec.nodename",
        "unknown field",
    ),
    mistake(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus:\n  podIPs:\n  - ip: 10.0.0.256\n",
        6,
        "status.podIPs[0].ip",
        "is not an IP address",
    ),
    mistake(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - ports:\n    - containerPort: 70000\n",
        7,
        "spec.containers[0].ports[0].containerPort",
        "70000 is not within 1-65535",
    ),
    mistake("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n", 1, "spec", "is required"),
    mistake(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  type: ExternalName\n  externalName: b.example\n",
        5,
        "spec.type",
        "needs DNS",
    ),
    mistake(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - port: 80\n  - port: 80\n",
        7,
        "spec.ports[1].port",
        "port 80 is there twice",
    ),
    mistake(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  sessionAffinity: Client\n",
        5,
        "spec.sessionAffinity",
        "is not one of None, ClientIP",
    ),
    mistake(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  loadBalancerSourceRanges: [10.0.0.0/8]\n",
        5,
        "spec.loadBalancerSourceRanges",
        "is not supported: restrict callers",
    ),
    mistake(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  externalTrafficPolicy: Remote\n",
        5,
        "spec.externalTrafficPolicy",
        "is not one of Cluster, Local",
    ),
    mistake(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: FQDN\n",
        4,
        "addressType",
        "is not supported",
    ),
    mistake(
        "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec:\n  podCIDR: 10.0.0.0\n",
        5,
        "spec.podCIDR",
        "is not a range like 10.0.0.0/16",
    ),
    mistake(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  action: AUDIT\n",
        5,
        "spec.action",
        "AUDIT is not supported",
    ),
    mistake(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  action: DENY\n",
        5,
        "spec.rules",
        "denies nothing",
    ),
    mistake(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  rules:\n  - from:\n    - source:\n        ipBlocks: [10.0.0.0/33]\n",
        8,
        "spec.rules[0].from[0].source.ipBlocks[0]",
        "neither an address nor a range",
    ),
    mistake(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  rules:\n  - when:\n    - key: request.headers[x]\n      values: [a]\n",
        7,
        "spec.rules[0].when[0].key",
        "speaks of HTTP requests",
    ),
    mistake(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec:\n  mtls: {mode: DISABLE}\n",
        5,
        "spec.mtls.mode",
        "DISABLE is not supported",
    ),
    mistake(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec:\n  portLevelMtls:\n    80: {mode: STRICT}\n",
        5,
        "spec.portLevelMtls",
        "needs a selector",
    ),
    mistake(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: a}\n",
        2,
        "kind",
        "is not supported",
    ),
    mistake(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a}\nspec:\n  address: vm.example\n",
        5,
        "spec.address",
        "a host name needs DNS",
    ),
    mistake(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec:\n  hosts: [a.example]\n  addresses: [10.9.9.9]\n  resolution: DNS\n",
        7,
        "spec.resolution",
        "DNS needs DNS",
    ),
    mistake(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec:\n  hosts: [a.example]\n  resolution: STATIC\n",
        5,
        "spec.addresses",
        "is required: an address for the name needs DNS",
    ),
    mistake(
        "apiVersion: mesh.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec:\n  sameNode: sometimes\n",
        5,
        "spec.sameNode",
        "is not one of direct, encrypt",
    ),
    mistake(
        "apiVersion: mesh.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec:\n  nodePortRange: 32767-30000\n",
        5,
        "spec.nodePortRange",
        "is not a range like 30000-32767",
    ),
    mistake(
        "apiVersion: security.istio.oi/v1\nkind: PeerAuthentication\nmetadata: {name: a}\n",
        2,
        "kind",
        "is not known; write security.istio.io/v1",
    ),
];
