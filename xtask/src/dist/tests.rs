//! Images of this very test program, which needs the same libraries as those of the mesh.

use std::{collections::BTreeMap, fs, io::Read, path::PathBuf, process::Command};

use flate2::read::GzDecoder;
use serde_json::Value;
use tar::Archive;

use super::*;

fn some_facts() -> Facts {
    Facts {
        name: "example.com/mesh:1".to_owned(),
        revision: "abc".to_owned(),
        epoch: 1_700_000_000,
        created: "2023-11-14T22:13:20Z".to_owned(),
    }
}

fn this_program() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn packed() -> image::Image {
    image::pack(&contents(&[this_program()], &some_facts()).unwrap(), &some_facts()).unwrap()
}

fn unpacked(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in Archive::new(archive).entries().unwrap() {
        let (mut entry, mut content) = (entry.unwrap(), Vec::new());
        entry.read_to_end(&mut content).unwrap();
        files.insert(entry.path().unwrap().to_string_lossy().into_owned(), content);
    }
    files
}

fn json(content: &[u8]) -> Value {
    serde_json::from_slice(content).unwrap()
}

fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().unwrap();
    let content = &files[&format!("blobs/{}", digest.replace(':', "/"))];
    assert_eq!(image::digest(content), digest, "a blob is named by its content");
    assert_eq!(descriptor["size"], content.len());
    content
}

#[test]
fn the_same_files_make_the_same_image() {
    let first = packed();
    let second = packed();
    assert_eq!(first.digest, second.digest);
    assert!(first.archive == second.archive, "the archives differ");
}

#[test]
fn both_kinds_of_runtime_find_the_same_layers() {
    let files = unpacked(&packed().archive);
    let index = json(&files["index.json"]);
    let manifest = json(blob(&files, &index["manifests"][0]));
    let config = json(blob(&files, &manifest["config"]));
    let mut paths = Vec::new();
    for (layer, diff) in
        manifest["layers"].as_array().unwrap().iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap())
    {
        let mut content = Vec::new();
        GzDecoder::new(blob(&files, layer)).read_to_end(&mut content).unwrap();
        assert_eq!(*diff, image::digest(&content));
        paths.extend(unpacked(&content).into_keys());
        for entry in Archive::new(content.as_slice()).entries().unwrap() {
            let header = entry.unwrap().header().clone();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 1_700_000_000));
        }
    }
    let docker = &json(&files["manifest.json"])[0];
    assert_eq!(docker["RepoTags"][0], "example.com/mesh:1");
    let place = |descriptor: &Value| descriptor["digest"].as_str().unwrap().replacen("sha256:", "blobs/sha256/", 1);
    assert_eq!(docker["Config"], place(&manifest["config"]));
    for (index, layer) in manifest["layers"].as_array().unwrap().iter().enumerate() {
        assert_eq!(docker["Layers"][index], place(layer));
    }
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.revision"], "abc");
    for path in ["etc/passwd", "etc/nsswitch.conf", "lib64", "usr/share/doc/libc6/copyright", sbom::PLACE] {
        assert!(paths.iter().any(|found| found == path), "{path} is missing in {paths:?}");
    }
    let count = paths.len();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), count, "a path is in both layers");
}

#[test]
fn a_program_of_the_image_runs_with_nothing_but_the_image() {
    let directory = std::env::temp_dir().join(format!("mesh-image-{}", std::process::id()));
    let written = contents(&[this_program()], &some_facts()).unwrap().write(&directory);
    let name = this_program().file_name().unwrap().to_string_lossy().into_owned();
    let output = Command::new("chroot").arg(&directory).arg(format!("/usr/bin/{name}")).arg("--list").output();
    fs::remove_dir_all(&directory).unwrap();
    written.unwrap();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("a_program_of_the_image_runs"), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_list_names_every_package_of_which_the_image_has_a_file() {
    let root = contents(&[this_program()], &some_facts()).unwrap();
    let list = json(root.content(sbom::PLACE).unwrap());
    let packages = list["packages"].as_array().unwrap();
    let identifiers: Vec<_> = packages.iter().map(|package| package["SPDXID"].as_str().unwrap()).collect();
    for name in ["libc6", "libgcc-s1", "base-files", "mesh-agent", "rust-std"] {
        assert!(packages.iter().any(|package| package["name"] == name), "{name}");
    }
    for name in root.entries().filter_map(|(path, _)| path.strip_prefix("var/lib/dpkg/status.d/")) {
        assert!(packages.iter().any(|package| package["name"] == name), "{name}");
    }
    let mut once = identifiers.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), identifiers.len(), "an identifier is of one package");
    for relation in list["relationships"].as_array().unwrap() {
        let to = relation["relatedSpdxElement"].as_str().unwrap();
        assert!(identifiers.contains(&to), "{to}");
    }
}

#[test]
fn a_name_without_a_tag_gets_the_version() {
    assert_eq!(tagged("mesh.dev/mesh"), format!("mesh.dev/mesh:{VERSION}"));
    assert_eq!(tagged("localhost:5000/mesh"), format!("localhost:5000/mesh:{VERSION}"));
    assert_eq!(tagged("localhost:5000/mesh:x"), "localhost:5000/mesh:x");
}

#[test]
fn the_dockerfile_is_of_the_same_list() {
    let text = fs::read_to_string(workspace::root().join(dockerfile::PLACE)).unwrap();
    assert!(text == dockerfile::text(), "{} differs: run `cargo xtask render`", dockerfile::PLACE);
}
