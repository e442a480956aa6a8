//! A long and lossy way, for kernels without netem: what crosses the link goes out of one TUN device, is held or lost here, and
//! comes back in by another one. Devices without a link layer, so that nobody has to answer for addresses that are not there.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    ffi::CString,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, poll};

use crate::namespace::Namespace;

const OUT: &str = "weather-out";
const BACK: &str = "weather-back";
/// Of the table that leads into the weather, and of the rules that lead there.
const TABLE: u32 = 15;
/// One packet in so many overtakes those before it,
const OVERTAKES: u32 = 20;
/// by this part of the delay.
const BY: u32 = 5;
/// Longer than any packet of a device with an MTU of 1500.
const PACKET: usize = 2048;
/// How soon the relay hears that it shall end.
const PATIENCE: Duration = Duration::from_millis(50);

/// Bad weather on a link; when dropped, the sky clears and what is still under way is lost.
pub struct Weather {
    namespace: Namespace,
    ends: Vec<String>,
    counts: Arc<Counts>,
    has_ended: Arc<AtomicBool>,
    relay: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    carried: AtomicU64,
    lost: AtomicU64,
}

impl Weather {
    /// Every packet that comes into `namespace` by one of `ends` takes `delay` longer; of a hundred, `loss` times a hundred are
    /// lost, and some overtake others.
    pub(crate) fn begin(namespace: &Namespace, ends: Vec<String>, loss: f64, delay: Duration) -> Self {
        let (out, back) = namespace.inside(|| (open(OUT), open(BACK)));
        for device in ["all", OUT, BACK] {
            namespace.set(&format!("ipv4/conf/{device}/rp_filter"), "0");
        }
        for device in [OUT, BACK] {
            namespace.ip(&format!("link set {device} up txqueuelen 10000"));
        }
        let (has_ended, counts) = (Arc::<AtomicBool>::default(), Arc::<Counts>::default());
        let mut relay = Relay { out, back, loss, delay, random: fastrand::Rng::with_seed(2), held: BinaryHeap::new() };
        let relay = thread::spawn({
            let (has_ended, counts) = (has_ended.clone(), counts.clone());
            move || relay.run(&has_ended, &counts)
        });
        let weather = Self { namespace: namespace.clone(), ends, counts, has_ended, relay: Some(relay) };
        namespace.ip_for_both(&format!("route add default dev {OUT} table {TABLE}\n"));
        weather.change_rules("add");
        weather
    }

    /// Packets so far: carried, and lost.
    pub fn packets(&self) -> (u64, u64) {
        (self.counts.carried.load(Relaxed), self.counts.lost.load(Relaxed))
    }

    fn change_rules(&self, verb: &str) {
        let rule = |end: &String| format!("rule {verb} iif {end} lookup {TABLE} priority {TABLE}\n");
        let rules: String = self.ends.iter().map(rule).collect();
        self.namespace.ip_for_both(&rules);
    }
}

impl Drop for Weather {
    fn drop(&mut self) {
        self.change_rules("del");
        self.has_ended.store(true, Relaxed);
        // The devices, and the routes through them, go with the relay's files.
        let has_panicked = self.relay.take().is_some_and(|relay| relay.join().is_err());
        assert!(!has_panicked || thread::panicking(), "the weather's relay panicked");
    }
}

/// A packet and when it is due; the earliest is the greatest.
type Held = Reverse<(Instant, u64, Vec<u8>)>;

struct Relay {
    out: File,
    back: File,
    loss: f64,
    delay: Duration,
    random: fastrand::Rng,
    held: BinaryHeap<Held>,
}

impl Relay {
    fn run(&mut self, has_ended: &AtomicBool, counts: &Counts) {
        let mut number = 0;
        while !has_ended.load(Relaxed) {
            let due =
                self.held.peek().map_or(PATIENCE, |Reverse((due, ..))| due.saturating_duration_since(Instant::now()));
            let limit = due.min(PATIENCE).try_into().expect("a short time");
            // Interrupted is as good as ready: both ends are looked at again.
            let _ = poll(&mut [PollFd::new(&self.out, PollFlags::IN)], Some(&limit));
            while let Some(packet) = self.next() {
                if self.random.f64() < self.loss {
                    counts.lost.fetch_add(1, Relaxed);
                    continue;
                }
                number += 1;
                let early = if self.random.u32(..OVERTAKES) == 0 { self.delay / BY } else { Duration::ZERO };
                self.held.push(Reverse((Instant::now() + self.delay - early, number, packet)));
            }
            while self.held.peek().is_some_and(|Reverse((due, ..))| *due <= Instant::now()) {
                let Some(Reverse((.., packet))) = self.held.pop() else { break };
                // What the router has no way for is lost, as it would be without us.
                let _ = self.back.write(&packet);
                counts.carried.fetch_add(1, Relaxed);
            }
        }
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut packet = vec![0; PACKET];
        match self.out.read(&mut packet) {
            Ok(length) => {
                packet.truncate(length);
                Some(packet)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("reading {OUT}: {error}"),
        }
    }
}

/// A TUN device of this name in the namespace of the calling thread; it is there as long as the file.
fn open(name: &str) -> File {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun is there for root");
    let name = CString::new(name).expect("a name");
    // SAFETY: plain integers and arrays; all zeroes is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request is an ifreq that lives through the call, as TUNSETIFF asks.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    assert_eq!(made, 0, "making a TUN device: {}", io::Error::last_os_error());
    rustix::io::ioctl_fionbio(&file, true).expect("a file that can be polled");
    file
}
