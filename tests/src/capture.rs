//! A packet capture on the link between the nodes, read while it runs. It answers only for what tcpdump saw, hence
//! [`Capture::settle`], which also fails when the kernel dropped a packet.

use std::{
    collections::{HashMap, HashSet},
    io::{BufReader, Read},
    net::{IpAddr, UdpSocket},
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use memchr::memmem;
use rustix::process::Signal;

use crate::{
    eventually::{LIMIT, eventually},
    packets::{Flow, LinkType, Packet, tls_version},
    process::{Place, Process},
};

/// Discard (RFC 863): our own datagrams that mark a moment.
const MOMENT_PORT: u16 = 9;
/// tcpdump's ring in KiB: a second of a gigabit.
const RING: &str = "131072";
/// Kept of the beginning of a flow: a ServerHello with a post-quantum key share.
const HEAD: usize = 4096;
/// What of a packet is captured where no marker is looked for: a ServerHello with a hybrid key share fits. Bulk passes a veth
/// in packets of 64 KiB, which would overrun the ring.
const HELLO: &str = "1600";
const WHOLE: &str = "0";
/// How long a capture of a few hundred MB may take to be looked at.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// A running capture.
pub struct Capture {
    place: Place,
    tcpdump: Mutex<Process>,
    seen: Arc<Mutex<Seen>>,
}

/// What has passed so far.
#[derive(Default)]
struct Seen {
    flows: HashMap<Flow, Sent>,
    markers: Vec<(Vec<u8>, Vec<Flow>)>,
    moments: HashSet<u64>,
    is_broken: Option<String>,
}

/// What one end of a connection sent.
#[derive(Default)]
struct Sent {
    bytes: u64,
    head: Vec<u8>,
}

impl Capture {
    /// Starts capturing in `place`, looking for `markers` in every TCP payload.
    ///
    /// # Panics
    /// When tcpdump does not start.
    pub(crate) fn start(place: &Place, log: &Path, markers: &[&str]) -> Self {
        let mut command = place.command("tcpdump");
        let length = if markers.is_empty() { HELLO } else { WHOLE };
        command.args(["-i", "any", "-Q", "in", "-B", RING, "-s", length, "-Z", "root", "-U", "-w", "-"]);
        command.arg("tcp or udp port 9");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(crate::process::append(log));
        let mut tcpdump = Process::spawn(command, log);
        let output = tcpdump.child().stdout.take().expect("a pipe");
        let markers = markers.iter().map(|marker| (marker.as_bytes().to_vec(), Vec::new())).collect();
        let seen = Arc::new(Mutex::new(Seen { markers, ..Seen::default() }));
        let shared = Arc::clone(&seen);
        thread::spawn(move || {
            let end = read(output, &shared).err().map_or("tcpdump ended".to_owned(), |error| error.to_string());
            shared.lock().expect("no panic under this lock").is_broken = Some(end);
        });
        let capture = Self { place: place.clone(), tcpdump: Mutex::new(tcpdump), seen };
        eventually("tcpdump listens", LIMIT, || {
            if capture.log().contains("listening on") { Ok(()) } else { Err(capture.log()) }
        });
        capture.settle();
        capture
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic under this lock")
    }

    fn log(&self) -> String {
        self.tcpdump.lock().expect("no panic under this lock").log()
    }

    /// Waits until everything that was sent before this call has been looked at.
    ///
    /// # Panics
    /// When the capture ended, or the kernel dropped packets of it.
    pub fn settle(&self) {
        let moment = fastrand::u64(..);
        // Over loopback, which `-i any` sees as well.
        let socket = self.place.namespace.inside(|| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        eventually("the capture has seen everything", SETTLE_LIMIT, || {
            socket.send_to(&moment.to_be_bytes(), ("127.0.0.1", MOMENT_PORT)).expect("loopback is up");
            let seen = self.seen();
            if let Some(reason) = &seen.is_broken {
                panic!("the capture ended: {reason}");
            }
            if seen.moments.contains(&moment) { Ok(()) } else { Err("the moment has not passed".to_owned()) }
        });
        self.assert_nothing_dropped();
    }

    fn assert_nothing_dropped(&self) {
        let before = self.log().matches("dropped by kernel").count();
        self.signal(Signal::USR1); // print statistics
        eventually("tcpdump prints its statistics", LIMIT, || {
            let log = self.log();
            let reports: Vec<&str> = log.split(',').filter(|part| part.contains("dropped by kernel")).collect();
            if reports.len() <= before {
                return Err("nothing yet".to_owned());
            }
            for report in reports {
                assert!(report.trim_start().starts_with("0 "), "the capture is not complete: {report}");
            }
            Ok(())
        });
    }

    fn signal(&self, signal: Signal) {
        self.tcpdump.lock().expect("no panic under this lock").signal(signal);
    }

    /// Holds that nothing but tunnels passed: no payload of `members` on another port than 15008, all sessions TLS 1.3.
    ///
    /// # Panics
    /// When something else passed, or no tunnel at all, or the kernel dropped packets of the capture.
    pub fn shows_only_tunnels(&self, members: &[IpAddr]) {
        self.settle();
        assert_eq!(self.payload_outside(15008, members), [], "payload outside tunnels");
        let versions = self.tls_versions(15008);
        assert!(!versions.is_empty(), "no tunnel passed the link");
        assert!(versions.iter().all(|(_, version)| *version == Some(0x0304)), "{versions:?}");
    }

    /// TCP flows with payload to or from one of `addresses`, neither port being `port`, and their bytes.
    pub fn payload_outside(&self, port: u16, addresses: &[IpAddr]) -> Vec<(Flow, u64)> {
        let seen = self.seen();
        let outside = |(flow, _): &(&Flow, &Sent)| !flow.has_port(port) && flow.has_address(addresses);
        let mut flows: Vec<_> = seen.flows.iter().filter(outside).map(|(flow, sent)| (*flow, sent.bytes)).collect();
        flows.sort();
        flows
    }

    /// Bytes of TCP payload from or to `port`.
    pub fn payload_on(&self, port: u16) -> u64 {
        self.seen().flows.iter().filter(|(flow, _)| flow.has_port(port)).map(|(_, sent)| sent.bytes).sum()
    }

    /// The flows in which a marker passed that was given at the start.
    ///
    /// # Panics
    /// When it was not given.
    pub fn flows_with(&self, marker: &str) -> Vec<Flow> {
        let seen = self.seen();
        let found = seen.markers.iter().find(|(bytes, _)| bytes == marker.as_bytes());
        found.expect("a marker is searched for only when known from the start").1.clone()
    }

    /// What servers on `port` answered their clients' hellos with: 0x0304 is TLS 1.3, `None` no TLS at all.
    pub fn tls_versions(&self, port: u16) -> Vec<(Flow, Option<u16>)> {
        let seen = self.seen();
        let from_server = seen.flows.iter().filter(|(flow, _)| flow.source.port() == port);
        from_server.map(|(flow, sent)| (*flow, tls_version(&sent.head))).collect()
    }
}

/// Reads pcap records until tcpdump ends.
fn read(output: impl Read, seen: &Mutex<Seen>) -> anyhow::Result<()> {
    let mut output = BufReader::with_capacity(1 << 20, output);
    let mut header = [0; 24];
    output.read_exact(&mut header)?;
    let number = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
    let link = LinkType::of(number(&header[20..24])).ok_or_else(|| anyhow::anyhow!("an unknown link type"))?;
    let mut record = [0; 16];
    let mut frame = Vec::new();
    loop {
        output.read_exact(&mut record)?;
        frame.resize(number(&record[8..12]) as usize, 0);
        output.read_exact(&mut frame)?;
        if let Some(packet) = link.packet(&frame) {
            seen.lock().expect("no panic under this lock").take(&packet);
        }
    }
}

impl Seen {
    fn take(&mut self, packet: &Packet<'_>) {
        match packet {
            Packet::Udp(flow, payload) if flow.destination.port() == MOMENT_PORT => {
                self.moments.extend((*payload).try_into().ok().map(u64::from_be_bytes));
            }
            Packet::Udp(..) | Packet::Tcp(_, []) => {}
            Packet::Tcp(flow, payload) => {
                let sent = self.flows.entry(*flow).or_default();
                sent.bytes += payload.len() as u64;
                let wanted = HEAD.saturating_sub(sent.head.len()).min(payload.len());
                sent.head.extend(&payload[..wanted]);
                for (marker, flows) in &mut self.markers {
                    if !flows.contains(flow) && memmem::find(payload, marker).is_some() {
                        flows.push(*flow);
                    }
                }
            }
        }
    }
}
