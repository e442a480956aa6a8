//! Each field of an enrolment, wrong in each way it can be.

use std::os::unix::fs::MetadataExt;

use mesh_api::proto::admin::{EnrolRequest, enrol_request::NetworkNamespace as Source};

use super::*;

/// The tests' own cgroup is a real one below a real root.
fn cgroups() -> (PathBuf, PathBuf) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(point))
    });
    let root = root.expect("these tests need a mounted cgroup v2");
    let below = root.join(format!("node-claim-{}", std::process::id()));
    (root, below)
}

/// A cgroup that goes with the test.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Self {
        let (_, base) = cgroups();
        let path = base.with_file_name(format!("{}-{name}", base.file_name().unwrap().to_str().unwrap()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn request(cgroup: &Path) -> EnrolRequest {
    EnrolRequest {
        uid: "0d9f-1".into(),
        namespace: "default".into(),
        name: "web-1".into(),
        service_account: "web".into(),
        addresses: vec!["10.1.2.3".into(), "fd00::3".into()],
        network_namespace: Some(Source::NetworkNamespacePath("/run/netns/web".into())),
        cgroup_path: cgroup.to_str().unwrap().into(),
        probe_ports: vec![8080],
        fail_open: false,
    }
}

#[test]
fn a_right_request_is_read_as_it_is() {
    let (root, _) = cgroups();
    let cgroup = Cgroup::new("right");
    let claim = Claim::read(&request(&cgroup.0), &root).unwrap();
    assert_eq!(claim.addresses, ["10.1.2.3".parse::<IpAddr>().unwrap(), "fd00::3".parse().unwrap()]);
    assert_eq!(claim.network_namespace.path(), Path::new("/run/netns/web"));
    assert_eq!(claim.probe_ports, [8080]);
    let kernel = claim.cgroup().unwrap();
    assert_eq!((kernel.id, kernel.level), (fs::metadata(&cgroup.0).unwrap().ino(), 1));
}

#[test]
fn each_wrong_field_is_named() {
    let (root, _) = cgroups();
    let cgroup = Cgroup::new("wrong");
    type Change = fn(&mut EnrolRequest);
    let cases: &[(&str, &str, Change)] = &[
        ("uid", "253", |r| r.uid.clear()),
        ("uid", "253", |r| r.uid = "a/b".into()),
        ("uid", "253", |r| r.uid = "u".repeat(254)),
        ("namespace", "DNS label", |r| r.namespace = "Default".into()),
        ("namespace", "DNS label", |r| r.namespace = "a.b".into()),
        ("namespace", "DNS label", |r| r.namespace.clear()),
        ("name", "DNS subdomain", |r| r.name = "web_1".into()),
        ("name", "DNS subdomain", |r| r.name = "web..1".into()),
        ("service_account", "DNS subdomain", |r| r.service_account = "-web".into()),
        ("addresses", "none", |r| r.addresses.clear()),
        ("addresses", "not an IP", |r| r.addresses = vec!["10.1.2".into()]),
        ("addresses", "loopback", |r| r.addresses = vec!["127.0.0.1".into()]),
        ("addresses", "loopback", |r| r.addresses = vec!["::1".into()]),
        ("addresses", "link-local", |r| r.addresses = vec!["fe80::1".into()]),
        ("addresses", "link-local", |r| r.addresses = vec!["169.254.1.1".into()]),
        ("addresses", "unspecified", |r| r.addresses = vec!["0.0.0.0".into()]),
        ("addresses", "multicast", |r| r.addresses = vec!["ff02::1".into()]),
        ("addresses", "v4-mapped", |r| r.addresses = vec!["::ffff:10.1.2.3".into()]),
        ("addresses", "second", |r| r.addresses = vec!["10.1.2.3".into(), "10.1.2.4".into()]),
        ("addresses", "second", |r| r.addresses = vec!["10.1.2.3".into(), "10.1.2.3".into()]),
        ("network_namespace", "neither", |r| r.network_namespace = None),
        ("pid", "no process", |r| r.network_namespace = Some(Source::Pid(0))),
        ("network_namespace_path", "absolute", |r| {
            r.network_namespace = Some(Source::NetworkNamespacePath("netns/web".into()));
        }),
        ("cgroup_path", "absolute", |r| r.cgroup_path = "kubepods/web".into()),
        ("cgroup_path", "..", |r| r.cgroup_path.push_str("/../web")),
        ("cgroup_path", "No such file", |r| r.cgroup_path.push_str("/gone")),
        ("cgroup_path", "not below", |r| r.cgroup_path = "/tmp".into()),
        ("cgroup_path", "not a directory", |r| r.cgroup_path.push_str("/cgroup.procs")),
        ("probe_ports", "not a port", |r| r.probe_ports = vec![0]),
        ("probe_ports", "not a port", |r| r.probe_ports = vec![65536]),
        ("probe_ports", "twice", |r| r.probe_ports = vec![80, 80]),
        ("probe_ports", "own", |r| r.probe_ports = vec![15008]),
    ];
    for (field, reason, change) in cases {
        let mut wrong = request(&cgroup.0);
        change(&mut wrong);
        let error = Claim::read(&wrong, &root).unwrap_err();
        assert_eq!(error.field, *field, "{error}");
        assert!(error.reason.contains(reason), "{error}");
    }
}

#[test]
fn the_root_itself_and_what_is_beside_it_are_refused() {
    let (root, _) = cgroups();
    let (own, other) = (Cgroup::new("own"), Cgroup::new("other"));
    assert!(Claim::read(&request(&other.0), &own.0).unwrap_err().reason.contains("not below"));
    assert!(Claim::read(&request(&own.0), &own.0).unwrap_err().reason.contains("not below"));
    assert!(Claim::read(&request(&other.0), &root).is_ok());
}

#[test]
fn the_field_that_differs_is_named() {
    let (root, _) = cgroups();
    let cgroup = Cgroup::new("differs");
    let one = Claim::read(&request(&cgroup.0), &root).unwrap();
    assert_eq!(one.difference(&one), None);
    let two = Claim { probe_ports: vec![], ..one.clone() };
    assert_eq!(one.difference(&two), Some("probe_ports"));
}
