//! The memory that the process can still allocate.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Returns the number of bytes that the process can still allocate: the free memory of the machine, within the limits of
/// its control groups and of its address space. `None`: the system does not report it, as outside Linux.
pub fn available_memory() -> Option<u64> {
    let bounds = [of_machine(), of_groups(), of_address_space()];
    bounds.into_iter().flatten().min()
}

/// Runs `work` and returns its peak memory in bytes, beyond what the process used before. `None`: the system does not
/// report it. Mapped pages of files count while they are in memory. Only one measurement may run at a time, and memory
/// that other threads allocate meanwhile counts too.
pub(crate) fn peak_of<T>(work: impl FnOnce() -> T) -> (T, Option<u64>) {
    super::release_free_memory();
    // "5" resets the recorded peak to the current memory of the process: proc_pid_clear_refs(5).
    let is_reset = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let noted = |name: &str| field(&read_to_string("/proc/self/status").ok()?, name);
    let before = if is_reset { noted("VmRSS:") } else { None };
    let done = work();
    let peak = before.zip(noted("VmHWM:")).map(|(before, peak)| peak.saturating_sub(before));
    (done, peak)
}

fn of_machine() -> Option<u64> {
    field(&read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// Returns the number of a line of `/proc` in bytes; the line has kibibytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Returns what the limit of the address space (`ulimit -v`) leaves.
fn of_address_space() -> Option<u64> {
    let limits = read_to_string("/proc/self/limits").ok()?;
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?.split_whitespace().next()?;
    let limit: u64 = soft.parse().ok()?;
    Some(limit.saturating_sub(field(&read_to_string("/proc/self/status").ok()?, "VmSize:")?))
}

/// Returns what the control groups of the process leave.
fn of_groups() -> Option<u64> {
    let groups = read_to_string("/proc/self/cgroup").ok()?;
    of_groups_in(Path::new("/sys/fs/cgroup"), &groups)
}

/// As [`of_groups`], for the groups that `/proc/self/cgroup` names, in a file system mounted at `root`.
fn of_groups_in(root: &Path, groups: &str) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let is_first = controllers.split(',').any(|controller| controller == "memory");
        let (root, names) = match is_first {
            true => (root.join("memory"), ["memory.limit_in_bytes", "memory.usage_in_bytes"]),
            false if controllers.is_empty() => (root.to_owned(), ["memory.max", "memory.current"]),
            false => continue,
        };
        // A limit applies to all groups below it. In a container, the path may name a group that is not mounted there.
        let mut group: Option<PathBuf> = Some(root.join(path.trim_start_matches('/')));
        while let Some(folder) = group.filter(|folder| folder.starts_with(&root)) {
            least = left_of(&folder, names).into_iter().chain(least).min();
            group = folder.parent().map(Path::to_owned);
        }
    }
    least
}

/// Returns what a control group leaves: its limit minus its usage, without the file pages that it can drop.
fn left_of(folder: &Path, [limit, usage]: [&str; 2]) -> Option<u64> {
    let number = |name: &str| read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let (limit, usage) = (number(limit)?, number(usage)?);
    let statistics = read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let bytes = |name: &str| -> Option<u64> {
        let line = statistics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.trim().parse().ok()
    };
    let droppable = bytes("inactive_file").unwrap_or(0).saturating_add(bytes("active_file").unwrap_or(0));
    Some(limit.saturating_sub(usage.saturating_sub(droppable)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(folder).unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(folder.join(name), text).unwrap());
    }

    #[test]
    fn the_lowest_group_limit_counts_without_droppable_pages() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        let statistics = "anon 50\ninactive_file 20\nactive_file 10\n";
        write(
            &root.path().join("a"),
            &[("memory.max", "1000\n"), ("memory.current", "200\n"), ("memory.stat", statistics)],
        );
        write(&inner, &[("memory.max", "max\n"), ("memory.current", "150\n")]);
        assert_eq!(of_groups_in(root.path(), "0::/a/b\n"), Some(830));
        write(&inner, &[("memory.max", "400\n")]);
        assert_eq!(of_groups_in(root.path(), "0::/a/b\n"), Some(250));
        assert_eq!(of_groups_in(root.path(), "0::/elsewhere\n"), None);
    }

    #[test]
    fn groups_of_version_1_count_too() {
        let root = tempfile::tempdir().unwrap();
        let files = [("memory.limit_in_bytes", "1000\n"), ("memory.usage_in_bytes", "900\n")];
        write(&root.path().join("memory/job"), &files);
        assert_eq!(of_groups_in(root.path(), "5:cpu:/job\n4:memory:/job\n"), Some(100));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
        assert_eq!(field("MemFree: 1 kB\nMemAvailable:   2 kB\n", "MemAvailable:"), Some(2048));
    }
}
