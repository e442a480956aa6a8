//! A registry for tests: takes everything, remembers what it was asked, and refuses what it is told to.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use mesh_api::proto::admin::{Pod as PodMessage, enrol_request::NetworkNamespace as Source};
use tokio::sync::broadcast;

use super::{EnrolError, Enrolment, requests::Request};
use crate::{drain::Drain, kernel::NetworkNamespace};

/// What it was asked, and what it holds.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// `enrol UID PROBES FAIL_OPEN`, `withdraw UID`, `fail-open UID BOOL`.
    pub(crate) asked: Vec<String>,
    pub(crate) pods: Vec<PodMessage>,
    /// Answers to the next enrolments.
    pub(crate) refusals: VecDeque<EnrolError>,
}

impl Script {
    fn enrol(&mut self, request: &mesh_api::proto::admin::EnrolRequest) -> Result<(), EnrolError> {
        let ports: Vec<String> = request.probe_ports.iter().map(u32::to_string).collect();
        self.asked.push(format!("enrol {} [{}] {}", request.uid, ports.join(","), request.fail_open));
        if let Some(refusal) = self.refusals.pop_front() {
            return Err(refusal);
        }
        let path = match request.network_namespace.as_ref().expect("a namespace") {
            Source::NetworkNamespacePath(path) => path.clone(),
            Source::Pid(pid) => format!("/proc/{pid}/ns/net"),
        };
        let cookie = NetworkNamespace::open(path.as_ref()).expect("a network namespace").cookie();
        self.pods.push(PodMessage {
            uid: request.uid.clone(),
            network_namespace_cookie: cookie,
            state: "ready".into(),
            ..PodMessage::default()
        });
        Ok(())
    }
}

impl Enrolment {
    /// Runs until the last clone is dropped.
    pub(crate) fn scripted() -> (Self, Arc<Mutex<Script>>) {
        let (enrolment, mut requests) = Self::channel();
        let script = Arc::new(Mutex::new(Script::default()));
        let shared = script.clone();
        Drain::default().spawn(async move {
            while let Some(request) = requests.recv().await {
                let mut script = shared.lock().unwrap();
                match request {
                    Request::Enrol(request, _, answer) => drop(answer.send(script.enrol(&request))),
                    Request::Withdraw(uid, answer) => {
                        script.asked.push(format!("withdraw {uid}"));
                        script.pods.retain(|pod| pod.uid != uid);
                        drop(answer.send(Ok(())));
                    }
                    Request::SetFailOpen(uid, asks, answer) => {
                        script.asked.push(format!("fail-open {uid} {asks}"));
                        drop(answer.send(Ok(())));
                    }
                    Request::List(answer) => drop(answer.send((script.pods.clone(), broadcast::channel(1).1))),
                    Request::HandOver(..) => {}
                }
            }
        });
        (enrolment, script)
    }
}
