use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::json;

use super::*;

static DIRECTORIES: AtomicU32 = AtomicU32::new(0);

/// A directory that goes with the test.
struct Place(PathBuf);

impl Place {
    fn with(files: &[(&str, &str)]) -> Self {
        let number = DIRECTORIES.fetch_add(1, Ordering::Relaxed);
        let place = Self(std::env::temp_dir().join(format!("mesh-cni-{}-{number}", std::process::id())));
        fs::create_dir_all(&place.0).unwrap();
        files.iter().for_each(|(name, text)| place.write(name, text));
        place
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    fn files(&self) -> BTreeMap<String, String> {
        let entries = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap());
        entries
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
            .collect()
    }

    fn insert(&self) -> Result<bool, String> {
        insert(&self.0, &entry()).map_err(|error| error.to_string().replace(&format!("{}/", self.0.display()), ""))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn entry() -> Value {
    json!({"type": "mesh-cni", "socket": "/run/mesh/admin.sock", "excludeNamespaces": ["kube-system"]})
}

/// Odd spaces: they come back.
const NET: &str = "{ \"cniVersion\":\"1.0.0\",\"name\":\"net\", \"plugins\":[ {\"type\":\"ptp\"} ] }";
const LONE: &str = "{\"cniVersion\":\"0.3.1\",\"name\":\"lone\",  \"type\":\"bridge\"}";
const OTHER: &str = "{\"cniVersion\":\"1.0.0\",\"name\":\"other\",\"plugins\":[{\"type\":\"bridge\"}]}";

#[test]
fn what_was_there_comes_back_byte_by_byte() {
    let cases: [&[(&str, &str)]; 5] = [
        &[("10-net.conflist", NET)],
        &[("10-net.conflist", NET), ("20-other.conflist", OTHER), ("README", "text")],
        &[("10-lone.conf", LONE)],
        &[("10-lone.json", LONE), ("20-other.conflist", OTHER)],
        &[("00-zero.conflist", OTHER), ("10-lone.conf", LONE)],
    ];
    for files in cases {
        let place = Place::with(files);
        let before = place.files();
        assert_eq!(place.insert(), Ok(true), "{files:?}");
        let first = configurations(&place.0).unwrap().remove(0);
        assert!(List::read(&fs::read_to_string(first).unwrap()).unwrap().holds(&entry()), "{files:?}");
        assert_eq!(place.insert(), Ok(false), "{files:?}");
        clear(&place.0).unwrap();
        assert_eq!(place.files(), before);
        clear(&place.0).unwrap();
        assert_eq!(place.files(), before);
    }
}

#[test]
fn an_installer_that_writes_its_file_anew_does_not_get_rid_of_the_plug_in() {
    let place = Place::with(&[("10-net.conflist", NET)]);
    place.insert().unwrap();
    place.write("10-net.conflist", OTHER);
    assert_eq!(place.insert(), Ok(true));
    clear(&place.0).unwrap();
    assert_eq!(place.files(), BTreeMap::from([("10-net.conflist".into(), OTHER.into())]));

    let place = Place::with(&[("10-lone.conf", LONE)]);
    place.insert().unwrap();
    let changed = LONE.replace("bridge", "ptp");
    place.write("10-lone.conf", &changed);
    assert_eq!(place.insert(), Ok(true));
    assert!(!place.files().contains_key("10-lone.conf"));
    clear(&place.0).unwrap();
    assert_eq!(place.files(), BTreeMap::from([("10-lone.conf".into(), changed)]));
}

#[test]
fn an_owner_that_adds_to_the_list_keeps_what_it_added() {
    let place = Place::with(&[("10-net.conflist", NET)]);
    place.insert().unwrap();
    let with = List::read(&place.files()["10-net.conflist"]).unwrap();
    let tuned = with.text().replacen("\"plugins\": [", "\"plugins\": [{\"type\": \"tuning\"},", 1);
    place.write("10-net.conflist", &tuned);
    assert_eq!(place.insert(), Ok(false));
    clear(&place.0).unwrap();
    let left = place.files();
    assert_eq!(left.len(), 1);
    let left = List::read(&left["10-net.conflist"]).unwrap();
    assert_eq!(left, List::read(&tuned).unwrap().without());
}

#[test]
fn a_new_first_configuration_gets_the_plug_in_and_all_are_cleared() {
    let place = Place::with(&[("20-other.conflist", OTHER)]);
    place.insert().unwrap();
    place.write("10-net.conflist", NET);
    assert_eq!(place.insert(), Ok(true));
    clear(&place.0).unwrap();
    let expected = [("10-net.conflist".into(), NET.into()), ("20-other.conflist".into(), OTHER.into())];
    assert_eq!(place.files(), BTreeMap::from(expected));
}

#[test]
fn what_cannot_be_used_is_named_and_left_alone() {
    let cases: [(&[(&str, &str)], &str); 4] = [
        (&[("notes.txt", "x")], "there is no CNI configuration yet"),
        (&[("10-net.conflist", "{ \"plugins\": [")], "10-net.conflist is no JSON"),
        (&[("10-net.conflist", "{}")], "10-net.conflist has no plug-in that makes a network"),
        (
            &[("10-a.conf", LONE), ("10-a.conflist", NET)],
            "10-a.conf would have to become a list, and 10-a.conflist is there",
        ),
    ];
    for (files, expected) in cases {
        let place = Place::with(files);
        let before = place.files();
        let error = place.insert().unwrap_err();
        assert!(error.contains(expected), "{error}");
        assert_eq!(place.files(), before);
    }
}

#[test]
fn mode_and_owner_stay() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let place = Place::with(&[("10-net.conflist", NET)]);
    let path = place.0.join("10-net.conflist");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    place.insert().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    clear(&place.0).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
}
