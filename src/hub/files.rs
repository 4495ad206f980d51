//! Which files of a repository are fetched.

use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::limits;
use crate::model::{OPTIONAL_FILES, REQUIRED_FILES, Refusal, Variants, file_names};

/// Folder of what was trained to draft for a model.
const DRAFTS: &str = "drafts/";

/// Folder of the ONNX files.
const ONNX: &str = "onnx/";

/// Chooses from the names of a repository's files those to fetch, small ones first.
///
/// # Errors
/// The reason, for people: no such variant, or a file is missing.
pub(super) fn choose(listed: &[String], variant: Option<&str>) -> Result<Vec<String>, String> {
    let listed: BTreeSet<&str> = listed
        .iter()
        .map(String::as_str)
        .filter(|n| is_safe(n))
        .collect();
    if let Some(missing) = REQUIRED_FILES.iter().find(|name| !listed.contains(*name)) {
        return Err(format!(
            "it has no {missing}: not a model in the hub's ONNX layout"
        ));
    }
    let variants = Variants::of(listed.iter().filter_map(|name| name.strip_prefix(ONNX)));
    let variant = variants.choose(variant).map_err(|refusal| match refusal {
        Refusal::NoneWhole => format!("no variant has all components: it has {variants}"),
        Refusal::Asked(reason) => format!("{reason}; it has {variants}"),
    })?;
    let onnx = file_names(&variant).map(|name| format!("{ONNX}{name}"));
    let wanted = |name: &&&str| {
        REQUIRED_FILES.contains(name)
            || OPTIONAL_FILES.contains(name)
            || name.starts_with(DRAFTS)
            || onnx.iter().any(|file| is_file_or_data(name, file))
    };
    let mut files: Vec<String> = listed
        .iter()
        .filter(wanted)
        .map(|&n| n.to_owned())
        .collect();
    files.sort_by_key(|name| name.starts_with(ONNX));
    Ok(files)
}

/// Most bytes that a file of this name may have: what would be refused when it is read is not
/// fetched.
pub(super) fn size_limit(name: &str) -> u64 {
    match name.rsplit('.').next() {
        Some("json" | "jinja" | "txt") => limits::TEXT_FILE_BYTES,
        Some("onnx") => limits::ONNX_FILE_BYTES,
        _ => limits::WEIGHT_FILE_BYTES,
    }
}

/// The error for a file of more than [`size_limit`].
pub(super) fn too_large(repo: &super::RepoId, file: &str, actual: u64) -> Error {
    Error::TooLarge {
        what: format!("size in bytes of {file} of {repo}"),
        actual,
        limit: size_limit(file),
    }
}

/// True for an ONNX file and for the data beside it: `x.onnx_data`, `x.onnx_data_1`,
/// `x.onnx.data`.
fn is_file_or_data(name: &str, onnx: &str) -> bool {
    name.strip_prefix(onnx).is_some_and(|rest| {
        rest.is_empty() || rest.starts_with("_data") || rest.starts_with(".data")
    })
}

/// True for names that need no care in a path or an address.
pub(super) fn is_safe(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.len() <= 256
        && name.split('/').count() <= 2
        && name
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain))
}

/// The error for a repository that cannot be used.
pub(super) fn refused(repo: &super::RepoId, reason: impl Into<String>) -> Error {
    Error::Download {
        repo: repo.to_string(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(suffixes: &[&str]) -> Vec<String> {
        let mut files: Vec<String> = [
            "README.md",
            "config.json",
            "tokenizer.json",
            "onnx/other.onnx",
            "model.safetensors",
        ]
        .map(str::to_owned)
        .to_vec();
        for suffix in suffixes {
            let variant = suffix.strip_prefix('_').unwrap_or("fp32");
            files.extend(file_names(variant).map(|name| format!("{ONNX}{name}")));
        }
        files
    }

    #[test]
    fn choice_takes_one_variant_with_its_data_and_nothing_else() {
        let mut files = listing(&["", "_fp16", "_q4"]);
        files.extend(
            [
                "onnx/decoder_model_merged_fp16.onnx_data",
                "onnx/decoder_model_merged_fp16.onnx_data_1",
                "onnx/decoder_model_merged.onnx_data",
                "onnx/vision_encoder_fp16.onnx.data",
                "onnx/vision_encoder_fp16.onnxruntime",
                "drafts/head.safetensors",
                "../../drafts/evil",
                "drafts/../../evil",
            ]
            .map(str::to_owned),
        );
        let chosen = choose(&files, Some("fp16")).expect("fp16");
        assert_eq!(
            chosen,
            [
                "config.json",
                "drafts/head.safetensors",
                "tokenizer.json",
                "onnx/decoder_model_merged_fp16.onnx",
                "onnx/decoder_model_merged_fp16.onnx_data",
                "onnx/decoder_model_merged_fp16.onnx_data_1",
                "onnx/embed_tokens_fp16.onnx",
                "onnx/vision_encoder_fp16.onnx",
                "onnx/vision_encoder_fp16.onnx.data",
            ]
        );
        let plain = choose(&files, None).expect("fp32");
        assert!(plain.contains(&"onnx/decoder_model_merged.onnx_data".to_owned()));
        assert_eq!(plain.len(), 7);
    }

    #[test]
    fn choice_of_a_variant_follows_the_rule_of_folders() {
        let files = choose(&listing(&["_q4", "_fp16"]), None).expect("fp16");
        assert!(files.iter().any(|f| f == "onnx/embed_tokens_fp16.onnx"));
        for (suffixes, asked, words) in [
            (&["_q4", "_int8"][..], None, "several"),
            (&[], None, "no variant"),
            (&["_q4"], Some("int8"), "`int8` is missing"),
        ] {
            let reason = choose(&listing(suffixes), asked).expect_err("none");
            assert!(reason.contains(words), "{suffixes:?}: {reason}");
        }
        let reason = choose(&["onnx/x.onnx".to_owned()], None).expect_err("no config");
        assert!(reason.contains("config.json"), "{reason}");
    }
}
