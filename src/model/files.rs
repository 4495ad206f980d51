//! The ONNX files of a folder: three components, each in one or more variants.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The subfolder of the components.
const FOLDER: &str = "onnx";

/// File stems of the components: vision, embedding, decoder.
const STEMS: [&str; 3] = ["vision_encoder", "embed_tokens", "decoder_model_merged"];

/// What a file without suffix is called.
const UNSUFFIXED: &str = "fp32";

/// Variants in order of preference when none is asked for.
const PREFERRED: [&str; 2] = [UNSUFFIXED, "fp16"];

/// The three ONNX files that a run or a build reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// `fp32` for files without suffix, else the suffix without its underscore.
    pub variant: String,
    /// Pixels to visual tokens.
    pub vision: PathBuf,
    /// Token ids to embeddings.
    pub embed: PathBuf,
    /// Embeddings to logits, with a KV cache.
    pub decoder: PathBuf,
}

impl ModelFiles {
    /// Chooses one variant of all three components.
    ///
    /// Without `variant`: `fp32`, else `fp16`, else the only one that is whole.
    ///
    /// # Errors
    /// [`Error::Io`] without an `onnx` folder. [`Error::Argument`] if the variant asked for is not
    /// whole, or one has to be asked for; [`Error::Malformed`] if no variant is whole. Both list
    /// what is there.
    pub fn find(dir: &Path, variant: Option<&str>) -> Result<Self> {
        let folder = dir.join(FOLDER);
        let names = list(&folder)?;
        let variants = Variants::of(names.iter().map(String::as_str));
        let variant = variants.choose(variant).map_err(|refusal| {
            let here = format!("{} has {variants}", folder.display());
            match refusal {
                Refusal::NoneWhole => {
                    Error::malformed(dir, format!("no variant has all components: {here}"))
                }
                Refusal::Asked(reason) => Error::Argument {
                    name: "variant",
                    reason: format!("{reason}; {here}"),
                },
            }
        })?;
        let [vision, embed, decoder] = STEMS.map(|stem| folder.join(file_name(stem, &variant)));
        Ok(Self {
            variant,
            vision,
            embed,
            decoder,
        })
    }
}

/// The variants of each component, as the names of their files tell.
#[derive(Debug, Default)]
pub struct Variants([BTreeSet<String>; 3]);

/// Why no variant was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No variant has all three components.
    NoneWhole,
    /// The one asked for is not whole, or one has to be asked for: the reason, for people.
    Asked(String),
}

impl Variants {
    /// Sorts the names of files of an `onnx` folder; names that are none of ours are passed over.
    pub fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut found = Self::default();
        for stem in names.filter_map(|name| name.strip_suffix(".onnx")) {
            for (component, variants) in STEMS.iter().zip(&mut found.0) {
                match stem.strip_prefix(component) {
                    Some("") => variants.insert(UNSUFFIXED.to_string()),
                    Some(rest) => match rest.strip_prefix('_') {
                        Some(suffix) if !suffix.is_empty() && suffix != UNSUFFIXED => {
                            variants.insert(suffix.to_string())
                        }
                        _ => false,
                    },
                    None => false,
                };
            }
        }
        found
    }

    /// The variant asked for; without one `fp32`, else `fp16`, else the only one that is whole.
    ///
    /// # Errors
    /// [`Refusal`], which says why.
    pub fn choose(&self, asked: Option<&str>) -> Result<String, Refusal> {
        let is_whole = |variant: &str| self.0.iter().all(|c| c.contains(variant));
        if let Some(asked) = asked {
            if is_whole(asked) {
                return Ok(asked.to_owned());
            }
            let lacks = |(_, variants): &(&&str, &BTreeSet<String>)| !variants.contains(asked);
            let lacking: Vec<&str> = STEMS
                .iter()
                .zip(&self.0)
                .filter(lacks)
                .map(|(s, _)| *s)
                .collect();
            let reason = format!("`{asked}` is missing for {}", lacking.join(", "));
            return Err(Refusal::Asked(reason));
        }
        if let Some(preferred) = PREFERRED.into_iter().find(|v| is_whole(v)) {
            return Ok(preferred.to_owned());
        }
        let mut whole = self.0[0].iter().filter(|v| is_whole(v));
        match (whole.next(), whole.next()) {
            (Some(only), None) => Ok(only.clone()),
            (None, _) => Err(Refusal::NoneWhole),
            _ => Err(Refusal::Asked(
                "there are several to choose from".to_owned(),
            )),
        }
    }
}

