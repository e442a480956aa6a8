//! One call from beginning to end: what is asked, what the agent says, and what the runtime hears.

use std::{fmt, time::Duration};

use mesh_api::proto::admin::{CniAddRequest, Sandbox};
use serde_json::{Value, json};

use crate::{
    agent::{Agent, Answer},
    call::{Call, PodName, Verb},
    configuration::{Configuration, Version},
    failure::Failure,
    result,
};

/// A pod waits this long for an agent; afterwards the kubelet tries again by itself.
const PATIENCE: Duration = Duration::from_secs(10);
/// An end is never held up: the agent sees it anyway.
const PATIENCE_AT_END: Duration = Duration::from_secs(1);

/// Why a call fails, and in which version it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    version: String,
    /// Why.
    pub failure: Failure,
}

impl Refusal {
    /// When the version could not be read either.
    pub fn without_version(failure: Failure) -> Self {
        Self { version: Version::V1_0_0.text().into(), failure }
    }
}

/// As the runtime reads it from standard output.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, failure } = self;
        write!(f, "{}", json!({"cniVersion": version, "code": failure.code(), "msg": failure.to_string()}))
    }
}

/// Answers a call: `get` reads the environment, `input` is the configuration. The text is for standard output.
///
/// # Errors
/// What the runtime is told instead; the pod does not start.
pub fn run(get: impl Fn(&str) -> Option<String>, input: &[u8]) -> Result<String, Refusal> {
    let version = Configuration::version(input);
    let call = Call::read(get);
    let answer = match (&call, &version) {
        (Err(failure), _) | (_, Err(failure)) => Err(failure.clone()),
        (Ok(Call { verb: Verb::Version, .. }), Ok(version)) => Ok(versions(version)),
        (Ok(call), Ok(_)) => Configuration::read(input).and_then(|configuration| answer(call, configuration)),
    };
    answer.map_err(|failure| match version {
        Ok(version) => Refusal { version, failure },
        Err(_) => Refusal::without_version(failure),
    })
}

fn versions(asked: &str) -> String {
    json!({"cniVersion": asked, "supportedVersions": Version::ALL.map(Version::text)}).to_string()
}

fn answer(call: &Call, configuration: Configuration) -> Result<String, Failure> {
    let since = |first: Version| match configuration.version >= first {
        true => Ok(()),
        false => {
            Err(Failure::Version(format!("{} is not in cniVersion {}", call.verb.text(), configuration.version.text())))
        }
    };
    match call.verb {
        Verb::Add => wait(add(call, configuration)),
        Verb::Delete => wait(delete(call, &configuration)),
        Verb::Check => since(Version::V0_4_0).and_then(|()| wait(check(call, &configuration))),
        // Always: a node that is not ready starts no pod, and the agent is one. Without an agent others are refused one by one.
        Verb::Status => since(Version::V1_1_0).map(|()| String::new()),
        // The agent sees by itself which pods have gone.
        Verb::CollectGarbage => since(Version::V1_1_0).map(|()| String::new()),
        Verb::Version => Ok(versions(configuration.version.text())),
    }
}

fn wait(answer: impl Future<Output = Result<String, Failure>>) -> Result<String, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::NoAnswer(format!("start a runtime: {error}")))?.block_on(answer)
}

async fn add(call: &Call, configuration: Configuration) -> Result<String, Failure> {
    let Some(result) = &configuration.result else {
        return Err(Failure::Configuration(
            "there is no prevResult: the plug-in goes behind one that makes a network".into(),
        ));
    };
    let sandbox = sandbox(call);
    if sandbox.network_namespace_path.is_empty() {
        let path = call.network_namespace.as_deref().unwrap_or("".as_ref());
        return Err(Failure::Environment { name: "CNI_NETNS", reason: format!("{} is not there", path.display()) });
    }
    let is_excluded = configuration.excludes(&sandbox.namespace);
    let addresses = match result::addresses(result) {
        Ok(addresses) => addresses.iter().map(ToString::to_string).collect(),
        // An agent that cannot be asked about it holds none of these up.
        Err(_) if is_excluded => return Ok(passed_on(result)),
        Err(failure) => return Err(failure),
    };
    let patience = if is_excluded { Duration::ZERO } else { PATIENCE };
    let agent = Agent { socket: &configuration.socket, patience };
    match agent.add(CniAddRequest { sandbox: Some(sandbox), addresses }).await {
        Answer::Said(_) => Ok(passed_on(result)),
        Answer::Nothing(_) if is_excluded => Ok(passed_on(result)),
        Answer::Nothing(reason) => Err(Failure::NoAnswer(nobody(&reason, &configuration.excluded))),
        Answer::Unknown => Err(Failure::Refused("it does not know the pod".into())),
        Answer::Refused(reason) => Err(Failure::Refused(reason)),
    }
}

fn nobody(reason: &str, excluded: &[String]) -> String {
    let excluded = match excluded {
        [] => "no pod starts without it".to_owned(),
        some => format!("without it only pods of {} start", some.join(", ")),
    };
    format!(
        "the agent of this node does not answer ({reason}), and {excluded}: what others send might leave in the clear"
    )
}

fn passed_on(result: &Value) -> String {
    result.to_string()
}

async fn check(call: &Call, configuration: &Configuration) -> Result<String, Failure> {
    let sandbox = sandbox(call);
    let is_excluded = configuration.excludes(&sandbox.namespace);
    let agent = Agent { socket: &configuration.socket, patience: PATIENCE_AT_END };
    match agent.check(sandbox).await {
        Answer::Said(()) => Ok(String::new()),
        Answer::Nothing(_) if is_excluded => Ok(String::new()),
        Answer::Nothing(reason) => Err(Failure::NoAnswer(format!("the agent of this node does not answer ({reason})"))),
        Answer::Unknown => Err(Failure::Refused("the pod is to be enrolled and is not".into())),
        Answer::Refused(reason) => Err(Failure::Refused(reason)),
    }
}

/// Never fails: the runtime would ask for ever, and the pod would not go. What an agent holds of it ends with the pod anyway.
async fn delete(call: &Call, configuration: &Configuration) -> Result<String, Failure> {
    if call.pod.is_some() {
        let agent = Agent { socket: &configuration.socket, patience: PATIENCE_AT_END };
        if let Answer::Nothing(reason) | Answer::Refused(reason) = agent.delete(sandbox(call)).await {
            eprintln!("mesh-cni: the agent was not told of the end of {}: {reason}", call.container_id);
        }
    }
    Ok(String::new())
}

fn sandbox(call: &Call) -> Sandbox {
    let PodName { namespace, name, uid } = call.pod.clone().unwrap_or_default();
    let path = call.plain_network_namespace().unwrap_or_default();
    Sandbox {
        container_id: call.container_id.clone(),
        network_namespace_path: path.display().to_string(),
        namespace,
        name,
        uid,
    }
}
