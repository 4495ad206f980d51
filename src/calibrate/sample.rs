//! Pictures where the user names none.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Most items that are observed where the user does not say.
pub const DEFAULT_SAMPLES: usize = 128;

/// Folder of sample pictures.
const FOLDER: &str = "calibration";

/// The sample set of a model folder: `calibration/` in it, beside it, or beside the folder that
/// it is in.
///
/// # Errors
/// [`Error::Argument`] if there is none.
pub fn sample_set(model_dir: &Path) -> Result<PathBuf> {
    let dir = model_dir.canonicalize().map_err(Error::io(model_dir))?;
    let mut places = dir.ancestors().take(3).map(|place| place.join(FOLDER));
    places
        .find(|place| place.is_dir())
        .ok_or_else(|| Error::Argument {
            name: "calibration",
            reason: format!(
                "no folder `{FOLDER}` in or beside {}: name a folder of pictures or a JSONL file",
                model_dir.display()
            ),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_set_is_found_in_or_beside_the_model() {
        let dir = tempfile::tempdir().expect("temp dir");
        let model = dir.path().join("a/models/m");
        std::fs::create_dir_all(&model).expect("folder");
        let error = sample_set(&model).expect_err("none");
        assert!(matches!(error, Error::Argument { .. }), "{error}");
        for place in [
            "a/calibration",
            "a/models/calibration",
            "a/models/m/calibration",
        ] {
            std::fs::create_dir(dir.path().join(place)).expect("folder");
            let found = sample_set(&model).expect("found");
            assert!(found.ends_with(place), "{}", found.display());
        }
    }
}
