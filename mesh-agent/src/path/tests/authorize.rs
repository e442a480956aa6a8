//! Policy semantics: a table of cases, and every random case judged as a slow reference judges it.

use std::net::IpAddr;

use mesh_api::{
    Identity,
    proto::security::{self, Authorization, Clause, Match, Rule},
};
use proptest::prelude::*;

use crate::{
    path::{Source, Verdict, judge},
    view::{
        View,
        fixtures::{self, exact, presence},
    },
};

const ADDRESS: &str = "10.0.0.1";

fn source(namespace: &str, account: &str, address: &str) -> Source {
    let identity = Some(Identity::new("cluster.local", namespace, account).unwrap());
    Source { identity, address: address.parse().unwrap() }
}

fn nobody(address: &str) -> Source {
    Source { identity: None, address: address.parse().unwrap() }
}

fn verdict(view: &View, source: &Source, port: u16) -> Verdict {
    let destination = view.workload_at(ADDRESS.parse().unwrap()).unwrap();
    judge(view, source, destination, ADDRESS.parse().unwrap(), port).verdict
}

fn under(policies: Vec<Authorization>) -> std::sync::Arc<View> {
    fixtures::view([fixtures::pod("db", &[ADDRESS])], [], policies)
}

fn prefix(text: &str) -> security::StringMatch {
    security::StringMatch { match_type: Some(security::string_match::MatchType::Prefix(text.into())) }
}

fn suffix(text: &str) -> security::StringMatch {
    security::StringMatch { match_type: Some(security::string_match::MatchType::Suffix(text.into())) }
}

fn range(address: &str, length: u32) -> security::Address {
    security::Address { address: fixtures::bytes(address), length }
}

fn account(namespace: &str, name: &str) -> security::ServiceAccountMatch {
    security::ServiceAccountMatch { namespace: namespace.into(), service_account: name.into() }
}

/// Each term alone, as ALLOW: who it lets through on port 80 of `web` in `default` at 10.1.0.1, `web` in `other` at
/// 10.2.0.1 and nobody at 10.1.0.1.
#[test]
fn each_term_matches_whom_it_names() {
    let any = Match::default;
    let cases: Vec<(&str, Match, [bool; 3])> = vec![
        ("no term", any(), [false, false, false]),
        ("namespace", Match { namespaces: vec![exact("default")], ..any() }, [true, false, false]),
        ("namespace prefix", Match { namespaces: vec![prefix("oth")], ..any() }, [false, true, false]),
        ("namespace suffix", Match { namespaces: vec![suffix("er")], ..any() }, [false, true, false]),
        ("namespace presence", Match { namespaces: vec![presence()], ..any() }, [true, true, false]),
        ("not namespace", Match { not_namespaces: vec![exact("default")], ..any() }, [false, true, true]),
        (
            "principal",
            Match { principals: vec![exact("cluster.local/ns/other/sa/web")], ..any() },
            [false, true, false],
        ),
        (
            "principal with scheme",
            Match { principals: vec![exact("spiffe://cluster.local/ns/other/sa/web")], ..any() },
            [false, false, false],
        ),
        (
            "principal prefix",
            Match { principals: vec![prefix("cluster.local/ns/default/")], ..any() },
            [true, false, false],
        ),
        ("principal suffix", Match { principals: vec![suffix("/sa/web")], ..any() }, [true, true, false]),
        ("principal presence", Match { principals: vec![presence()], ..any() }, [true, true, false]),
        ("not principal presence", Match { not_principals: vec![presence()], ..any() }, [false, false, true]),
        ("account", Match { service_accounts: vec![account("other", "web")], ..any() }, [false, true, false]),
        ("not account", Match { not_service_accounts: vec![account("other", "web")], ..any() }, [true, false, true]),
        ("source range", Match { source_ips: vec![range("10.1.0.0", 16)], ..any() }, [true, false, true]),
        (
            "mapped source range",
            Match { source_ips: vec![range("::ffff:10.1.0.0", 112)], ..any() },
            [true, false, true],
        ),
        ("not source range", Match { not_source_ips: vec![range("10.1.0.0", 16)], ..any() }, [false, true, false]),
        ("destination range", Match { destination_ips: vec![range("10.0.0.0", 24)], ..any() }, [true, true, true]),
        ("other destination", Match { destination_ips: vec![range("10.0.1.0", 24)], ..any() }, [false, false, false]),
        ("not destination", Match { not_destination_ips: vec![range("10.0.0.1", 32)], ..any() }, [false, false, false]),
        ("port", Match { destination_ports: vec![443, 80], ..any() }, [true, true, true]),
        ("other port", Match { destination_ports: vec![443], ..any() }, [false, false, false]),
        ("not port", Match { not_destination_ports: vec![80], ..any() }, [false, false, false]),
        (
            "two kinds are both needed",
            Match { namespaces: vec![exact("default")], destination_ports: vec![443], ..any() },
            [false, false, false],
        ),
        (
            "of one kind one is enough",
            Match { namespaces: vec![exact("default"), exact("other")], ..any() },
            [true, true, false],
        ),
    ];
    let sources = [source("default", "web", "10.1.0.1"), source("other", "web", "10.2.0.1"), nobody("10.1.0.1")];
    for (name, one, expected) in cases {
        let allow = under(vec![fixtures::policy("p", security::Action::Allow, vec![one.clone()])]);
        let deny = under(vec![fixtures::policy("p", security::Action::Deny, vec![one])]);
        for (source, matches) in sources.iter().zip(expected) {
            let wanted = if matches { Verdict::Allowed } else { Verdict::NoAllowMatched };
            assert_eq!(verdict(&allow, source, 80), wanted, "ALLOW by {name}: {source:?}");
            let wanted = if matches { Verdict::Denied } else { Verdict::NoPolicy };
            assert_eq!(verdict(&deny, source, 80), wanted, "DENY by {name}: {source:?}");
        }
    }
}

