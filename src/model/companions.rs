//! The files that stand beside the ONNX files of a model.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Files that no model folder goes without.
pub const REQUIRED_FILES: [&str; 2] = ["config.json", "tokenizer.json"];

/// Files that are read if they are there.
pub const OPTIONAL_FILES: [&str; 14] = [
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "pruner.safetensors",
    "router.safetensors",
    "quick.safetensors",
    "drafts/head.json",
    "drafts/head.onnx",
    "drafts/early-exit.json",
    "drafts/early-exit.onnx",
];

/// The companions that `dir` has, by name.
///
/// A link is followed if it stays inside the folder, leads to a file of the same name (folders
/// that share a configuration), or stays inside the repository of a hub's cache, where
/// `snapshots/<revision>/<file>` is a link into `blobs`. Whoever made a folder must not choose
/// which other files of this machine go into what is made of it.
///
/// # Errors
/// [`Error::Malformed`] if a required file is missing, a file is no regular one, or a link leaves
/// the folder; [`Error::Io`] for links to nothing.
pub fn companions(dir: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut found = Vec::new();
    for name in REQUIRED_FILES.into_iter().chain(OPTIONAL_FILES) {
        let path = dir.join(name);
        let meta = match std::fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                if REQUIRED_FILES.contains(&name) {
                    return Err(Error::malformed(dir, format!("has no {name}")));
                }
                continue;
            }
            Err(e) => return Err(Error::io(path)(e)),
        };
        if meta.is_symlink() {
            check_link(dir, &path)?;
        }
        let folder = path.parent().filter(|folder| *folder != dir);
        if let Some(folder) = folder.filter(|folder| folder.is_symlink()) {
            check_link(dir, folder)?;
        }
        let meta = std::fs::metadata(&path).map_err(Error::io(&path))?;
        if !meta.is_file() {
            return Err(Error::malformed(path, "not a regular file"));
        }
        found.push((name, path));
    }
    Ok(found)
}

/// Refuses links that lead elsewhere.
fn check_link(dir: &Path, path: &Path) -> Result<()> {
    let dir = dir.canonicalize().map_err(Error::io(dir))?;
    let target = path.canonicalize().map_err(Error::io(path))?;
    let snapshots = dir.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = snapshots.map(|snapshots| snapshots.with_file_name("blobs"));
    let is_shared = target.file_name() == path.file_name();
    if is_shared || target.starts_with(&dir) || blobs.is_some_and(|blobs| target.starts_with(blobs))
    {
        return Ok(());
    }
    let reason = format!("a link that leaves its folder, to {}", target.display());
    Err(Error::malformed(path, reason))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder(dir: &Path) {
        std::fs::create_dir_all(dir).expect("mkdir");
        for name in REQUIRED_FILES {
            std::fs::write(dir.join(name), b"{}").expect("write");
        }
    }

    fn refusal(dir: &Path) -> String {
        companions(dir).expect_err("must be refused").to_string()
    }

    #[test]
    fn companions_are_those_that_are_there() {
        let dir = tempfile::tempdir().expect("temp dir");
        folder(dir.path());
        std::fs::write(dir.path().join("chat_template.jinja"), b"x").expect("write");
        std::fs::write(dir.path().join("README.md"), b"x").expect("write");
        let names: Vec<_> = companions(dir.path())
            .expect("list")
            .into_iter()
            .map(|c| c.0)
            .collect();
        assert_eq!(
            names,
            ["config.json", "tokenizer.json", "chat_template.jinja"]
        );
        std::fs::remove_file(dir.path().join("tokenizer.json")).expect("remove");
        assert!(refusal(dir.path()).contains("has no tokenizer.json"));
    }

    #[test]
    fn companion_that_is_no_file_is_refused_and_not_read() {
        let dir = tempfile::tempdir().expect("temp dir");
        folder(dir.path());
        let path = dir.path().join("tokenizer.json");
        std::fs::remove_file(&path).expect("remove");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .expect("pipe");
        assert!(refusal(dir.path()).contains("not a regular file"));
    }

    #[test]
    fn links_may_lead_into_the_folder_or_the_cache_only() {
        let root = tempfile::tempdir().expect("temp dir");
        let dir = root.path().join("snapshots/abc");
        let blobs = root.path().join("blobs");
        folder(&dir);
        std::fs::create_dir(&blobs).expect("mkdir");
        std::fs::write(blobs.join("123"), b"x").expect("write");
        std::fs::write(root.path().join("secret"), b"x").expect("write");
        let other = root.path().join("other");
        std::fs::create_dir(&other).expect("mkdir");
        std::fs::write(other.join("chat_template.jinja"), b"x").expect("write");
        let link = dir.join("chat_template.jinja");
        for (target, is_good) in [
            ("../../blobs/123", true),
            ("config.json", true),
            ("../../other/chat_template.jinja", true),
            ("../../secret", false),
            ("/etc/passwd", false),
        ] {
            symlink(target, &link).expect("link");
            assert_eq!(companions(&dir).is_ok(), is_good, "{target}");
            std::fs::remove_file(&link).expect("remove");
        }
        symlink("nothing", &link).expect("link");
        assert!(matches!(companions(&dir), Err(Error::Io { .. })));
    }
}
