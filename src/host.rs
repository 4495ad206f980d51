//! What the operating system tells of the machine and of its user, from Linux's status files and the environment.
//!
//! Where something is not told the answer is `None` or 0: nobody may depend on it.

use std::env;
use std::fs;
use std::path::PathBuf;

/// Limits of a control group, version 2 first.
const GROUP_LIMITS: [&str; 2] = [
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
];

/// Memory of the machine, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What programs can have now without swapping.
    pub available: u64,
    /// Free swap space.
    pub swap_free: u64,
    /// What the control group of this process may have in all, if that is less than `total`.
    pub group_limit: Option<u64>,
}

impl Memory {
    /// Reads `/proc/meminfo` and the limit of the control group.
    pub fn read() -> Option<Self> {
        let group = GROUP_LIMITS
            .iter()
            .find_map(|file| fs::read_to_string(file).ok());
        Self::parse(
            &fs::read_to_string("/proc/meminfo").ok()?,
            group.as_deref().unwrap_or_default(),
        )
    }

    fn parse(info: &str, group: &str) -> Option<Self> {
        let total = field(info, "MemTotal:")?;
        let limit = group.trim().parse().ok();
        Some(Self {
            total,
            available: field(info, "MemAvailable:")?,
            swap_free: field(info, "SwapFree:").unwrap_or(0),
            group_limit: limit.filter(|&limit| limit < total),
        })
    }

    /// What this process, which has `resident` bytes already, can have beyond them.
    pub fn left_for(&self, resident: u64) -> u64 {
        let machine = self.available.saturating_add(self.swap_free);
        match self.group_limit {
            Some(limit) => machine.min(limit.saturating_sub(resident)),
            None => machine,
        }
    }
}

/// Largest resident memory of this process so far, in bytes.
pub fn peak_resident_bytes() -> u64 {
    own_status("VmHWM:")
}

/// Resident memory of this process that no file backs, in bytes.
pub fn resident_bytes() -> u64 {
    own_status("RssAnon:")
}

/// Name of the processor.
pub fn cpu_name() -> Option<String> {
    named_cpu(&fs::read_to_string("/proc/cpuinfo").ok()?)
}

fn named_cpu(info: &str) -> Option<String> {
    let mut lines = info.lines().filter_map(|line| line.split_once(':'));
    let name = lines.find(|(key, _)| key.trim() == "model name");
    name.map(|(_, name)| name.trim().to_owned())
}

/// The folder for what can be found out again: ours in the user's cache, which may not exist yet.
pub fn user_cache() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    let cache = match set("XDG_CACHE_HOME").map(PathBuf::from) {
        // A relative path is to be ignored, says the XDG Base Directory Specification.
        Some(cache) if cache.is_absolute() => cache,
        _ => PathBuf::from(set("HOME")?).join(".cache"),
    };
    Some(cache.join("trtvlm"))
}

fn own_status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    field(&status, name).unwrap_or(0)
}

/// A field in kB of one of Linux's status files, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str =
        "MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:  600 kB\nSwapFree:  8 kB\n";

    #[test]
    fn memory_is_read_with_and_without_a_group_limit() {
        let memory = Memory::parse(INFO, "max\n").expect("memory");
        assert_eq!((memory.total, memory.available), (1000 << 10, 600 << 10));
        assert_eq!(memory.group_limit, None);
        assert_eq!(memory.left_for(300 << 10), 608 << 10);
        // Version 1 says "no limit" with a number that no machine has.
        let unlimited = Memory::parse(INFO, "9223372036854771712").expect("memory");
        assert_eq!(unlimited.group_limit, None);
        let limited = Memory::parse(INFO, "409600\n").expect("memory");
        assert_eq!(limited.left_for(300 << 10), 100 << 10);
        assert_eq!(limited.left_for(u64::MAX), 0);
    }

    #[test]
    fn cpu_is_the_first_that_has_a_name() {
        let text =
            "processor\t: 0\nmodel\t: 7\nmodel name\t: A CPU @ 2: fast\nmodel name : other\n";
        assert_eq!(named_cpu(text).as_deref(), Some("A CPU @ 2: fast"));
        assert_eq!(named_cpu("processor\t: 0\nMemTotal:  24 kB\n"), None);
    }

    #[test]
    fn memory_of_nonsense_is_nothing() {
        for text in [
            "",
            "MemTotal: x kB",
            "MemTotal: 18446744073709551615 kB",
            INFO.split_at(20).0,
        ] {
            assert_eq!(Memory::parse(text, ""), None, "{text}");
        }
    }

    #[test]
    fn peak_memory_is_told_on_linux() {
        assert!(peak_resident_bytes() > 1 << 20);
        assert!(resident_bytes() <= peak_resident_bytes());
    }
}
