//! The result of the plug-ins before: passed on as it is, and read for the pod's addresses.

use std::net::IpAddr;

use serde_json::Value;

use crate::failure::Failure;

/// The pod's addresses, the first of each family: that is what the API server will say, too. Those of interfaces outside the
/// sandbox are not the pod's.
///
/// # Errors
/// There is none, or one cannot be read.
pub fn addresses(result: &Value) -> Result<Vec<IpAddr>, Failure> {
    let wrong = |reason: String| Failure::Configuration(format!("prevResult: {reason}"));
    let mut found: Vec<IpAddr> = Vec::new();
    for entry in result["ips"].as_array().into_iter().flatten() {
        let text = entry["address"].as_str().ok_or_else(|| wrong(format!("{entry} has no address")))?;
        let address = text.split('/').next().unwrap_or_default();
        let address: IpAddr = address.parse().map_err(|_| wrong(format!("{text:?} is not an address")))?;
        if is_in_sandbox(result, entry) && !found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            found.push(address);
        }
    }
    if found.is_empty() { Err(wrong("the plug-ins before gave the pod no address".into())) } else { Ok(found) }
}

/// An address that names no interface is the pod's.
fn is_in_sandbox(result: &Value, entry: &Value) -> bool {
    let Some(index) = entry["interface"].as_u64() else { return true };
    let interface = usize::try_from(index).ok().and_then(|index| result["interfaces"].get(index));
    interface.is_none_or(|interface| interface["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let result = serde_json::from_str(text).unwrap();
        let found = addresses(&result).map_err(|failure| failure.to_string())?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn addresses_are_those_of_the_sandbox() {
        let interfaces = r#""interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/a"}]"#;
        let cases = [
            (
                r#"{"ips": [{"version": "4", "address": "10.1.0.5/24", "gateway": "10.1.0.1"}]}"#.to_owned(),
                vec!["10.1.0.5"],
            ),
            (r#"{"ips": [{"address": "10.1.0.5"}]}"#.to_owned(), vec!["10.1.0.5"]),
            (
                r#"{"ips": [{"address": "fd00::5/64"}, {"address": "10.1.0.5/24"}, {"address": "10.2.0.5/24"}]}"#
                    .to_owned(),
                vec!["fd00::5", "10.1.0.5"],
            ),
            (
                format!(
                    r#"{{"ips": [{{"interface": 0, "address": "10.9.0.1/24"}}, {{"interface": 1, "address": "10.1.0.5/24"}}], {interfaces}}}"#
                ),
                vec!["10.1.0.5"],
            ),
            (r#"{"ips": [{"interface": 7, "address": "10.1.0.5/24"}]}"#.to_owned(), vec!["10.1.0.5"]),
        ];
        for (text, expected) in cases {
            assert_eq!(read(&text), Ok(expected.into_iter().map(str::to_owned).collect()), "{text}");
        }
    }

    #[test]
    fn a_pod_without_an_address_cannot_be_steered() {
        let none = "prevResult: the plug-ins before gave the pod no address";
        let cases = [
            ("{}", none),
            ("[]", none),
            (r#"{"ips": []}"#, none),
            (r#"{"ips": [{"interface": 0, "address": "10.9.0.1/24"}], "interfaces": [{"name": "veth1"}]}"#, none),
            (r#"{"ips": [{"address": "10.1.0/24"}]}"#, "prevResult: \"10.1.0/24\" is not an address"),
            (r#"{"ips": [{}]}"#, "prevResult: {} has no address"),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text), Err(expected.to_owned()), "{text}");
        }
    }
}
