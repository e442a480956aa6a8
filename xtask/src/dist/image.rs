//! From files to an image: two layers (the base, which changes with Debian, and our own, which changes with us), in an archive
//! that is an OCI layout and what `docker load` reads at once.
//! Source: OCI image specification 1.1, image-layout.md, config.md, manifest.md; moby, image/spec/spec.md.

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Facts, VERSION, archive, base::USER, root::Root};

/// Where our own files are; all others are the base.
const OURS: [&str; 3] = ["usr/bin/", "usr/libexec/", "usr/share/doc/mesh/"];
/// Where the programs are: [`super::binaries::place`].
pub const PATH: &str = "PATH=/usr/bin";
/// What runs when nobody says what.
pub const COMMAND: [&str; 2] = ["meshctl", "--help"];
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A packed image.
pub struct Image {
    /// The whole archive.
    pub archive: Vec<u8>,
    /// Digest of its manifest, with the algorithm.
    pub digest: String,
}

/// # Errors
/// A path does not fit into an archive.
pub fn pack(root: &Root, facts: &Facts) -> Result<Image> {
    let is_ours = |path: &str| OURS.iter().any(|place| path.starts_with(place));
    let base = archive::layer(root.entries().filter(|(path, _)| !is_ours(path)), facts.epoch)?;
    let ours = archive::layer(root.entries().filter(|(path, _)| is_ours(path)), facts.epoch)?;
    let mut blobs = Blobs::default();
    let diffs = [digest(&base), digest(&ours)];
    let layers = [blobs.add(LAYER, archive::compress(&base)?), blobs.add(LAYER, archive::compress(&ours)?)];
    let config = blobs.add(CONFIG, encode(&config(&diffs, facts)));
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers, "annotations": labels(facts),
    });
    let mut manifest = blobs.add(MANIFEST, encode(&manifest));
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    manifest["platform"] = json!({"architecture": architecture(), "os": "linux"});
    manifest["annotations"] = json!({
        "io.containerd.image.name": facts.name,
        "org.opencontainers.image.ref.name": facts.name.rsplit(':').next(),
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]});
    let place = |blob: &Value| path(blob["digest"].as_str().unwrap_or_default());
    let docker = json!([{
        "Config": place(&config), "RepoTags": [facts.name], "Layers": layers.iter().map(place).collect::<Vec<_>>(),
    }]);
    let mut files = blobs.0;
    files.push(("index.json".to_owned(), encode(&index)));
    files.push(("manifest.json".to_owned(), encode(&docker)));
    files.push(("oci-layout".to_owned(), encode(&json!({"imageLayoutVersion": "1.0.0"}))));
    Ok(Image { archive: archive::files(&files, facts.epoch)?, digest })
}

fn config(diffs: &[String; 2], facts: &Facts) -> Value {
    let history = |what: &str| json!({"created": facts.created, "created_by": "cargo xtask dist", "comment": what});
    json!({
        "architecture": architecture(),
        "os": "linux",
        "created": facts.created,
        "config": {
            "User": format!("{USER}:{USER}"),
            "Env": [PATH],
            "WorkingDir": "/",
            "Cmd": COMMAND,
            "Labels": labels(facts),
        },
        "rootfs": {"type": "layers", "diff_ids": diffs},
        "history": [history("libraries of Debian"), history("programs of the mesh")],
    })
}

/// What people and registries are told of the image.
/// Source: OCI image specification 1.1, annotations.md.
pub fn labels(facts: &Facts) -> Value {
    let mut labels = json!({
        "org.opencontainers.image.title": "mesh",
        "org.opencontainers.image.description": "A service mesh without sidecars: mesh-agent, mesh-control and meshctl",
        "org.opencontainers.image.version": VERSION,
        "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
        "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
        "org.opencontainers.image.created": facts.created,
    });
    if !facts.revision.is_empty() {
        labels["org.opencontainers.image.revision"] = facts.revision.clone().into();
    }
    labels
}

/// As container images name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Files of an image by their digests.
#[derive(Default)]
struct Blobs(Vec<(String, Vec<u8>)>);

impl Blobs {
    /// Keeps a blob and answers its descriptor.
    fn add(&mut self, kind: &str, content: Vec<u8>) -> Value {
        let digest = digest(&content);
        let descriptor = json!({"mediaType": kind, "digest": digest, "size": content.len()});
        self.0.push((path(&digest), content));
        descriptor
    }
}

fn path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

pub(super) fn digest(content: &[u8]) -> String {
    let digits: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

fn encode(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}
