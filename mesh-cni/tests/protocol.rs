//! The program as runtimes start it, against an agent with fixed answers: standard output, exit code, and what it asked.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_api::proto::admin::{
    CniAddRequest, CniAddResponse, CniCheckRequest, CniCheckResponse, CniDeleteRequest, CniDeleteResponse, Sandbox,
    cni_server,
};
use serde_json::{Value, json};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

static SOCKETS: AtomicU32 = AtomicU32::new(0);

/// Answers questions from the back of a list, and the first for ever.
#[derive(Clone)]
struct Scripted {
    answers: Arc<Mutex<Vec<Result<(), Status>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    fn answer(&self, question: String) -> Result<(), Status> {
        self.asked.lock().expect("no test panics while it holds this").push(question);
        let mut answers = self.answers.lock().expect("no test panics while it holds this");
        if answers.len() > 1 { answers.pop().expect("more than one") } else { answers[0].clone() }
    }
}

fn shown(verb: &str, sandbox: Option<Sandbox>, addresses: &[String]) -> String {
    let Sandbox { container_id, network_namespace_path, namespace, name, uid } = sandbox.expect("a sandbox");
    format!("{verb} {container_id} {network_namespace_path} {namespace}/{name} {uid} {}", addresses.join(","))
}

#[tonic::async_trait]
impl cni_server::Cni for Scripted {
    async fn add(&self, request: Request<CniAddRequest>) -> Result<Response<CniAddResponse>, Status> {
        let CniAddRequest { sandbox, addresses } = request.into_inner();
        self.answer(shown("add", sandbox, &addresses))?;
        Ok(Response::new(CniAddResponse { enrolled: true, reason: String::new() }))
    }

    async fn check(&self, request: Request<CniCheckRequest>) -> Result<Response<CniCheckResponse>, Status> {
        self.answer(shown("check", request.into_inner().sandbox, &[]))?;
        Ok(Response::new(CniCheckResponse {}))
    }

    async fn delete(&self, request: Request<CniDeleteRequest>) -> Result<Response<CniDeleteResponse>, Status> {
        self.answer(shown("delete", request.into_inner().sandbox, &[]))?;
        Ok(Response::new(CniDeleteResponse {}))
    }
}

/// An agent's socket, with or without somebody behind it.
struct Agent {
    socket: PathBuf,
    script: Scripted,
}

impl Agent {
    fn new(answers: Vec<Result<(), Status>>) -> Self {
        let agent = Self::absent(answers);
        agent.serve();
        agent
    }

    fn absent(answers: Vec<Result<(), Status>>) -> Self {
        let number = SOCKETS.fetch_add(1, Ordering::Relaxed);
        let socket = std::env::temp_dir().join(format!("mesh-cni-{}-{number}.sock", std::process::id()));
        let script = Scripted { answers: Arc::new(Mutex::new(answers)), asked: Arc::default() };
        Self { socket, script }
    }

    /// Until the process ends.
    fn serve(&self) {
        let listener = std::os::unix::net::UnixListener::bind(&self.socket).expect("a socket of the test's own");
        listener.set_nonblocking(true).expect("a listener");
        let script = self.script.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).expect("a listener");
                let server = tonic::transport::Server::builder().add_service(cni_server::CniServer::new(script));
                server.serve_with_incoming(UnixListenerStream::new(listener)).await.expect("it serves");
            });
        });
    }

    fn asked(&self) -> Vec<String> {
        self.script.asked.lock().expect("no test panics while it holds this").clone()
    }

    fn call(&self, command: &str, namespace: &str, version: &str) -> Said {
        self.call_with(command, namespace, &self.configuration(version))
    }

    fn configuration(&self, version: &str) -> String {
        let result = result(version);
        json!({"cniVersion": version, "name": "pods", "type": "mesh-cni", "socket": self.socket,
            "excludeNamespaces": ["kube-system"], "prevResult": result})
        .to_string()
    }

    fn call_with(&self, command: &str, namespace: &str, configuration: &str) -> Said {
        let begun = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_mesh-cni"))
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", format!("/proc/{}/ns/net", std::process::id()))
            .env("CNI_ARGS", format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;K8S_POD_UID=u1"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        child.stdin.take().expect("a pipe").write_all(configuration.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        Said {
            is_success: output.status.success(),
            text: String::from_utf8(output.stdout).expect("text"),
            took: begun.elapsed(),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// As the plug-in before says it, with fields that are not ours.
fn result(version: &str) -> Value {
    json!({"cniVersion": version, "interfaces": [{"name": "eth0", "sandbox": "/run/netns/a", "mac": "02:00:00:00:00:01"}],
        "ips": [{"interface": 0, "address": "10.244.1.7/24", "gateway": "10.244.1.1"}],
        "routes": [{"dst": "0.0.0.0/0", "priority": 4294967295_u32}], "dns": {}, "odd": [1, null, "x"]})
}

#[derive(Debug)]
struct Said {
    is_success: bool,
    text: String,
    took: Duration,
}

impl Said {
    fn value(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {:?}", self.text))
    }

    fn error(&self, code: u32) -> String {
        assert!(!self.is_success, "{self:?}");
        let value = self.value();
        assert_eq!(value["code"], code, "{value}");
        value["msg"].as_str().expect("a message").to_owned()
    }
}

fn status(code: Code) -> Result<(), Status> {
    Err(Status::new(code, "because"))
}

#[test]
fn the_result_of_the_plug_ins_before_is_passed_on_when_the_pod_is_steered() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let agent = Agent::new(vec![Ok(())]);
        let said = agent.call("ADD", "shop", version);
        assert!(said.is_success, "{said:?}");
        assert_eq!(said.value(), result(version));
        let path = format!("/proc/{}/ns/net", std::process::id());
        assert_eq!(agent.asked(), [format!("add c1 {path} shop/web u1 10.244.1.7")]);
    }
}

