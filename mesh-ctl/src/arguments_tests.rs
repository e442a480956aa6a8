//! What the command line accepts and refuses.

use clap::{CommandFactory, error::ErrorKind};

use super::*;

fn parse(line: &str) -> Result<Arguments, clap::Error> {
    Arguments::try_parse_from(line.split_whitespace())
}

fn refused(line: &str) -> ErrorKind {
    parse(line).expect_err(line).kind()
}

const ENROL: &str =
    "meshctl enrol --uid u --namespace shop --name web --service-account web --address 10.1.0.2 --cgroup /c";

#[test]
fn the_definition_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn common_options_may_stand_behind_the_sub_command() {
    let arguments = parse("meshctl sockets -w -o json --socket /s --timeout 3").expect("valid");

    assert_eq!((arguments.socket.as_str(), arguments.output, arguments.timeout), ("/s", Format::Json, 3));
    assert_eq!(arguments.command.interval(), Some(Duration::from_secs(2)));
}

#[test]
fn the_socket_has_a_default() {
    let arguments = parse("meshctl check").expect("valid");

    assert_eq!(arguments.socket, "/run/mesh/admin.sock");
    assert_eq!(arguments.output, Format::Table);
    assert_eq!(arguments.command.interval(), None);
}

#[test]
fn a_pod_is_named_with_its_namespace() {
    assert!(parse("meshctl sockets --pod shop/web").is_ok());
    for wrong in ["web", "/web", "shop/"] {
        assert_eq!(refused(&format!("meshctl sockets --pod {wrong}")), ErrorKind::ValueValidation, "{wrong}");
    }
}

#[test]
fn only_what_changes_by_itself_can_be_watched() {
    for name in ["pods", "workloads", "services", "sockets", "policies", "certificates", "status"] {
        let arguments = parse(&format!("meshctl {name} -w --interval 7")).expect("valid");
        assert_eq!(arguments.command.interval(), Some(Duration::from_secs(7)), "{name}");
    }
    assert_eq!(refused("meshctl check -w"), ErrorKind::UnknownArgument);
    assert_eq!(refused("meshctl log -w"), ErrorKind::UnknownArgument);
    assert_eq!(refused("meshctl status --interval 7"), ErrorKind::MissingRequiredArgument);
}

#[test]
fn enrol_takes_every_field() {
    let line = format!("{ENROL} --address fd00::2 --pid 7 --probe-port 80 --probe-port 81 --fail-open");
    let Command::Enrol(pod) = parse(&line).expect("valid").command else { panic!("not enrol") };

    assert_eq!(pod.addresses, ["10.1.0.2".parse::<IpAddr>().expect("v4"), "fd00::2".parse().expect("v6")]);
    assert_eq!((pod.network_namespace.path, pod.network_namespace.pid), (None, Some(7)));
    assert_eq!(pod.probe_ports, [80, 81]);
    assert!(pod.fail_open);
}

#[test]
fn enrol_refuses_what_is_wrong_in_form() {
    assert_eq!(refused(ENROL), ErrorKind::MissingRequiredArgument, "no network namespace");
    assert_eq!(refused(&format!("{ENROL} --pid 7 --network-namespace /n")), ErrorKind::ArgumentConflict);
    assert_eq!(refused(&format!("{ENROL} --pid 0")), ErrorKind::ValueValidation);
    assert_eq!(refused(&format!("{ENROL} --pid 7 --address 10.1.0.256")), ErrorKind::ValueValidation);
    assert_eq!(refused(&format!("{ENROL} --pid 7 --probe-port 0")), ErrorKind::ValueValidation);
    assert_eq!(refused("meshctl enrol --uid u --pid 7"), ErrorKind::MissingRequiredArgument);
}

#[test]
fn the_two_whys_exclude_each_other() {
    assert_eq!(refused("meshctl sockets --why-plaintext --why-denied"), ErrorKind::ArgumentConflict);
}

#[test]
fn an_empty_log_filter_is_no_filter() {
    let empty = Arguments::try_parse_from(["meshctl", "log", ""]).expect_err("an empty filter reads as a question");

    assert_eq!(empty.kind(), ErrorKind::InvalidValue);
}

#[test]
fn destinations() {
    let accepted = [
        ("shop/db:5432", "shop/db", 5432),
        ("db.shop.svc.cluster.local:5432", "db.shop.svc.cluster.local", 5432),
        ("10.1.0.2:80", "10.1.0.2", 80),
        ("[fd00::2]:65535", "fd00::2", 65535),
    ];
    for (text, host, port) in accepted {
        assert_eq!(text.parse(), Ok(Destination { host: host.into(), port }), "{text}");
    }
    let refused = [
        ("shop/db", DestinationError::NoPort),
        ("shop/db:", DestinationError::Port(String::new())),
        ("shop/db:0", DestinationError::Port("0".into())),
        ("shop/db:65536", DestinationError::Port("65536".into())),
        ("shop/db:http", DestinationError::Port("http".into())),
        (":80", DestinationError::NoHost),
        ("[]:80", DestinationError::NoHost),
        ("fd00::2:80", DestinationError::Brackets),
        ("[fd00::2:80", DestinationError::Brackets),
        ("fd00::2]:80", DestinationError::Brackets),
    ];
    for (text, error) in refused {
        assert_eq!(text.parse::<Destination>(), Err(error), "{text}");
    }
}
