//! CPU, memory and folders.

use std::env;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::thread;

use indicatif::HumanBytes;

use super::item::Item;
use crate::host::{Memory, cpu_name};
use crate::hub::HubOptions;

/// Free space below which a folder is too small for a build.
const SMALL_BYTES: u64 = 2 << 30;

/// The machine, as far as its CPU engine cares.
pub fn items() -> Vec<Item> {
    let mut items = vec![cpu(), memory()];
    items.extend(board());
    items.push(folder(
        "temporary files",
        &env::temp_dir(),
        "set TMPDIR to a folder that is",
    ));
    items.push(match HubOptions::from_env() {
        Ok(options) => folder(
            "models from the hub",
            &options.cache,
            "set HF_HOME to a folder that is",
        ),
        Err(e) => Item::missing(
            "models from the hub",
            e.to_string(),
            "set HF_HOME to a folder",
        ),
    });
    items
}

/// Instruction sets that the CPU engine has kernels for, with whether this CPU has them.
#[cfg(target_arch = "x86_64")]
fn features() -> Vec<(&'static str, bool)> {
    use std::arch::is_x86_feature_detected as has;
    vec![
        ("avx2", has!("avx2")),
        ("fma", has!("fma")),
        ("f16c", has!("f16c")),
        ("avx512f", has!("avx512f")),
        ("avx512vnni", has!("avx512vnni")),
        ("avxvnni", has!("avxvnni")),
    ]
}

/// Instruction sets that the CPU engine has kernels for, with whether this CPU has them.
#[cfg(target_arch = "aarch64")]
fn features() -> Vec<(&'static str, bool)> {
    use std::arch::is_aarch64_feature_detected as has;
    vec![
        ("neon", has!("neon")),
        ("fp16", has!("fp16")),
        ("dotprod", has!("dotprod")),
        ("i8mm", has!("i8mm")),
        ("bf16", has!("bf16")),
    ]
}

/// Instruction sets that the CPU engine has kernels for: none on other machines.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<(&'static str, bool)> {
    Vec::new()
}

/// Of those, the ones without which answers take several times as long.
const NEEDED: [&str; 3] = ["avx2", "fma", "neon"];

fn cpu() -> Item {
    let model = cpu_name().unwrap_or_else(|| "unnamed CPU".to_owned());
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let (has, lacks): (Vec<_>, Vec<_>) = features().into_iter().partition(|f| f.1);
    let has: Vec<&str> = has.iter().map(|f| f.0).collect();
    let found = format!(
        "{model} ({}), {cores} cores usable; {}",
        env::consts::ARCH,
        if has.is_empty() {
            "no vector features".to_owned()
        } else {
            has.join(" ")
        }
    );
    let slow: Vec<&str> = lacks
        .iter()
        .map(|f| f.0)
        .filter(|f| NEEDED.contains(f))
        .collect();
    if has.is_empty() || !slow.is_empty() {
        let advice = "the CPU engine is slow without vector instructions: use another machine";
        return Item::warning("CPU", found, advice);
    }
    Item::ok("CPU", found)
}

fn memory() -> Item {
    let Some(memory) = Memory::read() else {
        return Item::warning("memory", "unknown: no /proc/meminfo", "mount /proc");
    };
    let (total, available) = (HumanBytes(memory.total), HumanBytes(memory.available));
    let mut found = format!("{total}, {available} available");
    if let Some(limit) = memory.group_limit {
        found += &format!("; limited to {} by its control group", HumanBytes(limit));
    }
    match memory.available < SMALL_BYTES {
        true => Item::warning("memory", found, "close other programs before a build"),
        false => Item::ok("memory", found),
    }
}

/// The Jetson that this is, if it is one.
fn board() -> Option<Item> {
    let model = fs::read("/proc/device-tree/model").ok()?;
    let model = String::from_utf8_lossy(&model);
    let release = fs::read_to_string("/etc/nv_tegra_release").unwrap_or_default();
    let release = release.lines().next().unwrap_or("not an NVIDIA system");
    let model = model.trim_end_matches('\0');
    Some(Item::ok("board", format!("{model}; {release}")))
}

/// Whether files can be made in a folder, or in the nearest one above it that is there.
fn folder(name: &'static str, path: &Path, otherwise: &str) -> Item {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let there: PathBuf = absolute
        .ancestors()
        .find(|folder| folder.exists())
        .unwrap_or(Path::new("/"))
        .to_path_buf();
    let advice = format!("{otherwise} writable");
    if let Err(e) = tempfile::tempfile_in(&there) {
        return Item::missing(
            name,
            format!("{}: not writable: {e}", there.display()),
            advice,
        );
    }
    let free = rustix::fs::statvfs(&there).map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    match free {
        Ok(free) if free < SMALL_BYTES => Item::warning(
            name,
            format!("{}: only {} free", path.display(), HumanBytes(free)),
            format!("{otherwise} on a larger disk"),
        ),
        Ok(free) => Item::ok(
            name,
            format!("{}: writable, {} free", path.display(), HumanBytes(free)),
        ),
        Err(_) => Item::ok(name, format!("{}: writable", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::item::Status;

    #[test]
    fn folder_that_is_a_file_is_missing_and_one_to_be_made_is_not() {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("write");
        let bad = folder("x", &file.join("below"), "set X to a folder that is");
        assert_eq!(bad.status, Status::Missing);
        assert_eq!(
            bad.advice.as_deref(),
            Some("set X to a folder that is writable")
        );
        let new = folder("x", &dir.path().join("a/b/c"), "");
        assert_ne!(new.status, Status::Missing, "{new:?}");
        assert!(!dir.path().join("a").exists());
    }
}