#[test]
fn what_the_agent_refuses_does_not_start_and_the_event_says_why() {
    for code in [Code::FailedPrecondition, Code::Internal, Code::InvalidArgument, Code::AlreadyExists] {
        for namespace in ["shop", "kube-system"] {
            let agent = Agent::new(vec![status(code)]);
            let said = agent.call("ADD", namespace, "1.0.0");
            assert_eq!(said.error(100), "mesh: the agent of this node refuses the pod: because");
            assert_eq!((said.value()["cniVersion"].as_str(), agent.asked().len()), (Some("1.0.0"), 1));
        }
    }
}

#[test]
fn an_agent_that_is_replaced_is_asked_again() {
    let agent = Agent::new(vec![Ok(()), status(Code::Unavailable), status(Code::Unavailable)]);
    assert!(agent.call("ADD", "shop", "1.0.0").is_success);
    assert_eq!(agent.asked().len(), 3);

    let agent = Agent::absent(vec![Ok(())]);
    let said = std::thread::scope(|scope| {
        let asking = scope.spawn(|| agent.call("ADD", "shop", "1.0.0"));
        std::thread::sleep(Duration::from_millis(500));
        agent.serve();
        asking.join().unwrap()
    });
    assert!(said.is_success, "{said:?}");
}

#[test]
fn without_an_agent_only_pods_of_excluded_namespaces_start() {
    let agent = Agent::absent(vec![Ok(())]);
    let said = agent.call("ADD", "kube-system", "0.3.1");
    assert!(said.is_success, "{said:?}");
    assert_eq!(said.value(), result("0.3.1"));
    assert!(said.took < Duration::from_secs(5), "{said:?}");

    let said = agent.call("ADD", "shop", "0.3.1");
    let reason = said.error(11);
    for part in ["does not answer", "mesh-cni-", "No such file", "kube-system"] {
        assert!(reason.contains(part), "{reason}");
    }
    assert!((5..30).contains(&said.took.as_secs()), "{said:?}");
}

#[test]
fn an_agent_that_cannot_ask_the_api_server_starts_only_pods_of_excluded_namespaces() {
    let agent = Agent::new(vec![status(Code::Unavailable)]);
    assert!(agent.call("ADD", "kube-system", "1.0.0").is_success);
    assert!(agent.call("ADD", "shop", "1.0.0").error(11).contains("because"));
    assert!(agent.asked().len() > 2, "{:?}", agent.asked());
}

#[test]
fn the_end_of_a_pod_is_told_and_never_fails() {
    let answers = [Ok(()), status(Code::NotFound), status(Code::Internal), status(Code::Unavailable)];
    for answer in answers {
        let agent = Agent::new(vec![answer]);
        let said = agent.call("DEL", "shop", "1.0.0");
        assert!(said.is_success && said.text.is_empty(), "{said:?}");
        assert!(agent.asked()[0].starts_with("delete c1 "), "{:?}", agent.asked());
    }
    let said = Agent::absent(vec![Ok(())]).call("DEL", "shop", "1.0.0");
    assert!(said.is_success && said.took < Duration::from_secs(5), "{said:?}");
}

#[test]
fn a_check_says_whether_the_pod_is_still_steered() {
    let said = Agent::new(vec![Ok(())]).call("CHECK", "shop", "1.0.0");
    assert!(said.is_success && said.text.is_empty(), "{said:?}");
    let said = Agent::new(vec![status(Code::NotFound)]).call("CHECK", "shop", "0.4.0");
    assert_eq!(said.error(100), "mesh: the agent of this node refuses the pod: the pod is to be enrolled and is not");
    let absent = Agent::absent(vec![Ok(())]);
    assert!(absent.call("CHECK", "shop", "1.0.0").error(11).contains("does not answer"));
    assert!(absent.call("CHECK", "kube-system", "1.0.0").is_success);
}

#[test]
fn versions_are_told_and_verbs_are_only_of_theirs() {
    let agent = Agent::absent(vec![Ok(())]);
    let said = agent.call_with("VERSION", "", r#"{"cniVersion": "1.0.0"}"#);
    let expected = json!({"cniVersion": "1.0.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
    assert_eq!(said.value(), expected);

    assert!(agent.call("STATUS", "", "1.1.0").is_success);
    assert!(agent.call("GC", "", "1.1.0").is_success);
    for (command, version) in [("STATUS", "1.0.0"), ("GC", "0.4.0"), ("CHECK", "0.3.1")] {
        agent.call(command, "shop", version).error(1);
    }
    for version in ["0.1.0", "0.2.0", "2.0.0", ""] {
        let reason = agent.call("ADD", "shop", version).error(1);
        assert!(reason.contains("is not known"), "{reason}");
    }
}

#[test]
fn what_is_malformed_is_refused_with_its_code() {
    let agent = Agent::new(vec![Ok(())]);
    agent.call_with("ADD", "shop", "").error(6);
    agent.call_with("ADD", "shop", "{").error(6);
    agent.call_with("UPDATE", "shop", &agent.configuration("1.0.0")).error(4);
    let mut lone: Value = serde_json::from_str(&agent.configuration("1.0.0")).unwrap();
    lone.as_object_mut().unwrap().remove("prevResult");
    let reason = agent.call_with("ADD", "shop", &lone.to_string()).error(7);
    assert!(reason.contains("there is no prevResult"), "{reason}");
    assert!(agent.asked().is_empty());
}