#[test]
fn a_mapped_source_address_is_its_ipv4_address() {
    let one = Match { source_ips: vec![range("10.1.0.0", 16)], ..Match::default() };
    let view = under(vec![fixtures::policy("p", security::Action::Allow, vec![one])]);
    assert_eq!(verdict(&view, &nobody("::ffff:10.1.0.1"), 80), Verdict::Allowed);
}

#[test]
fn deny_comes_first_and_the_decision_names_its_policy() {
    let everybody = || Match { not_namespaces: vec![exact("no-such-namespace")], ..Match::default() };
    let web = Match { namespaces: vec![exact("default")], ..Match::default() };
    let view = under(vec![
        fixtures::policy("a-allow", security::Action::Allow, vec![everybody()]),
        fixtures::policy("z-deny", security::Action::Deny, vec![web]),
    ]);
    let destination = view.workload_at(ADDRESS.parse().unwrap()).unwrap();
    let ask = |source| judge(&view, &source, destination, ADDRESS.parse().unwrap(), 80);
    let denied = ask(source("default", "web", "10.1.0.1"));
    assert_eq!((denied.verdict, denied.policy.unwrap().to_string()), (Verdict::Denied, "default/z-deny".into()));
    let allowed = ask(source("other", "web", "10.1.0.1"));
    assert_eq!((allowed.verdict, allowed.policy.unwrap().to_string()), (Verdict::Allowed, "default/a-allow".into()));
}

#[test]
fn a_policy_that_is_named_and_not_there_denies() {
    let mut db = fixtures::pod("db", &[ADDRESS]);
    db.authorization_policies = vec!["default/later".into()];
    let view = fixtures::view([db], [], []);
    assert_eq!(verdict(&view, &source("default", "web", "10.1.0.1"), 80), Verdict::UnknownPolicy);
}

#[test]
fn scopes_select_the_mesh_a_namespace_and_named_workloads() {
    let mut other = fixtures::pod("other", &["10.0.0.2"]);
    other.namespace = "elsewhere".into();
    let mut chosen = fixtures::pod("chosen", &["10.0.0.3"]);
    chosen.authorization_policies = vec!["default/p".into()];
    for (scope, expected) in [
        (security::Scope::Global, [true, true, true]),
        (security::Scope::Namespace, [true, false, true]),
        (security::Scope::WorkloadSelector, [false, false, true]),
    ] {
        let mut policy = fixtures::policy("p", security::Action::Allow, vec![]);
        policy.rules.clear();
        policy.scope = scope as i32;
        let pods = [fixtures::pod("db", &[ADDRESS]), other.clone(), chosen.clone()];
        let view = fixtures::view(pods, [], [policy]);
        for (address, is_selected) in [ADDRESS, "10.0.0.2", "10.0.0.3"].into_iter().zip(expected) {
            let address: IpAddr = address.parse().unwrap();
            let workload = view.workload_at(address).unwrap();
            let decision = judge(&view, &source("default", "web", "10.1.0.1"), workload, address, 80);
            assert_eq!(!decision.verdict.is_allowed(), is_selected, "{scope:?} {address}");
        }
    }
}

