//! An agent with fixed answers on a Unix socket, and the real `meshctl` run against it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use mesh_api::proto::admin::{
    self, EnrolRequest, ExplainRequest,
    enrolment_server::{Enrolment, EnrolmentServer},
    inspect_server::{Inspect, InspectServer},
};
use tokio::{net::UnixListener, sync::oneshot};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::rows;

/// What the agent was asked, for tests to compare.
#[derive(Debug, Default)]
pub struct Asked {
    pub enrolled: Vec<EnrolRequest>,
    pub withdrawn: Vec<String>,
    pub explained: Vec<ExplainRequest>,
    pub filters: Vec<String>,
}

/// The agent; gone, with its socket, when dropped.
pub struct Agent {
    directory: PathBuf,
    pub asked: Arc<Mutex<Asked>>,
    serving: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

/// What one run of `meshctl` printed.
#[derive(Debug)]
pub struct Printed {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Agent {
    /// Serves both services; the socket accepts from now on.
    pub fn start() -> Self {
        let directory = empty_directory();
        let asked = Arc::new(Mutex::new(Asked::default()));
        let listener = std::os::unix::net::UnixListener::bind(directory.join("admin.sock")).expect("a new directory");
        let (stop, stopped) = oneshot::channel();
        let fixed = asked.clone();
        let thread = std::thread::spawn(move || serve(listener, fixed, stopped));
        Self { directory, asked, serving: Some((stop, thread)) }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("admin.sock")
    }

    /// Runs `meshctl` with words, at this agent's socket.
    pub fn run(&self, words: &[&str]) -> Printed {
        run_at(&self.socket(), words)
    }

    /// Ends as a killed agent does: nobody listens, the socket's name stays.
    pub fn kill(&mut self) {
        if let Some((stop, thread)) = self.serving.take() {
            drop(stop);
            thread.join().expect("serving does not panic");
        }
    }
}

fn serve(listener: std::os::unix::net::UnixListener, asked: Arc<Mutex<Asked>>, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        listener.set_nonblocking(true).expect("a socket");
        let incoming = UnixListenerStream::new(UnixListener::from_std(listener).expect("a listener"));
        let served = Server::builder()
            .add_service(EnrolmentServer::new(Fixed(asked.clone())))
            .add_service(InspectServer::new(Fixed(asked)))
            .serve_with_incoming(incoming);
        tokio::select! {
            ended = served => ended.expect("it serves until it is stopped"),
            _ = stopped => {}
        }
    });
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        // A test that failed has said so already.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A new directory of this process's own; short, because a socket's path has at most 107 bytes.
pub fn empty_directory() -> PathBuf {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("meshctl-{}-{number}", std::process::id()));
    std::fs::create_dir(&directory).expect("a name of our own");
    directory
}

/// The real binary, ready to be started at `socket`.
pub fn meshctl(socket: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.args(words).arg("--socket").arg(socket);
    command
}

/// Runs `meshctl` at a socket to its end.
pub fn run_at(socket: &Path, words: &[&str]) -> Printed {
    let output = meshctl(socket, words).output().expect("cargo has built it");
    Printed {
        code: output.status.code().expect("it ends by itself"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

struct Fixed(Arc<Mutex<Asked>>);

impl Fixed {
    fn note(&self, note: impl FnOnce(&mut Asked)) {
        note(&mut self.0.lock().expect("no test panics while noting"));
    }
}

#[tonic::async_trait]
impl Enrolment for Fixed {
    type WatchStream = tokio_stream::Empty<Result<admin::PodEvent, Status>>;

    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<admin::EnrolResponse>, Status> {
        let pod = request.into_inner();
        if !pod.cgroup_path.starts_with("/sys/fs/cgroup/kubepods/") {
            return Err(Status::invalid_argument("cgroup_path: /other is not below /sys/fs/cgroup/kubepods"));
        }
        self.note(|asked| asked.enrolled.push(pod));
        Ok(Response::new(admin::EnrolResponse {}))
    }

    async fn withdraw(
        &self,
        request: Request<admin::WithdrawRequest>,
    ) -> Result<Response<admin::WithdrawResponse>, Status> {
        let uid = request.into_inner().uid;
        if uid == "unknown" {
            return Err(Status::not_found("uid: no pod is enrolled as unknown"));
        }
        self.note(|asked| asked.withdrawn.push(uid));
        Ok(Response::new(admin::WithdrawResponse {}))
    }

    async fn list(&self, _: Request<admin::ListRequest>) -> Result<Response<admin::ListResponse>, Status> {
        Ok(Response::new(admin::ListResponse { pods: rows::pods() }))
    }

    async fn watch(&self, _: Request<admin::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }
}

#[tonic::async_trait]
impl Inspect for Fixed {
    async fn workloads(
        &self,
        _: Request<admin::WorkloadsRequest>,
    ) -> Result<Response<admin::WorkloadsResponse>, Status> {
        Ok(Response::new(admin::WorkloadsResponse { workloads: rows::workloads() }))
    }

    async fn services(&self, _: Request<admin::ServicesRequest>) -> Result<Response<admin::ServicesResponse>, Status> {
        Ok(Response::new(admin::ServicesResponse { services: rows::services() }))
    }

    async fn policies(&self, _: Request<admin::PoliciesRequest>) -> Result<Response<admin::PoliciesResponse>, Status> {
        Ok(Response::new(admin::PoliciesResponse { policies: rows::policies() }))
    }

    async fn sockets(&self, _: Request<admin::SocketsRequest>) -> Result<Response<admin::SocketsResponse>, Status> {
        Ok(Response::new(admin::SocketsResponse { sockets: rows::sockets() }))
    }

    async fn certificates(
        &self,
        _: Request<admin::CertificatesRequest>,
    ) -> Result<Response<admin::CertificatesResponse>, Status> {
        Ok(Response::new(admin::CertificatesResponse { certificates: rows::certificates() }))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<admin::ExplainResponse>, Status> {
        let question = request.into_inner();
        let answer = rows::explained(&question.source);
        self.note(|asked| asked.explained.push(question));
        answer.map(Response::new)
    }

    async fn check(&self, _: Request<admin::CheckRequest>) -> Result<Response<admin::CheckResponse>, Status> {
        Ok(Response::new(admin::CheckResponse { checks: rows::checks() }))
    }

    async fn status(&self, _: Request<admin::StatusRequest>) -> Result<Response<admin::StatusResponse>, Status> {
        Ok(Response::new(rows::status()))
    }

    async fn log(&self, request: Request<admin::LogRequest>) -> Result<Response<admin::LogResponse>, Status> {
        let filter = request.into_inner().filter;
        if filter == "info,,=" {
            return Err(Status::invalid_argument("filter: invalid directive"));
        }
        let now = if filter.is_empty() { "info".to_owned() } else { filter.clone() };
        self.note(|asked| asked.filters.push(filter));
        Ok(Response::new(admin::LogResponse { filter: now }))
    }
}
