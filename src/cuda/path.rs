//! Where NVIDIA's libraries are looked for.

use std::env;
use std::path::{Path, PathBuf};

/// Folders to search, in this order: those of `TENSORRT_LIB_DIR`, the loader's, the SDK's.
///
/// The SDK is the folder that `make sdk` fills, recorded when the program was compiled (none if that
/// was done for another machine); `TRTVLM_SDK` names another one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LibraryPath {
    /// `TENSORRT_LIB_DIR`, a list like `PATH`.
    pub named: Vec<PathBuf>,
    /// `LD_LIBRARY_PATH` and the usual system folders.
    pub loader: Vec<PathBuf>,
    /// Ask the loader for bare names too, which finds what `ld.so.conf` adds.
    pub bare: bool,
    /// Every `lib` folder of the SDK.
    pub sdk: Vec<PathBuf>,
}

impl LibraryPath {
    /// The path of this process.
    pub fn from_env() -> Self {
        let mut loader = split("LD_LIBRARY_PATH");
        let multiarch = format!("/usr/lib/{}-linux-gnu", env::consts::ARCH);
        loader.extend([&multiarch, "/usr/lib64", "/usr/lib", "/usr/local/lib"].map(PathBuf::from));
        loader.extend(["/usr/local/cuda/lib64", "/usr/local/tensorrt/lib"].map(PathBuf::from));
        let sdk = env::var_os("TRTVLM_SDK")
            .map_or_else(|| PathBuf::from(env!("TRTVLM_SDK_DIR")), PathBuf::from);
        Self {
            named: split("TENSORRT_LIB_DIR"),
            loader,
            bare: true,
            sdk: lib_folders(&sdk),
        }
    }

    /// One folder and nothing else.
    pub fn only(folder: impl Into<PathBuf>) -> Self {
        Self {
            named: vec![folder.into()],
            ..Self::default()
        }
    }

    /// Files in `folder` named `stem` or `stem.<version>`, one per file on disk, the highest
    /// version first.
    pub(crate) fn files(folder: &Path, stem: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries
            .filter(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let rest = name.strip_prefix(stem);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
            .filter_map(|entry| entry.path().canonicalize().ok())
            .filter(|path| path.is_file())
            .collect();
        files.sort_by_key(|path| std::cmp::Reverse(version_numbers(path)));
        files.dedup();
        files
    }
}

/// The numbers after `.so` in a file name, so that 10.16 sorts above 10.3.
fn version_numbers(path: &Path) -> (Vec<u64>, PathBuf) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let version = name.split_once(".so").map_or("", |(_, rest)| rest);
    let numbers = version.split('.').filter_map(|n| n.parse().ok()).collect();
    (numbers, path.to_path_buf())
}

fn split(name: &str) -> Vec<PathBuf> {
    let list = env::var_os(name).unwrap_or_default();
    let folders = env::split_paths(&list);
    folders.filter(|p| !p.as_os_str().is_empty()).collect()
}

fn lib_folders(sdk: &Path) -> Vec<PathBuf> {
    let parts = std::fs::read_dir(sdk).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = parts.map(|part| part.path().join("lib")).collect();
    folders.retain(|folder| folder.is_dir());
    folders.sort();
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_sorted_by_version_and_links_counted_once() {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = dir.path().canonicalize().expect("path");
        for name in [
            "libx.so.10.3.0",
            "libx.so.10.16.1",
            "libx.sofar",
            "libxy.so",
            "libx.a",
        ] {
            std::fs::write(root.join(name), b"x").expect("write");
        }
        std::os::unix::fs::symlink("libx.so.10.3.0", root.join("libx.so.10")).expect("link");
        std::os::unix::fs::symlink("nothing", root.join("libx.so")).expect("link");
        let found = LibraryPath::files(&root, "libx.so");
        assert_eq!(
            found,
            ["libx.so.10.16.1", "libx.so.10.3.0"].map(|n| root.join(n))
        );
        assert!(LibraryPath::files(&root.join("none"), "libx.so").is_empty());
    }

    #[test]
    fn lib_folders_of_an_sdk_are_those_that_exist() {
        let dir = tempfile::tempdir().expect("temp dir");
        for part in ["b/lib", "a/lib", "c/include"] {
            std::fs::create_dir_all(dir.path().join(part)).expect("mkdir");
        }
        let found = lib_folders(dir.path());
        assert_eq!(found, ["a/lib", "b/lib"].map(|part| dir.path().join(part)));
        assert!(lib_folders(&dir.path().join("none")).is_empty());
    }
}