#[test]
fn dry_run_is_told_and_decides_nothing() {
    let mut policy = fixtures::policy("p", security::Action::Deny, vec![]);
    policy.dry_run = true;
    let view = under(vec![policy]);
    let destination = view.workload_at(ADDRESS.parse().unwrap()).unwrap();
    let decision = judge(&view, &nobody("10.1.0.1"), destination, ADDRESS.parse().unwrap(), 80);
    assert_eq!(decision.verdict, Verdict::NoPolicy);
    assert_eq!(decision.dry_run[0].to_string(), "default/p");
}

/// What the wire's semantics say, written down a second time: slowly, on the messages themselves, by text.
mod reference {
    use super::*;

    pub fn is_allowed(policies: &[Authorization], source: &Source, address: IpAddr, port: u16) -> bool {
        let in_force: Vec<_> = policies.iter().filter(|policy| !policy.dry_run).collect();
        let matching = |action: security::Action| {
            in_force.iter().filter(move |policy| policy.action == action as i32).map(|policy| {
                policy.rules.iter().any(|rule| {
                    rule.clauses.iter().all(|clause| {
                        clause.matches.is_empty() || clause.matches.iter().any(|one| holds(one, source, address, port))
                    })
                })
            })
        };
        let denied = matching(security::Action::Deny).any(|matched| matched);
        let allows: Vec<bool> = matching(security::Action::Allow).collect();
        !denied && (allows.is_empty() || allows.contains(&true))
    }

    fn holds(one: &Match, source: &Source, address: IpAddr, port: u16) -> bool {
        let spiffe = source.identity.as_ref().map(ToString::to_string);
        let parts: Option<Vec<&str>> = spiffe.as_deref().map(|text| text.split('/').collect());
        let namespace = parts.as_ref().map(|parts| parts[4].to_owned());
        let account = parts.as_ref().map(|parts| parts[6].to_owned());
        let principal = spiffe.as_deref().map(|text| text["spiffe://".len()..].to_owned());
        let mut kinds: Vec<(bool, usize)> = Vec::new();
        let mut kind = |hits: Vec<bool>, negative: bool| {
            kinds.push((if negative { !hits.contains(&true) } else { hits.contains(&true) }, hits.len()));
        };
        let texts = |all: &[security::StringMatch], text: &Option<String>| -> Vec<bool> {
            all.iter().map(|wanted| text.as_ref().is_some_and(|text| fits(wanted, text))).collect()
        };
        kind(texts(&one.namespaces, &namespace), false);
        kind(texts(&one.not_namespaces, &namespace), true);
        kind(texts(&one.principals, &principal), false);
        kind(texts(&one.not_principals, &principal), true);
        let accounts = |all: &[security::ServiceAccountMatch]| -> Vec<bool> {
            all.iter()
                .map(|wanted| {
                    Some(&wanted.namespace) == namespace.as_ref() && Some(&wanted.service_account) == account.as_ref()
                })
                .collect()
        };
        kind(accounts(&one.service_accounts), false);
        kind(accounts(&one.not_service_accounts), true);
        let ranges = |all: &[security::Address], address: IpAddr| -> Vec<bool> {
            all.iter().map(|range| bits(&range.address, range.length) == bits(&octets(address), range.length)).collect()
        };
        kind(ranges(&one.source_ips, source.address), false);
        kind(ranges(&one.not_source_ips, source.address), true);
        kind(ranges(&one.destination_ips, address), false);
        kind(ranges(&one.not_destination_ips, address), true);
        let ports = |all: &[u32]| -> Vec<bool> { all.iter().map(|wanted| *wanted == u32::from(port)).collect() };
        kind(ports(&one.destination_ports), false);
        kind(ports(&one.not_destination_ports), true);
        kinds.iter().any(|(_, terms)| *terms > 0) && kinds.iter().all(|(holds, terms)| *terms == 0 || *holds)
    }

