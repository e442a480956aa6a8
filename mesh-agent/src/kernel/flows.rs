//! Live connections, map fill and program run times, as `meshctl` and the metrics show them. Only reads.

use std::io;
use std::os::fd::BorrowedFd;

use mesh_common::abi::{DirectFlow, Flow, Plain};

use super::link::Hook;
use super::{Kernel, KernelError, sys};

/// One end of a live connection of an enrolled pod. The agent's own sockets are not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRow {
    /// The socket's cookie: the same as [`super::diag::TcpSocket::cookie`].
    pub socket: u64,
    /// What the hooks know about it.
    pub flow: Flow,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapFill {
    /// The map.
    pub name: &'static str,
    /// Entries in it.
    pub entries: u64,
    /// Entries it can hold.
    pub capacity: u64,
    /// Entries of the agent's that it had no room for. What the hooks write is counted by them.
    pub refused: u64,
}

/// What a program cost so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramRuns {
    /// The program.
    pub name: &'static str,
    /// How often it ran; 0 unless `kernel.bpf_stats_enabled` is set.
    pub runs: u64,
    /// Time it took, in ns.
    pub run_time_ns: u64,
}

/// Start of `struct bpf_prog_info`, up to the run counts.
#[repr(C)]
#[derive(Clone, Copy)]
struct ProgramInfo {
    /// Fields up to `run_time_ns` that are not read here.
    before: [u64; 24],
    run_time_ns: u64,
    run_count: u64,
}
// SAFETY: 64-bit integers only, no padding.
unsafe impl Plain for ProgramInfo {}

impl Kernel {
    /// Every live connection of enrolled pods, one row per end on this node.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn flows(&self) -> Result<Vec<FlowRow>, KernelError> {
        let flows = self.maps.flows.entries().map_err(|source| KernelError::system("reading FLOWS", source))?;
        let direct = self.maps.direct.entries().map_err(|source| KernelError::system("reading DIRECT", source))?;
        let direct = direct.into_iter().map(|(_, direct)| direct).filter(DirectFlow::is_established);
        let direct = direct.map(|DirectFlow { socket, flow, .. }| FlowRow { socket, flow });
        Ok(flows.into_iter().map(|(socket, flow)| FlowRow { socket, flow }).chain(direct).collect())
    }

    /// How full each map is; O(entries).
    ///
    /// # Errors
    /// A map could not be read.
    pub fn map_fill(&self) -> Result<Vec<MapFill>, KernelError> {
        let maps = &self.maps;
        let rows = [
            ("PODS", maps.pods.count(), maps.pods.refused()),
            ("PODIP", maps.addresses.count(), maps.addresses.refused()),
            ("CGROUPS", maps.cgroups.count(), maps.cgroups.refused()),
            ("PROBES", maps.probes.count(), maps.probes.refused()),
            ("LISTEN", maps.listen.count_keys(), maps.listen.refused()),
            ("POLICY", maps.policy.count(), maps.policy.refused()),
            ("SERVICES", maps.services.count(), maps.services.refused()),
            ("BACKENDS", maps.backends.count(), maps.backends.refused()),
            ("PENDING", maps.pending.count(), maps.pending.refused()),
            ("TICKET", maps.tickets.count(), maps.tickets.refused()),
            ("DIRECT", maps.direct.count(), maps.direct.refused()),
            ("FLOWS", maps.flows.count(), maps.flows.refused()),
        ];
        let row = |(name, entries, refused): (&'static str, io::Result<u64>, u64)| {
            let entries = entries.map_err(|source| KernelError::system(format!("reading {name}"), source))?;
            Ok(MapFill { name, entries, capacity: maps.capacity(name).unwrap_or(0).into(), refused })
        };
        rows.into_iter().map(row).collect()
    }

    /// Runs and run time of each program.
    ///
    /// # Errors
    /// A program could not be asked.
    pub fn programs(&self) -> Result<Vec<ProgramRuns>, KernelError> {
        let row = |(hook, program): (Hook, BorrowedFd<'_>)| {
            let name = hook.program();
            let info: ProgramInfo = sys::object_info(program)
                .map_err(|source| KernelError::system(format!("asking program {name}"), source))?;
            Ok(ProgramRuns { name, runs: info.run_count, run_time_ns: info.run_time_ns })
        };
        self.programs.iter().map(row).collect()
    }
}