impl fmt::Display for Variants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (stem, variants)) in STEMS.iter().zip(&self.0).enumerate() {
            let names: Vec<&str> = variants.iter().map(String::as_str).collect();
            let names = if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            };
            write!(f, "{}{stem}: {names}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Names of a variant's three files in the `onnx` folder: vision, embedding, decoder.
pub fn file_names(variant: &str) -> [String; 3] {
    STEMS.map(|stem| file_name(stem, variant))
}

fn file_name(stem: &str, variant: &str) -> String {
    match variant {
        UNSUFFIXED => format!("{stem}.onnx"),
        variant => format!("{stem}_{variant}.onnx"),
    }
}

/// Names of the files in a folder. A name that is not UTF-8 is none of ours; links count as what
/// they point to.
fn list(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        if fs::metadata(entry.path()).is_ok_and(|meta| meta.is_file())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::create_dir(dir.path().join("onnx")).expect("mkdir");
        for f in files {
            fs::write(dir.path().join("onnx").join(f), b"").expect("write");
        }
        dir
    }

    fn all(suffixes: &[&str]) -> Vec<String> {
        suffixes
            .iter()
            .flat_map(|s| STEMS.iter().map(move |c| format!("{c}{s}.onnx")))
            .collect()
    }

    fn chosen(suffixes: &[&str], variant: Option<&str>) -> Result<ModelFiles> {
        let files = all(suffixes);
        let dir = folder(&files.iter().map(String::as_str).collect::<Vec<_>>());
        ModelFiles::find(dir.path(), variant)
    }

    #[test]
    fn variant_unasked_prefers_fp32_then_fp16_then_the_only_one() {
        for (suffixes, expected) in [
            (&["_fp16", "", "_q4"][..], "fp32"),
            (&["_q4", "_fp16", "_int8"], "fp16"),
            (&["_q4f16"], "q4f16"),
        ] {
            let got = chosen(suffixes, None).expect("a variant");
            assert_eq!(got.variant, expected, "{suffixes:?}");
        }
    }

    #[test]
    fn variant_asked_names_the_files() {
        let got = chosen(&["", "_q4"], Some("q4")).expect("q4");
        assert!(got.vision.ends_with("onnx/vision_encoder_q4.onnx"));
        assert!(got.embed.ends_with("onnx/embed_tokens_q4.onnx"));
        assert!(got.decoder.ends_with("onnx/decoder_model_merged_q4.onnx"));
        let got = chosen(&["", "_q4"], Some("fp32")).expect("fp32");
        assert!(got.decoder.ends_with("onnx/decoder_model_merged.onnx"));
    }

    #[test]
    fn variant_missing_for_one_component_lists_what_is_there() {
        let dir = folder(&[
            "vision_encoder.onnx",
            "embed_tokens.onnx",
            "embed_tokens_fp16.onnx",
            "decoder_model_merged_fp16.onnx",
            "decoder_model_merged_fp16.onnx_data",
            "decoder_model_merged.txt",
            "vision_encoderX.onnx",
            "vision_encoder_.onnx",
        ]);
        let e = ModelFiles::find(dir.path(), Some("fp16")).expect_err("no vision");
        assert!(matches!(e, Error::Argument { .. }), "{e:?}");
        let text = e.to_string();
        assert!(
            text.contains("`fp16` is missing for vision_encoder;"),
            "{text}"
        );
        assert!(text.contains("embed_tokens: fp16, fp32"), "{text}");
        let e = ModelFiles::find(dir.path(), None).expect_err("none whole");
        assert!(matches!(e, Error::Malformed { .. }), "{e:?}");
        assert!(e.to_string().contains("vision_encoder: fp32"), "{e}");
    }

    #[test]
    fn variant_several_without_preference_must_be_asked_for() {
        let e = chosen(&["_q4", "_int8"], None).expect_err("ambiguous");
        assert!(matches!(e, Error::Argument { .. }), "{e:?}");
        assert!(e.to_string().contains("int8, q4"), "{e}");
        let e = chosen(&[""], Some("../../etc/passwd")).expect_err("not there");
        assert!(matches!(e, Error::Argument { .. }), "{e:?}");
    }

    #[test]
    fn folder_without_onnx_is_an_io_error_that_names_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let e = ModelFiles::find(dir.path(), None).expect_err("no folder");
        assert!(matches!(e, Error::Io { .. }));
        assert!(e.to_string().ends_with("onnx"), "{e}");
        let e = ModelFiles::find(folder(&[]).path(), None).expect_err("empty");
        assert!(e.to_string().contains("vision_encoder: none"), "{e}");
    }
}
