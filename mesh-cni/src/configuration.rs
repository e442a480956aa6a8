//! The plug-in's entry in the list of configurations, as the runtime hands it over on standard input. Fields that are not
//! ours are let by: runtimes put their own beside them (runtimeConfig, args, cni.dev/valid-attachments).

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use crate::failure::Failure;

/// A version of the protocol, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The first with chains.
    V0_3_0,
    /// Only the text of the specification changed.
    V0_3_1,
    /// The first with CHECK.
    V0_4_0,
    /// No version in addresses any more.
    V1_0_0,
    /// The first with STATUS and GC.
    V1_1_0,
}

impl Version {
    /// All that are known, oldest first.
    pub const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// As it is written.
    pub fn text(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is not known.
    pub fn read(text: &str) -> Result<Self, Failure> {
        let known = Self::ALL.into_iter().find(|version| version.text() == text);
        known.ok_or_else(|| {
            let all = Self::ALL.map(Self::text).join(", ");
            Failure::Version(format!("cniVersion {text:?} is not known: {all} are"))
        })
    }
}

/// What the plug-in is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Configuration {
    /// Of the protocol, and of the result that is passed on.
    pub version: Version,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Namespaces whose pods start without an agent.
    pub excluded: Vec<String>,
    /// What the plug-ins before have made.
    pub result: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Given {
    // Source: CNI specification 0.1.0, which had no such field.
    #[serde(default = "first_version")]
    cni_version: String,
    #[serde(default)]
    socket: PathBuf,
    #[serde(default)]
    exclude_namespaces: Vec<String>,
    prev_result: Option<Value>,
}

fn first_version() -> String {
    "0.1.0".into()
}

impl Configuration {
    /// Reads all of it.
    ///
    /// # Errors
    /// It is no JSON, of an unknown version, or says nothing of the agent.
    pub fn read(input: &[u8]) -> Result<Self, Failure> {
        let given: Given = parse(input)?;
        let version = Version::read(&given.cni_version)?;
        if !given.socket.is_absolute() {
            let reason = format!("socket: {:?} is not the absolute path of the agent's socket", given.socket);
            return Err(Failure::Configuration(reason));
        }
        Ok(Self { version, socket: given.socket, excluded: given.exclude_namespaces, result: given.prev_result })
    }

    /// The version alone, as far as it can be read: failures are told in it, too.
    ///
    /// # Errors
    /// There is none in it.
    pub fn version(input: &[u8]) -> Result<String, Failure> {
        parse::<Given>(input).map(|given| given.cni_version)
    }

    /// Whether pods of this namespace start without an agent.
    pub fn excludes(&self, namespace: &str) -> bool {
        self.excluded.iter().any(|excluded| excluded == namespace)
    }
}

fn parse<'a, T: Deserialize<'a>>(input: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(input).map_err(|error| Failure::Decode(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Configuration, (u32, String)> {
        Configuration::read(text.as_bytes()).map_err(|failure| (failure.code(), failure.to_string()))
    }

    #[test]
    fn an_entry_is_read_and_what_runtimes_add_is_let_by() {
        let text = r#"{"cniVersion": "0.3.1", "name": "pods", "type": "mesh-cni", "socket": "/run/mesh/admin.sock",
            "excludeNamespaces": ["kube-system"], "runtimeConfig": {"portMappings": []}, "args": {"cni": {}},
            "prevResult": {"cniVersion": "0.3.1", "ips": []}}"#;
        let configuration = read(text).unwrap();
        assert_eq!(configuration.version, Version::V0_3_1);
        assert_eq!(configuration.socket, PathBuf::from("/run/mesh/admin.sock"));
        assert_eq!(configuration.result.as_ref().unwrap()["cniVersion"], "0.3.1");
        assert!(configuration.excludes("kube-system") && !configuration.excludes("kube"));
    }

    #[test]
    fn what_cannot_be_used_has_its_code() {
        let cases = [
            ("", 6, "the configuration cannot be read: EOF"),
            ("[]", 6, "the configuration cannot be read"),
            (r#"{"cniVersion": 1}"#, 6, "the configuration cannot be read"),
            ("{}", 1, "cniVersion \"0.1.0\" is not known: 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0 are"),
            (r#"{"cniVersion": "2.0.0"}"#, 1, "cniVersion \"2.0.0\" is not known"),
            (r#"{"cniVersion": "1.0.0"}"#, 7, "socket: \"\" is not the absolute path"),
            (r#"{"cniVersion": "1.0.0", "socket": "run/x"}"#, 7, "socket: \"run/x\" is not the absolute path"),
        ];
        for (text, code, expected) in cases {
            let (found, reason) = read(text).unwrap_err();
            assert_eq!(found, code, "{text}");
            assert!(reason.starts_with(expected), "{text}: {reason}");
        }
    }

    #[test]
    fn versions_are_in_order() {
        assert!(Version::ALL.is_sorted());
        assert_eq!(Version::ALL.map(Version::text), mesh_api::CNI_VERSIONS);
        for version in Version::ALL {
            assert_eq!(Version::read(version.text()), Ok(version));
        }
    }
}
