//! CPU time and memory, as the kernel accounts them.

use std::{fs, time::Duration};

/// Some processes, by number.
#[derive(Debug, Default)]
pub struct Processes(pub Vec<u32>);

impl Processes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// User and system time of all threads so far.
    ///
    /// # Panics
    /// When one of them has ended.
    pub fn cpu(&self) -> Duration {
        self.0.iter().map(|id| cpu_of(*id)).sum()
    }

    /// Resident memory of each, in MiB.
    ///
    /// # Panics
    /// When one of them has ended.
    pub fn memory_mib(&self) -> Vec<f64> {
        self.0.iter().map(|id| resident(*id) as f64 / f64::from(1 << 20)).collect()
    }
}

/// Busy time of all processors so far.
///
/// # Panics
/// Without procfs.
pub fn machine_cpu() -> Duration {
    let stat = fs::read_to_string("/proc/stat").expect("procfs");
    let fields: Vec<u64> =
        stat.lines().next().into_iter().flat_map(str::split_whitespace).filter_map(|f| f.parse().ok()).collect();
    // user nice system idle iowait irq softirq: all but idle and waiting.
    ticks(fields[0] + fields[1] + fields[2] + fields[5] + fields[6])
}

fn cpu_of(id: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).expect("a proxy that runs during the whole benchmark");
    // The name, in parentheses, may hold blanks; user and system time are fields 14 and 15.
    let after_name = stat.rsplit_once(')').expect("a name").1;
    let fields: Vec<u64> = after_name.split_whitespace().skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
    ticks(fields.iter().sum())
}

fn ticks(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Resident memory of a process, bytes.
///
/// # Panics
/// When it does not run.
pub fn resident(id: u32) -> u64 {
    memory(id, "VmRSS:")
}

/// The same; its [`peak`] begins anew.
///
/// # Panics
/// When it does not run.
pub fn begin_peak(id: u32) -> u64 {
    // Source: Linux, Documentation/filesystems/proc.rst, clear_refs.
    fs::write(format!("/proc/{id}/clear_refs"), "5").expect("it runs");
    resident(id)
}

/// The most resident memory that a process has had since [`begin_peak`], bytes.
///
/// # Panics
/// When it does not run.
pub fn peak(id: u32) -> u64 {
    memory(id, "VmHWM:")
}

fn memory(id: u32, row: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(row)).expect("a process with memory");
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
}
