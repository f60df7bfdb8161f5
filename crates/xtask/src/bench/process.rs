//! CPU time and memory, as Linux accounts for them in /proc.

/// Clock ticks per second in /proc: 100 on every Linux that Rust runs on (`USER_HZ`).
const TICKS: f64 = 100.0;

/// Where `utime`, `stime`, `cutime` and `cstime` stand in [`stat`]: proc(5)'s fields 14 to 17.
const UTIME: usize = 11;
const CUTIME: usize = 13;

/// CPU seconds (user and system) of a process that runs, threads included.
pub fn cpu_of(pid: u32) -> Option<f64> {
    stat(pid).map(|fields| (fields[UTIME] + fields[UTIME + 1]) / TICKS)
}

/// CPU seconds of all finished and awaited children of this process.
pub fn cpu_of_children() -> f64 {
    stat(std::process::id()).map_or(0.0, |fields| (fields[CUTIME] + fields[CUTIME + 1]) / TICKS)
}

/// Peak resident memory of a process, in MiB.
pub fn peak_rss_mib(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// The numbers of /proc/PID/stat from the state on (proc(5) counts pid and comm as fields 1 and 2).
fn stat(pid: u32) -> Option<Vec<f64>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_memory_and_time() {
        let me = std::process::id();
        assert!(super::peak_rss_mib(me).unwrap() > 0.5);
        assert!(super::cpu_of(me).unwrap() < 1000.0);
    }
}
