//! The control daemon of a mesh: in a network namespace of its own, on a folder of manifests that stories write.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
};

use rustix::process::Signal;

use crate::{
    addresses::{CONTROL, Pair},
    daemon::Daemon,
    link::Link,
    namespace::Namespace,
    process::{Place, binary},
    slot::Slot,
    web::{self, Metrics},
};

const PORT: u16 = 15012;
const METRICS_PORT: u16 = 15014;
const DEBUG: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15013);

/// The control daemon.
pub struct Control {
    place: Place,
    addresses: Pair,
    directory: PathBuf,
    arguments: Vec<String>,
    daemon: Daemon,
}

impl Control {
    pub(crate) fn create(slot: &Slot, link: &Link, arguments: Vec<String>) -> Self {
        let namespace = Namespace::create(slot.name("control"));
        let place = Place { namespace, cgroup: slot.cgroup().child("control").create() };
        let addresses = Pair::new(slot.number(), CONTROL, 1);
        link.join(&place, "control", addresses);
        let directory = slot.directory().join("control");
        for name in ["manifests", "state", "tokens", "new"] {
            fs::create_dir_all(directory.join(name)).expect("a directory for control");
        }
        let daemon = Daemon::new("the control daemon", directory.join("control.log"));
        Self { place, addresses, directory, arguments, daemon }
    }

    /// Gives a node its token; the file's path is what the agent is started with.
    ///
    /// # Panics
    /// When the slot's tmpfs is full.
    pub fn admit(&self, node: &str) -> PathBuf {
        let token = format!("{:032x}", fastrand::u128(..));
        let all = self.directory.join("node-tokens");
        let mut lines = fs::read_to_string(&all).unwrap_or_default();
        lines += &format!("{node} {token}\n");
        write_secret(&all, &lines);
        let own = self.token(node);
        write_secret(&own, &token);
        own
    }

    /// The file with the token that [`Self::admit`] gave a node.
    pub fn token(&self, node: &str) -> PathBuf {
        self.directory.join("tokens").join(node)
    }

    /// Starts the daemon and waits until it serves.
    ///
    /// # Panics
    /// When it ends, or does not serve in time.
    pub fn start(&self) {
        self.start_with(&[]);
    }

    /// Starts the daemon with further arguments.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_with(&self, extra: &[String]) {
        let words = [self.words().as_slice(), extra].concat();
        self.daemon.start(&self.place, &words);
        self.daemon.is_ready(&self.place.namespace, self.metrics_address());
    }

    fn words(&self) -> Vec<String> {
        let shown = |name: &str| self.directory.join(name).display().to_string();
        let mut words = vec![
            binary("mesh-control").display().to_string(),
            "--config-dir".to_owned(),
            shown("manifests"),
            "--state-dir".to_owned(),
            shown("state"),
            "--listen".to_owned(),
            self.address().to_string(),
            "--metrics-address".to_owned(),
            self.metrics_address().to_string(),
            "--node-tokens".to_owned(),
            shown("node-tokens"),
        ];
        words.extend_from_slice(&self.arguments);
        words
    }

    /// Starts a second daemon on all that the first one has; how that ends.
    pub fn starts_again(&self) -> std::process::Output {
        self.place.run(&self.words())
    }

    /// Puts the daemon's wall clock off, like `+2h`: from its next start on, and at once if it was started so before.
    pub fn sets_clock(&self, offset: &str) {
        self.daemon.set_clock(offset);
    }

    /// From its next start on its clock is the machine's again.
    ///
    /// # Panics
    /// When it was not put off.
    pub fn forgets_clock(&self) {
        self.daemon.forget_clock();
    }

    /// Stops the daemon in its tracks (SIGSTOP).
    pub fn hang(&self) {
        self.daemon.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.daemon.signal(Signal::CONT);
    }

    /// Kills the daemon.
    pub fn kill(&self) {
        self.daemon.kill();
    }

    /// Where agents reach it.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.addresses.v4, PORT))
    }

    /// Where anybody reaches its metrics.
    pub fn metrics_address(&self) -> SocketAddr {
        SocketAddr::from((self.addresses.v4, METRICS_PORT))
    }

    /// The daemon's metrics.
    ///
    /// # Panics
    /// When it does not serve them.
    pub fn metrics(&self) -> Metrics {
        let answer = web::ask(&self.place.namespace, self.metrics_address(), "/metrics");
        Metrics::parse(&answer.expect("control serves metrics").body)
    }

    /// A page of its metrics port.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn page(&self, path: &str) -> Result<String, String> {
        let address = if path.starts_with("/debug/") { DEBUG } else { self.metrics_address() };
        Ok(web::ask(&self.place.namespace, address, path)?.body)
    }

    /// What the daemon says about each file of its folder.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn report(&self) -> Result<serde_json::Value, String> {
        let page = self.page("/debug/config")?;
        serde_json::from_str(&page).map_err(|error| format!("{error}: {page}"))
    }

    /// Runs `meshctl` beside the daemon, against its debug address.
    pub fn meshctl(&self, words: &[&str]) -> Output {
        let (program, address) = (binary("meshctl").display().to_string(), DEBUG.to_string());
        self.place.run(&[&[program.as_str()], words, &["--control", &address]].concat())
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.daemon.id()
    }

    /// Asks the running daemon for a step of a root rotation, or, without one, how far it is; what it says.
    ///
    /// # Errors
    /// It refuses, and says why.
    pub fn rotate(&self, step: Option<&str>) -> Result<String, String> {
        let state = self.state().display().to_string();
        let program = binary("mesh-control").display().to_string();
        let mut words = vec![program.as_str(), "rotate-root", "--state-dir", &state];
        words.extend(step.iter().flat_map(|step| ["--step", *step]));
        let output = self.place.run(&words);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// Where it runs.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The root certificate that it publishes.
    pub fn root(&self) -> PathBuf {
        self.directory.join("state/root-cert.pem")
    }

    /// Its state directory, with the CA key.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// The folder that it watches.
    pub fn manifests(&self) -> PathBuf {
        self.directory.join("manifests")
    }

    /// Puts a manifest into the watched folder, whole or not at all.
    ///
    /// # Panics
    /// When the folder has gone.
    pub fn write(&self, file: &str, manifest: &str) {
        let fresh = self.directory.join("new").join(file);
        fs::write(&fresh, manifest).expect("the slot's tmpfs has room");
        fs::rename(&fresh, self.manifests().join(file)).expect("both are in the slot's tmpfs");
    }

    /// Removes a manifest.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.manifests().join(file)).expect("a manifest that was written before");
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.daemon.log()
    }
}

fn write_secret(path: &Path, text: &str) {
    fs::write(path, text).expect("the slot's tmpfs has room");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("our own file");
}