    fn fits(wanted: &security::StringMatch, text: &str) -> bool {
        use security::string_match::MatchType;
        match wanted.match_type.as_ref().unwrap() {
            MatchType::Exact(exact) => exact == text,
            MatchType::Prefix(prefix) => text.len() >= prefix.len() && text[..prefix.len()] == **prefix,
            MatchType::Suffix(suffix) => text.len() >= suffix.len() && text[text.len() - suffix.len()..] == **suffix,
            MatchType::Presence(_) => true,
        }
    }

    fn octets(address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        }
    }

    fn bits(octets: &[u8], length: u32) -> String {
        octets.iter().map(|octet| format!("{octet:08b}")).collect::<String>()[..length as usize].to_owned()
    }
}

fn texts(values: &'static [&'static str]) -> impl Strategy<Value = Vec<security::StringMatch>> {
    let one = prop::sample::select(values);
    let text = prop_oneof![one.clone().prop_map(exact), one.prop_map(|text| prefix(&text[..2])), Just(presence())];
    prop::collection::vec(text, 0..2)
}

fn some<T: Clone + std::fmt::Debug + 'static>(values: Vec<T>) -> impl Strategy<Value = Vec<T>> {
    prop::collection::vec(prop::sample::select(values), 0..2)
}

fn matches() -> impl Strategy<Value = Match> {
    const PRINCIPALS: &[&str] = &["cluster.local/ns/ns-a/sa/sa-a", "cluster.local/ns/ns-b/sa/sa-a"];
    let ranges = || some(vec![range("10.0.0.0", 31), range("10.0.0.0", 8), range("10.1.0.0", 16)]);
    let accounts = || some(vec![account("ns-a", "sa-a"), account("ns-b", "sa-b")]);
    let (names, ports) = (&["ns-a", "ns-b"], || some(vec![80_u32, 81]));
    (
        (texts(names), texts(names), texts(PRINCIPALS), texts(PRINCIPALS)),
        (ranges(), ranges(), ranges(), ranges()),
        (ports(), ports(), accounts(), accounts()),
    )
        .prop_map(|(names, ranges, rest)| Match {
            namespaces: names.0,
            not_namespaces: names.1,
            principals: names.2,
            not_principals: names.3,
            source_ips: ranges.0,
            not_source_ips: ranges.1,
            destination_ips: ranges.2,
            not_destination_ips: ranges.3,
            destination_ports: rest.0,
            not_destination_ports: rest.1,
            service_accounts: rest.2,
            not_service_accounts: rest.3,
            extensions: Vec::new(),
        })
}

fn policies() -> impl Strategy<Value = Vec<Authorization>> {
    let clause = prop::collection::vec(matches(), 0..3).prop_map(|matches| Clause { matches });
    let rule = prop::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let policy = (prop::collection::vec(rule, 0..3), any::<bool>(), prop::bool::weighted(0.1));
    prop::collection::vec(policy, 0..4).prop_map(|policies| {
        let named = policies.into_iter().enumerate().map(|(i, (rules, denies, dry_run))| {
            let action = if denies { security::Action::Deny } else { security::Action::Allow };
            Authorization { rules, dry_run, ..fixtures::policy(&format!("p{i}"), action, vec![]) }
        });
        named.collect()
    })
}

fn sources() -> impl Strategy<Value = Source> {
    let identity =
        prop::option::of((prop::sample::select(vec!["ns-a", "ns-b"]), prop::sample::select(vec!["sa-a", "sa-b"])));
    (identity, prop::sample::select(vec!["10.0.0.1", "10.1.0.1", "11.0.0.1"])).prop_map(|(identity, address)| {
        match identity {
            Some((namespace, name)) => source(namespace, name, address),
            None => nobody(address),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_case_is_judged_as_the_reference_judges_it(policies in policies(), source in sources(), port in 80_u16..82) {
        let view = under(policies.clone());
        let expected = reference::is_allowed(&policies, &source, ADDRESS.parse().unwrap(), port);
        prop_assert_eq!(verdict(&view, &source, port).is_allowed(), expected);
    }
}
