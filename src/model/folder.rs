//! The folder as a whole.

use std::path::{Path, PathBuf};

use super::{ModelConfig, ModelFiles};
use crate::{Error, Result};

/// A model folder in the hub's ONNX layout.
#[derive(Debug, Clone)]
pub struct Model {
    /// The folder.
    pub dir: PathBuf,
    /// What its JSON files say.
    pub config: ModelConfig,
    /// The chosen ONNX files.
    pub files: ModelFiles,
}

impl Model {
    /// Reads a folder's configuration and chooses its ONNX files; none of them is opened.
    ///
    /// # Errors
    /// Those of [`ModelConfig::load`] and [`ModelFiles::find`]; [`Error::Malformed`] if `dir` is
    /// not a folder.
    pub fn load(dir: &Path, variant: Option<&str>) -> Result<Self> {
        let meta = std::fs::metadata(dir).map_err(Error::io(dir))?;
        if !meta.is_dir() {
            return Err(Error::malformed(dir, "not a folder"));
        }
        Ok(Self {
            dir: dir.to_path_buf(),
            config: ModelConfig::load(dir)?,
            files: ModelFiles::find(dir, variant)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_of_a_file_or_nothing_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("model.onnx");
        std::fs::write(&file, b"x").expect("write");
        assert!(matches!(
            Model::load(&file, None),
            Err(Error::Malformed { .. })
        ));
        let none = dir.path().join("none");
        assert!(matches!(Model::load(&none, None), Err(Error::Io { .. })));
        let e = Model::load(dir.path(), None).expect_err("no config");
        assert!(e.to_string().contains("config.json"), "{e}");
    }
}
