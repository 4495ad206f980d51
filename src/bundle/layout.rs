//! Names inside a bundle, and what a bundle may hold.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::limits;

/// The manifest's name in its bundle.
pub const MANIFEST: &str = "manifest.json";

/// The name of the file that holds the manifest's digest.
pub const MANIFEST_DIGEST: &str = "manifest.sha256";

/// Checks the name of a file inside a bundle: relative, `/` between its parts, no part that
/// leaves the directory, nothing that `sha256sum` would have to escape.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > limits::BUNDLE_NAME_BYTES {
        return Err("its length is out of range");
    }
    if name.starts_with('/') {
        return Err("it is absolute");
    }
    if name.chars().any(|c| c.is_control() || c == '\\') {
        return Err("it has control characters or backslashes");
    }
    if name.split('/').count() > limits::BUNDLE_DEPTH {
        return Err("it is nested too deeply");
    }
    for part in name.split('/') {
        match part {
            "" => return Err("it has an empty part"),
            "." | ".." => return Err("it leaves or repeats its directory"),
            _ => {}
        }
    }
    Ok(())
}

/// Lists the files under `dir`, as names relative to it, sorted; the manifest and its digest are
/// left out.
///
/// # Errors
/// [`Error::Malformed`] on anything that is neither a file nor a directory (links included), and
/// on names that a bundle may not have; [`Error::TooLarge`] above [`limits::BUNDLE_FILES`].
pub(super) fn list(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut entries = 0u64;
    let mut pending = vec![String::new()];
    while let Some(prefix) = pending.pop() {
        let folder = dir.join(&prefix);
        for entry in fs::read_dir(&folder).map_err(Error::io(&folder))? {
            let entry = entry.map_err(Error::io(&folder))?;
            let path = entry.path();
            entries += 1;
            if entries > limits::BUNDLE_FILES {
                return Err(Error::TooLarge {
                    what: format!("{} (files)", dir.display()),
                    actual: entries,
                    limit: limits::BUNDLE_FILES,
                });
            }
            let bad = |reason: &str| {
                Error::malformed(&path, format!("cannot be part of a bundle: {reason}"))
            };
            let file_name = entry.file_name();
            let part = file_name
                .to_str()
                .ok_or_else(|| bad("its name is not UTF-8"))?;
            let name = match prefix.as_str() {
                "" => part.to_owned(),
                prefix => format!("{prefix}/{part}"),
            };
            check_name(&name).map_err(|reason| bad(&format!("of its name: {reason}")))?;
            let kind = entry.file_type().map_err(Error::io(&path))?;
            if kind.is_dir() {
                pending.push(name);
            } else if !kind.is_file() {
                return Err(bad("neither a file nor a directory"));
            } else if name != MANIFEST && name != MANIFEST_DIGEST {
                names.push(name);
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for good in [
            "config.json",
            "engines/vision.plan",
            "kernels/sm86.cubin",
            "a..b",
            ".x",
        ] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        let long = "x".repeat(5000);
        let deep = ["d"; 40].join("/");
        for bad in [
            "",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            "./a",
            "a\nb",
            "a\\b",
            &long,
            &deep,
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn list_gives_sorted_names_and_refuses_links() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::create_dir(dir.path().join("engines")).expect("mkdir");
        for name in ["engines/b.plan", "config.json", MANIFEST, MANIFEST_DIGEST] {
            fs::write(dir.path().join(name), name).expect("write");
        }
        assert_eq!(
            list(dir.path()).expect("list"),
            ["config.json", "engines/b.plan"]
        );
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).expect("link");
        let error = list(dir.path()).expect_err("a link");
        assert!(
            matches!(&error, Error::Malformed { path, .. } if path.ends_with("link")),
            "{error}"
        );
    }
}
