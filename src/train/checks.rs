//! What every training checks before a model is loaded, and which of its pictures it judges.

use std::path::Path;

use crate::error::{Error, Result};

fn argument(name: &'static str, reason: String) -> Result<()> {
    Err(Error::Argument { name, reason })
}

/// Refuses options that say none.
pub(super) fn at_least_one(options: &[(&'static str, usize)]) -> Result<()> {
    match options.iter().find(|(_, n)| *n == 0) {
        Some((name, _)) => argument(name, "0, at least 1".to_owned()),
        None => Ok(()),
    }
}

/// Refuses a learning rate with which nothing is learned.
pub(super) fn rate(rate: f64) -> Result<()> {
    match rate > 0.0 && rate <= 1.0 {
        true => Ok(()),
        false => argument("rate", format!("{rate}, above 0 and at most 1")),
    }
}

/// Refuses a share that is none, or everything.
pub(super) fn held_out(share: f64) -> Result<()> {
    match share > 0.0 && share < 1.0 {
        true => Ok(()),
        false => argument("held-out", format!("{share}, between 0 and 1")),
    }
}

/// Refuses a number that is no share.
pub(super) fn share(name: &'static str, share: f64) -> Result<()> {
    match (0.0..=1.0).contains(&share) {
        true => Ok(()),
        false => argument(name, format!("{share}, from 0 to 1")),
    }
}

/// Refuses pictures that cannot be divided.
pub(super) fn pictures(n: usize) -> Result<()> {
    match n {
        0 | 1 => argument("data", "at least two pictures: one is held out".to_owned()),
        _ => Ok(()),
    }
}

/// Refuses to write where a folder is, or a file that may not be replaced.
pub(super) fn output(path: &Path, force: bool) -> Result<()> {
    if path.is_dir() {
        return Err(Error::malformed(path, "is a folder"));
    }
    if path.exists() && !force {
        let path = path.to_path_buf();
        return Err(Error::Exists { path });
    }
    Ok(())
}

/// How many of `n` pictures, at least two, are judged and not learned from: the last ones.
pub(super) fn n_held(n: usize, share: f64) -> usize {
    let n_held = (n as f64 * share).round() as usize;
    n_held.clamp(1, n - 1)
}
