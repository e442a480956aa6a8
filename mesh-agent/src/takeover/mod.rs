//! Upgrade in place: an agent that starts beside one that runs takes over from it, and users do not notice. The two talk over a
//! Unix socket in the run directory, which needs no common network or process namespace. Never judges a connection.
//!
//! ```text
//!   successor                                             agent in charge
//!   hello (node, bpffs, cgroup) ------------------------>  the same node?
//!        <------------- welcome: its View, its certificates' names, its own listening sockets
//!   loads programs, holds the View, hears control,
//!   finds the certificates: the self-test
//!   ready ---------------------------------------------->  pods and tables stand still
//!        <------------- listening sockets of all pods, at most 250 a message
//!   writes its maps, puts its programs on the hooks
//!   done ----------------------------------------------->  accepts nothing more, lets go of lock, records, keys, cache
//!        <------------- yours
//!   accepts                                                GOAWAY, drains, ends
//!   withdraw UID --------------------------------------->  cuts the pod's connections, too
//! ```
//!
//! Until `done` the agent before is in charge: if the successor fails, or ends without a word, it puts its own programs back.
//! If the agent before ends instead, the successor goes on alone, as after a crash.

mod channel;
mod incumbent;
mod lock;
mod message;
mod predecessor;
mod self_test;
mod successor;

pub use channel::ChannelError;
pub use incumbent::{Holdings, InCharge, Incumbent};
pub use lock::{Lock, LockError};
pub use message::{About, SocketName};
pub use predecessor::Predecessors;
pub use self_test::{SelfTestError, Witnesses, self_test};
pub use successor::{Beginning, Candidate, TakeOverError, Taken, begin};

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Another version of what is said is refused: neither side guesses.
const PROTOCOL: u32 = 1;
/// An answer that needs nothing but the other process to run.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// From `ready` to `done`: pods cannot be enrolled meanwhile.
const FROZEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the agent in charge waits for its successor.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("takeover.sock")
}
