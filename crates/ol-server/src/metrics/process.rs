//! What the operating system says of this process. Only Linux says it this way;
//! elsewhere these metrics are absent.

use std::fs;

use metrics::{counter, gauge};

/// Names that every program uses, so that common dashboards show them.
pub(super) const CPU: &str = "process_cpu_seconds_total";
pub(super) const MEMORY: &str = "process_resident_memory_bytes";
pub(super) const FILES: &str = "process_open_fds";
pub(super) const FILES_MAX: &str = "process_max_fds";

/// Ticks of CPU time in a second, the same on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// Looks everything up.
#[expect(clippy::cast_precision_loss, reason = "shown, not computed with")]
pub(super) fn record() {
    let stat = fs::read_to_string("/proc/self/stat").ok();
    if let Some(ticks) = stat.as_deref().and_then(cpu_ticks) {
        counter!(CPU).absolute(ticks / TICKS_PER_SECOND);
    }
    let status = fs::read_to_string("/proc/self/status").ok();
    if let Some(kib) = status
        .as_deref()
        .and_then(|text| number_after(text, "VmRSS:"))
    {
        gauge!(MEMORY).set((kib * 1_024) as f64);
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // One of them reads the folder.
        gauge!(FILES).set(entries.count().saturating_sub(1) as f64);
    }
    let limits = fs::read_to_string("/proc/self/limits").ok();
    if let Some(n_max) = limits
        .as_deref()
        .and_then(|text| number_after(text, "Max open files"))
    {
        gauge!(FILES_MAX).set(n_max as f64);
    }
}

/// User and system time of `/proc/self/stat`: fields 14 and 15. The name in
/// field 2 may hold spaces, and ends with the last bracket.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

/// The number that follows a name at the beginning of a line.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4 100 0 0 0 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("7 (a) S 1"), None);
        assert_eq!(cpu_ticks(""), None);
        let status = "Name:\tx\nVmRSS:\t   1234 kB\nThreads:\t1\n";
        assert_eq!(number_after(status, "VmRSS:"), Some(1_234));
        assert_eq!(number_after(status, "VmSwap:"), None);
        assert_eq!(
            number_after(
                "Max open files            1024     4096     files",
                "Max open files"
            ),
            Some(1_024)
        );
        assert_eq!(
            number_after("Max open files  unlimited", "Max open files"),
            None
        );
    }
}
