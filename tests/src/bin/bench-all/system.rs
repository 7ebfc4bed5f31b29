//! What Linux knows about a process: its CPU time, its memory, the cores that it may use.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The clock ticks of /proc/PID/stat; 100 on every architecture that Linux has there.
const TICKS_PER_SECOND: u64 = 100;

/// Which cores the program under test gets, and which everything else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cores {
    all: CpuSet,
    gateway: CpuSet,
    rest: CpuSet,
    /// Whether there were enough to tell the two apart.
    pub(crate) split: bool,
    pub(crate) count: usize,
}

impl Cores {
    /// The first core for the gateway, all others for the rest; one core alone is shared.
    pub(crate) fn of_this_machine() -> Self {
        let all = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        let usable: Vec<_> = (0..CpuSet::MAX_CPU)
            .filter(|cpu| all.is_set(*cpu))
            .collect();
        let (mut gateway, mut rest) = (all, all);
        let split = usable.len() > 1;
        if split {
            gateway = CpuSet::new();
            gateway.set(usable[0]);
            rest.unset(usable[0]);
        }
        Self {
            all,
            gateway,
            rest,
            split,
            count: usable.len(),
        }
    }

    /// Keeps this thread, and what it starts from now on, off the gateway's core.
    pub(crate) fn stay_off(&self) {
        let _ = sched_setaffinity(None, &self.rest);
    }

    /// Runs `start` so that the child process that it starts has the gateway's core alone, or may use all.
    ///
    /// A child inherits the cores of the thread that starts it. Where they cannot be set, nothing is bound.
    pub(crate) fn bound<T>(&self, alone: bool, start: impl FnOnce() -> T) -> T {
        let cores = if alone { &self.gateway } else { &self.all };
        let _ = sched_setaffinity(None, cores);
        let started = start();
        let _ = sched_setaffinity(None, &self.rest);
        started
    }
}

/// The CPU time that a process has taken, in user and kernel.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold blanks. Then: state, 10 more, utime, stime.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

/// Resident memory in MiB: now, and the most there ever was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) now: f64,
    pub(crate) most: f64,
}

pub(crate) fn memory(pid: u32) -> Memory {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u32>().ok());
        f64::from(kib.unwrap_or_default()) / 1024.0
    };
    Memory {
        now: field("VmRSS:"),
        most: field("VmHWM:"),
    }
}

/// How many file descriptors a process has open.
pub(crate) fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// What one durable write costs here: the middle of some flushes of a small file in `folder`.
pub(crate) fn flush_time(folder: &Path) -> Duration {
    use std::io::Write;
    let Ok(mut file) = fs::File::create(folder.join("flush")) else {
        return Duration::ZERO;
    };
    let mut times: Vec<_> = (0..50)
        .map(|_| {
            let started = Instant::now();
            let _ = file.write_all(&[0; 4096]);
            let _ = file.sync_data();
            started.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// The processor, in the words of Linux.
pub(crate) fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find(|line| line.starts_with("model name"));
    let name = name.and_then(|line| line.split(':').nth(1));
    name.map_or_else(|| "unknown".to_owned(), |name| name.trim().to_owned())
}
